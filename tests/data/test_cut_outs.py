"""Pictures with transparent pixels: the object is the mask, and nothing shows beside it."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.cut_outs import CutOuts
from sam_jax.data.cut_paste import CutPaste
from sam_jax.data.mask_folders import MaskFolder
from sam_jax.data.open_source import open_source
from sam_jax.data.sources import RecordError
from sam_jax.ops import rle


def disc(colour=(200, 60, 20), hidden=(0, 255, 0)):
    """uint8 [60, 80, 4]: a disc of radius 20 in a colour, soft for 2 pixels, `hidden` around it."""
    y, x = np.mgrid[:60, :80]
    away = np.hypot(y - 30, x - 45)
    alpha = np.clip((21 - away) / 2, 0, 1)
    mixed = alpha[..., None] * np.array(colour) + (1 - alpha[..., None]) * np.array(hidden)
    return np.dstack([mixed, 255 * alpha]).round().astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    Image.fromarray(disc()).save(tmp_path / "a.png")
    Image.fromarray(disc()).save(tmp_path / "deep" / "b.webp", lossless=True, exact=True)
    paletted = Image.fromarray(np.where(disc()[..., 3] > 127, 1, 0).astype(np.uint8), "P")
    paletted.putpalette([0, 255, 0, 200, 60, 20])
    paletted.save(tmp_path / "c.png", transparency=0)
    return tmp_path


def test_a_record_is_the_object_and_its_colours_go_on_around_it(folder):
    source = open_source(folder)
    assert isinstance(source, CutOuts) and len(source) == 3
    assert [source[k]["name"] for k in range(3)] == ["a.png", "c.png", "deep/b.webp"]
    for k in range(3):
        record = source[k]
        mask = rle.decode(record["rles"][0])
        assert mask.shape == record["image"].shape[:2] and len(record["rles"]) == 1
        ys, xs = np.nonzero(mask)
        assert (ys.min(), xs.min()) == (8, 8)
        assert (ys.max(), xs.max()) == (mask.shape[0] - 9, mask.shape[1] - 9)
        assert mask.sum() == pytest.approx(np.pi * 20**2, rel=0.03)
        difference = np.abs(record["image"].astype(int) - (200, 60, 20))
        assert difference.max() <= 3, "neither the soft edge nor what is hidden is seen"


def test_they_are_pasted_without_a_halo(folder):
    grey = np.full((120, 160, 3), 128, np.uint8)
    ground = [{"image": grey, "rles": [], "name": "grey"}]
    found = 0
    for index in range(6):
        made = CutPaste(ground, 160, index, donors=[(open_source(folder), 1.0)])[0]
        pasted = np.any([rle.decode(one) for one in made["rles"]], 0) if made["rles"] else None
        if pasted is not None:
            found += 1
            greenish = made["image"][..., 1].astype(int) - made["image"][..., 0] > 40
            assert pasted.sum() > 100 and not greenish.any()
    assert found > 3


def test_what_is_no_cut_out_is_named(folder):
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(folder / "empty.png")
    Image.new("RGB", (9, 9)).save(folder / "full.png")
    (folder / "torn.png").write_bytes(b"no picture")
    source = CutOuts(folder)
    names = [str(path.name) for path in sorted(folder.rglob("*.*"))]
    for name, text in [
        ("empty.png", "empty.png has no opaque pixel"),
        ("full.png", "full.png has no transparent pixel"),
        ("torn.png", "torn.png is not readable"),
    ]:
        with pytest.raises(RecordError, match=text):
            source[names.index(name)]
    for bad, text in [(folder / "none", "expected a folder"), (folder / "bare", "has none")]:
        (folder / "bare").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=text):
            CutOuts(bad)


def test_pictures_with_masks_are_still_that(tmp_path):
    """A label map may have transparent pixels too."""
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    Image.fromarray(disc()).save(tmp_path / "a.png")
    assert isinstance(open_source(tmp_path), MaskFolder)
