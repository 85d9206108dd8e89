"""Pre-filled and automatic masks, the ledger and the check of quality, export to folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.cli import main
from sam_jax.data.open_source import open_source
from sam_jax.data.store import MODEL, Store
from sam_jax.engine import ledger
from sam_jax.engine.export import to_folder
from sam_jax.engine.filling import fill, unfilled
from sam_jax.ops.rle import area, decode, encode
from tests.engine.conftest import HW, rectangle


class Generator:
    """Finds given masks in every photo."""

    def __init__(self, *masks):
        self.masks = masks

    def generate(self, image):
        assert image.shape == (*HW, 3)
        return [
            {
                "segmentation": encode(mask),
                "predicted_iou": 0.95,
                "stability_score": 0.97,
                "crop_box": [0, 0, *HW[::-1]],
                "point_coords": [[5.0, 5.0]],
            }
            for mask in self.masks
        ]


A, B, C = rectangle(0, 0, 20, 20), rectangle(30, 5, 60, 40), rectangle(2, 25, 20, 45)


def person(store, mask, photo="a.png", **fields):
    return store.add("mask", photo, "ann", **encode(mask), stage="assisted", **fields)["id"]


def test_what_is_there_already_is_left_out(store):
    own = person(store, rectangle(0, 0, 20, 18))
    assert fill(store, Generator(A, B), "a.png", "semi-automatic", "abc") == 1
    (key,) = set(store.alive("a.png")) - {own}
    event = store.alive()[key].event
    assert event["who"] == MODEL and event["model"] == "abc" and event["predicted_iou"] == 0.95
    np.testing.assert_array_equal(decode(store.alive()[key].rle), B)
    assert unfilled(store, "semi-automatic") == ["c.jpg", "deep/b.jpg"]
    assert unfilled(store, "automatic") == ["a.png", "c.jpg", "deep/b.jpg"]
    assert fill(store, Generator(A, B, C), "a.png", "automatic", "abc") == 1


def test_what_a_person_rejected_does_not_come_again_and_done_photos_are_left_alone(store):
    fill(store, Generator(A, B), "a.png", "semi-automatic", "abc")
    first, second = store.alive("a.png")
    store.add("remove", "a.png", "ann", mask=first)
    assert fill(store, Generator(A, B, C), "a.png", "automatic", "abc") == 1
    store.add("photo", "deep/b.jpg", "ann", done=True, seconds=3)
    assert unfilled(store, "automatic") == ["c.jpg"]


def test_a_run_that_was_killed_leaves_nothing_twice(store):
    for mask in (A, B):  # and then it was killed
        store.add("mask", "a.png", MODEL, **encode(mask), stage="automatic")
    assert fill(store, Generator(A, B, C), "a.png", "automatic", "abc") == 3
    assert len(store.alive("a.png")) == 3


def test_a_photo_that_cannot_be_read(store):
    for name in ("c.jpg", "none.png"):
        with pytest.raises(ValueError, match=name):
            fill(store, Generator(A), name, "automatic", "abc")
    assert "c.jpg" in unfilled(store, "automatic")


def test_the_ledger_and_the_quality_by_hand(store):
    fill(store, Generator(A, B, C), "a.png", "semi-automatic", "abc")
    fill(store, Generator(A), "deep/b.jpg", "semi-automatic", "abc")
    a, b, c = (key for key in store.alive("a.png"))
    person(store, rectangle(0, 0, 20, 16), replaces=a, seconds=4.0, model="abc")  # IoU 0.8
    store.add("remove", "a.png", "ann", mask=b)
    person(store, rectangle(40, 41, 60, 47), seconds=10.0, model="abc")
    assert ledger.figures(store)["quality"] is None, "no photo is done"
    store.add("photo", "a.png", "ann", done=True, seconds=30)
    figures = ledger.figures(store)
    assert figures["masks"] == 4 and figures["photos"] == 3 and figures["done"] == 1
    assert figures["by stage"]["assisted"]["seconds a mask"] == 7.0
    assert figures["by stage"]["semi-automatic"]["masks a photo"] == 1.0
    assert figures["by annotator"]["ann"]["masks"] == 2
    assert figures["quality"] == {
        "masks": 2,
        "corrected": 1,
        "rejected": 1,
        "above 0.9": 0.5,
        "above 0.75": 1.0,
    }
    page = ledger.page(store)
    assert "50% above 90% IoU" in page and "<svg" in page
    assert ledger.figures(Store(store.path)) == figures


def test_exports_are_read_again(store, tmp_path):
    person(store, A, label="cup")
    person(store, B, "deep/b.jpg")
    for form in ("sa1b", "coco", "png"):
        to_folder(store, form, tmp_path / form)
    for record in map(open_source(tmp_path / "sa1b").__getitem__, range(2)):
        assert record["image"].shape == (*HW, 3) and len(record["rles"]) == 1
    source = open_source(f"{tmp_path / 'coco' / 'instances.json'}:{store.photos}")
    np.testing.assert_array_equal(decode(source[0]["rles"][0]), A)
    names = json.loads((tmp_path / "coco" / "instances.json").read_text())["categories"]
    assert [one["name"] for one in names] == ["cup", "object"]
    with pytest.raises(ValueError, match="sa1b, coco, png"):
        to_folder(store, "xml", tmp_path / "x")


def test_photos_that_differ_in_their_suffix_alone_are_exported_apart(photos, tmp_path):
    Image.open(photos / "a.png").save(photos / "a.jpg")
    store = Store(tmp_path / "store", photos)
    person(store, A, "a.jpg")
    person(store, B, "a.png")
    assert to_folder(store, "png", tmp_path / "png") == 2
    assert {path.name for path in (tmp_path / "png").iterdir()} == {"a.png", "a_png.png"}
    to_folder(store, "sa1b", tmp_path / "sa1b")
    records = open_source(tmp_path / "sa1b")
    assert [area(records[i]["rles"][0]) for i in range(2)] == [A.sum(), B.sum()]


def test_no_export_takes_the_place_of_a_photo(store):
    person(store, A)
    before = (store.photos / "a.png").read_bytes()
    with pytest.raises(ValueError, match="a.png is one of the photographs"):
        to_folder(store, "png", store.photos)
    assert (store.photos / "a.png").read_bytes() == before


def test_the_automatic_stage_and_exports_from_the_command_line(photos, tmp_path, capsys):
    arguments = ["annotate", str(photos), "--stage", "automatic", "--preset", "edges"]
    (photos / "deep" / "b.jpg").unlink()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "skipped c.jpg" in printed and "masks on 1 photos" in printed
    store = Store(photos / "sam_jax_store")
    count = len(store.alive())
    assert count == ledger.figures(store)["by stage"]["automatic"]["masks"] > 0
    (photos / "c.jpg").unlink()
    assert main(arguments) == 0
    assert "has been run on all photos" in capsys.readouterr().out
    out = ["--export", "coco", "--out", str(tmp_path / "out")]
    assert main(["annotate", str(photos), *out]) == 0
    assert (
        len(json.loads((tmp_path / "out" / "instances.json").read_text())["annotations"]) == count
    )
    assert main(["annotate", str(photos), "--ledger"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["masks"] == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "folder of photographs, got none"),
        (["empty"], "no photos in empty"),
        (["photos", "--model", "vit_x"], "--model: expected tiny"),
        (["photos", "--port", "99999"], "--port: expected 0 to 65535"),
        (["photos", "--export", "coco"], "--out: --export needs a folder"),
        (["photos", "--stage", "automatic", "--preset", "x"], "expected one of default"),
    ],
)
def test_bad_arguments(arguments, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["annotate", *arguments]) == 2
    assert message in capsys.readouterr().err
