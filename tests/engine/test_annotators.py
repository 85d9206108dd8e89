"""A simulated annotator on the real server: both stages with people, nothing lost or made twice."""

from __future__ import annotations

import signal
import time
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.open_source import open_source
from sam_jax.data.store import MODEL, Store
from sam_jax.engine.ledger import figures
from sam_jax.ops.clicks import iou
from sam_jax.ops.rle import decode

pytest.importorskip("uvicorn", reason="the page needs uvicorn: pip install 'sam_jax[annotate]'")
from tests.engine.client import Annotator, Server  # noqa: E402

HW = (210, 280)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.open(files("sam_jax.assets").joinpath("photo.jpg")).convert("RGB")
    for name in ("a.jpg", "b.jpg"):
        photo.resize(HW[::-1]).save(folder / name, quality=95)
    return folder


def trues():
    """The saucer and the cup, about."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    saucer = np.hypot((x - 155) / 90, (y - 115) / 90) < 1
    cup = np.hypot((x - 140) / 50, (y - 75) / 60) < 1
    return [saucer, cup]


@pytest.mark.parametrize(
    "stage", [pytest.param("assisted", marks=pytest.mark.slow), "semi-automatic"]
)
def test_a_photo_is_finished_with_all_its_masks(photos, stage):
    with Server(photos, "--stage", stage) as server:
        person = Annotator(server.url, "ann", patience=3)
        counts = person.work_on("a.jpg", trues())
        assert counts["added"] + counts["corrected"] + counts["kept"] == 2
        again = person.open("a.jpg")
        assert again["done"] and len(again["masks"]) == 2
    store = Store(photos / "sam_jax_store")
    alive = [decode(mask.rle) for mask in store.alive("a.jpg").values()]
    for true in trues():
        assert max(iou(mask, true) for mask in alive) >= person.enough
    assert set(person.saved) <= set(store.masks())
    filled = [event["photo"] for event in store.events() if event["event"] == "filled"]
    assert ("a.jpg" in filled) == (stage == "semi-automatic")
    assert len(filled) == len(set(filled)), "no photo is filled twice"
    by_model = [m for m in store.masks("a.jpg").values() if m.event["who"] == MODEL]
    assert len(by_model) == counts["kept"] + counts["corrected"] + counts["rejected"]
    numbers = figures(store)
    assert numbers["done"] == 1 and numbers["by annotator"]["ann"]["masks"] == len(person.saved)
    source = open_source(photos / "sam_jax_store")
    assert len(source[0]["rles"]) == 2, "training reads what is there"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 4.0])
def test_ctrl_c_twice_leaves_at_once(photos, seconds):
    """While the model compiles in a thread, which an interpreter that ends would be aborted by."""
    server = Server(photos, "--stage", "semi-automatic")
    with server.process.stdout:
        time.sleep(seconds)
        for _ in range(3):
            server.process.send_signal(signal.SIGINT)
            time.sleep(1.0)
            if server.process.poll() is not None:
                break
        assert server.process.wait(5) in (0, 130, -signal.SIGINT)
