"""A folder of photographs, and a server on it without a socket."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.store import Store
from sam_jax.engine.assistant import Assistant
from tests.small import photo, small_sam

HW = (48, 64)


@pytest.fixture
def photos(tmp_path):
    """a.png and deep/b.jpg of HW, and c.jpg that is no picture."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(photo(HW, 1)).save(folder / "a.png")
    Image.fromarray(photo(HW, 2)).save(folder / "deep" / "b.jpg")
    (folder / "c.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def store(photos):
    store = Store(photos / "sam_jax_store", photos)
    yield store
    store.close()


@pytest.fixture
def assistant(photos, store):
    """A small model at work, ready on a.png."""
    assistant = Assistant(small_sam, photos, store.path / "embeddings")
    assistant.start()
    assert assistant.ready("a.png", 60)[0]
    yield assistant
    assistant.stop()


def rectangle(x0, y0, x1, y1):
    mask = np.zeros(HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask
