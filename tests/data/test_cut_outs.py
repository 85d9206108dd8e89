"""Pictures with transparent pixels: the object is the mask, and nothing shows beside it."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from sam_jax.data.cut_outs import CutOuts
from sam_jax.data.cut_paste import CutPaste
from sam_jax.data.mask_folders import MaskFolder
from sam_jax.data.open_source import open_source
from sam_jax.data.sources import RecordError
from sam_jax.ops import rle


def disc(colour=(200, 60, 20), hidden=(0, 255, 0), radius=20):
    """uint8 [3 r, 4 r, 4]: a disc in a colour, soft for 2 pixels, `hidden` around it."""
    y, x = np.mgrid[: 3 * radius, : 4 * radius]
    away = np.hypot(y - 1.5 * radius, x - 2.25 * radius)
    alpha = np.clip((radius + 1 - away) / 2, 0, 1)
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
        margins = ys.min(), xs.min(), *(np.array(mask.shape) - 1 - (ys.max(), xs.max()))
        assert len(set(margins)) == 1 and margins[0] == pytest.approx(0.2 * 40, abs=3)
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


@pytest.mark.parametrize("shape", ["disc", "square", "bar"])
@pytest.mark.parametrize("size", [30, 300, 1500])
def test_objects_of_any_size_and_shape_are_pasted(tmp_path, shape, size):
    if shape == "disc":
        pixels = disc(radius=size // 2)
    else:
        pixels = np.zeros((size + 9, size + 9, 4), np.uint8)
        pixels[4 : 4 + (size if shape == "square" else size // 8), 4 : 4 + size] = 200, 60, 20, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = open_source(tmp_path)
    assert max(source[0]["image"].shape[:2]) <= 1500
    ground = [{"image": np.full((120, 160, 3), 128, np.uint8), "rles": [], "name": "grey"}]
    made = CutPaste(ground, 160, 0, length=10, donors=[(source, 1.0)])
    assert sum(bool(made[k]["rles"]) for k in range(10)) >= 8


def test_what_shines_through_keeps_its_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 4), np.uint8)
    pixels[..., 3] = 0
    pixels[10:50, 10:50, 3] = 200
    pixels[30, 30, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "glass.png")
    image = CutOuts(tmp_path)[0]["image"]
    margin = (len(image) - 40) // 2
    inside = image[margin + 3 : margin + 37, margin + 3 : margin + 37]
    np.testing.assert_array_equal(inside, pixels[13:47, 13:47, :3])


def test_a_turned_picture_is_turned(tmp_path):
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[5:15, 5:55] = 200, 60, 20, 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    ys, xs = np.nonzero(rle.decode(CutOuts(tmp_path)[0]["rles"][0]))
    assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == (50, 10)


def test_a_donor_that_cannot_be_read_is_named_once_and_another_drawn(folder, caplog):
    Image.new("RGB", (9, 9)).save(folder / "b.png")
    ground = [{"image": np.full((120, 160, 3), 128, np.uint8), "rles": [], "name": "grey"}]
    made = CutPaste(ground, 160, 0, length=40, donors=[(CutOuts(folder), 1.0)])
    assert all(made[k]["rles"] for k in range(40))
    assert [record.getMessage().count("b.png") for record in caplog.records] == [1]
    for file in folder.rglob("*.*"):
        Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(RecordError, match="10 donors in a row cannot be used; the last: .* has no"):
        CutPaste(ground, 160, donors=[(CutOuts(folder), 1.0)])[0]
    with pytest.raises(ValueError, match="donors: expected weights of 0 or more, and one above"):
        CutPaste(ground, 160, donors=[(ground, -1.0)])


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
    """Masks may have transparent pixels too."""
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    Image.fromarray(disc()).save(tmp_path / "a.png")
    assert isinstance(open_source(tmp_path), MaskFolder)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a").mkdir()
    for k in range(30):
        Image.fromarray(disc()).save(tmp_path / "a" / f"{k}.png")
    assert isinstance(open_source(tmp_path), MaskFolder)


def test_a_picture_that_cannot_be_read_does_not_decide_what_a_folder_is(folder):
    (folder / "0.png").write_bytes(b"no picture")
    assert isinstance(open_source(folder), CutOuts)
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="expected pictures with masks"):
        open_source(folder)


def test_pictures_without_an_alpha_channel_may_have_transparent_pixels(tmp_path):
    pixels = np.full((40, 60, 3), 0, np.uint8)
    pixels[5:15, 5:55] = 200, 60, 20
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(0, 0, 0))
    assert rle.area(open_source(tmp_path)[0]["rles"][0]) == 500
