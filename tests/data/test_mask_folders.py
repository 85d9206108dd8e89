"""Masks as picture files: layouts, kinds of files, what is broken."""

import pickle

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.mask_folders import MaskFolder
from sam_jax.data.sources import RecordError
from sam_jax.ops import rle

HW = (20, 30)
LABELS = np.zeros(HW, np.uint8)
LABELS[2:9, 3:12] = 1
LABELS[2:9, 12:20] = 2
LABELS[12:18, 5:9] = 7


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def picture(path, seed=0, hw=HW):
    save(path, np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8))


def masks_of(record):
    return [rle.decode(one) for one in record["rles"]]


def assert_is_labels(record):
    masks = masks_of(record)
    assert len(masks) == 3 and record["notes"] == []
    for mask, value in zip(masks, (1, 2, 7), strict=True):
        np.testing.assert_array_equal(mask, value == LABELS)


def palette_image():
    image = Image.frombytes("P", LABELS.shape[::-1], LABELS.tobytes())
    image.putpalette(np.random.default_rng(3).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


COLOURS = np.zeros((8, 4), np.uint8)
COLOURS[[1, 2, 7]] = [[0, 0, 200, 255], [0, 3, 0, 255], [255, 255, 255, 255]]
KINDS = {
    "8 bit": LABELS,
    "16 bit": LABELS.astype(np.uint16) * 300,
    "palette": palette_image(),
    "RGB": COLOURS[LABELS][..., :3],
    "RGBA": COLOURS[LABELS],
}


@pytest.mark.parametrize("kind", KINDS)
def test_label_maps_of_every_kind(tmp_path, kind):
    picture(tmp_path / "images" / "sub" / "a.jpg")
    save(tmp_path / "masks" / "sub" / "a.png", KINDS[kind])
    source = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert len(source) == 1 and source[0]["name"] == "sub/a.jpg"
    assert source[0]["image"].shape == (*HW, 3)
    assert_is_labels(source[0])


def test_one_mask_a_file(tmp_path):
    for name in ("a", "a_b", "c"):
        picture(tmp_path / "images" / f"{name}.jpg")
    for value in (1, 2, 7):
        mask = LABELS == value
        save(tmp_path / "masks" / "a" / f"{value}.png", mask)  # 1 bit
        save(tmp_path / "masks" / f"a_b_{value}.png", mask * np.uint8(255))
        save(tmp_path / "masks" / f"c_{value}.tif", np.repeat(mask[..., None] * np.uint8(9), 3, 2))
    source = pickle.loads(pickle.dumps(MaskFolder(tmp_path / "images", tmp_path / "masks")))
    assert [source[i]["name"] for i in range(3)] == ["a.jpg", "a_b.jpg", "c.jpg"]
    for i in range(3):
        assert_is_labels(source[i])
    assert source.left_out == {} and source.damage == {}


def test_one_folder_for_both(tmp_path):
    picture(tmp_path / "a.jpg")
    save(tmp_path / "a.png", LABELS)
    picture(tmp_path / "b.png")
    for value in (1, 2, 7):
        save(tmp_path / f"b_{value}.png", LABELS == value)
    picture(tmp_path / "c.png")
    save(tmp_path / "c_label.png", LABELS)  # the only one: a label map
    source = MaskFolder(tmp_path)
    assert [source[i]["name"] for i in range(3)] == ["a.jpg", "b.png", "c.png"]
    for i in range(3):
        assert_is_labels(source[i])


def test_numbered_photos_with_maps_of_their_own(tmp_path):
    for name in ("beach", "beach_2", "beach_3"):
        picture(tmp_path / f"{name}.jpg")
        save(tmp_path / f"{name}.png", LABELS)
    source = MaskFolder(tmp_path)
    names = [source[i]["name"] for i in range(len(source))]
    assert names == ["beach.jpg", "beach_2.jpg", "beach_3.jpg"] and not source.damage
    for i in range(3):
        assert_is_labels(source[i])


def test_objects_of_grey_values_are_no_blur(tmp_path):
    labels = np.zeros((60, 90), np.uint8)
    for k, value in enumerate((51, 102, 153, 204)):
        labels[2:10, 2 + 12 * k : 10 + 12 * k] = value
    labels[20:55, 5:85] = 255
    picture(tmp_path / "images" / "a.jpg", hw=labels.shape)
    save(tmp_path / "masks" / "a.png", labels)
    record = MaskFolder(tmp_path / "images", tmp_path / "masks")[0]
    expected = [labels == value for value in (51, 102, 153, 204, 255)]
    np.testing.assert_array_equal(masks_of(record), expected)
    assert not record["notes"]


def test_borders_of_pascal_voc_and_single_masks(tmp_path):
    picture(tmp_path / "images" / "voc.jpg")
    picture(tmp_path / "images" / "one.jpg")
    labels = LABELS.copy()
    labels[0] = 255
    image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    image.putpalette(bytes(768))
    save(tmp_path / "masks" / "voc.png", image)
    save(tmp_path / "masks" / "one.png", (LABELS == 2) * np.uint8(255))
    source = MaskFolder(tmp_path / "images", tmp_path / "masks")
    np.testing.assert_array_equal(masks_of(source[0]), [LABELS == 2])
    assert_is_labels(source[1])


def test_what_belongs_to_nothing_is_counted(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / "a.webp")
    picture(tmp_path / "images" / "alone.jpg")
    save(tmp_path / "masks" / "a.png", LABELS)
    save(tmp_path / "masks" / "a_1.png", LABELS == 1)
    save(tmp_path / "masks" / "nobody.png", LABELS)
    source = MaskFolder(tmp_path / "images", tmp_path / "masks")
    assert len(source) == 1
    assert source.left_out == {"alone.jpg": "no masks"}
    assert source.damage == {
        "a.webp": "another picture's name",
        "a_1.png": "left out: the picture has the label map a.png",
        "nobody.png": "a mask of no picture",
    }


def test_blurred_masks_are_read_and_noted(tmp_path):
    big = np.zeros((200, 300), np.uint8)
    big[20:180, 30:270] = 255
    soft = Image.fromarray(big).resize((31, 21), Image.Resampling.BILINEAR)
    picture(tmp_path / "images" / "a.jpg", hw=(21, 31))
    picture(tmp_path / "images" / "b.jpg", hw=(21, 31))
    save(tmp_path / "masks" / "a.png", soft)
    for k in range(2):
        save(tmp_path / "masks" / f"b_{k}.png", soft.convert("RGB"))
    source = MaskFolder(tmp_path / "images", tmp_path / "masks")
    expected = np.asarray(soft) >= 128
    for i in range(2):
        assert len(source[i]["rles"]) == i + 1 == len(source[i]["notes"])
        np.testing.assert_array_equal(masks_of(source[i])[0], expected)
        assert "anti-aliased or saved with loss" in source[i]["notes"][0]


def test_label_maps_damaged_by_resizing_or_jpeg(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 6, (8, 8)), np.ones((20, 20), int))
    small = Image.fromarray((labels * 40).astype(np.uint8))
    colours = Image.fromarray(rng.integers(0, 256, (6, 3), dtype=np.uint8)[labels])
    for name in "abc":
        picture(tmp_path / "images" / f"{name}.jpg", hw=(160, 160))
    save(tmp_path / "masks" / "a.png", small.rotate(10, Image.Resampling.BICUBIC))
    save(tmp_path / "masks" / "b.jpg", small, quality=60)
    save(tmp_path / "masks" / "c.jpg", colours, quality=60)
    source = MaskFolder(tmp_path / "images", tmp_path / "masks")
    for i in range(2):
        notes = source[i]["notes"]
        assert len(notes) == 1 and "anti-aliased or saved with loss?" in notes[0]
    with pytest.raises(RecordError, match=r"c.jpg: c.jpg holds \d+ different values") as caught:
        source[2]
    assert caught.value.kind == "mask"


def test_many_small_objects_are_no_damage(tmp_path):
    labels = np.kron(np.arange(100).reshape(10, 10), np.ones((6, 6), int)).astype(np.uint8)
    labels[labels % 2 == 0] = 0
    picture(tmp_path / "images" / "a.jpg", hw=labels.shape)
    save(tmp_path / "masks" / "a.png", labels)
    record = MaskFolder(tmp_path / "images", tmp_path / "masks")[0]
    assert len(record["rles"]) == 50 and record["notes"] == []


def test_broken_masks_are_named(tmp_path):
    for name in "abcd":
        picture(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks" / "a.png", LABELS)
    data = (tmp_path / "masks" / "a.png").read_bytes()
    (tmp_path / "masks" / "a.png").write_bytes(data[:-30])
    save(tmp_path / "masks" / "b.png", LABELS[:10])
    for k in (1, 2):
        save(tmp_path / "masks" / "c" / f"{k}.png", LABELS)
    save(tmp_path / "masks" / "d.tif", LABELS / np.float32(3))
    source = MaskFolder(tmp_path / "images", tmp_path / "masks")
    for index, kind, text in [
        (0, "mask", "a.jpg: mask a.png cannot be read"),
        (1, "size", r"b.jpg: mask 0 has size \[10, 30\] but b.jpg is \[20, 30\]"),
        (2, "mask", "c.jpg: 1.png holds 3 values besides 0; .*each holds one mask"),
        (3, "mask", "floating-point"),
    ]:
        with pytest.raises(RecordError, match=text) as caught:
            source[index]
        assert caught.value.kind == kind


def test_an_empty_map_has_no_masks(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a.png", LABELS * 0)
    assert MaskFolder(tmp_path / "images", tmp_path / "masks")[0]["rles"] == []


def test_other_layouts_are_refused_with_those_that_are_read(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "b.png", LABELS)
    with pytest.raises(ValueError, match="1 pictures and 1 masks .* none .*\n.*a label map"):
        MaskFolder(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(ValueError, match="masks: expected a folder"):
        MaskFolder(tmp_path / "images", tmp_path / "absent")
