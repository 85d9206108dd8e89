"""SA-1B folders, damaged and whole."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.sources import RecordError, Sa1bFolder, segmentation_to_rle
from sam_jax.ops import rle


def write_pair(folder, name, image, masks, suffix=".png", file_name=None, **options):
    folder.mkdir(exist_ok=True, parents=True)
    Image.fromarray(image).save(folder / (file_name or name + suffix), **options)
    height, width = image.shape[:2]
    stated = {"width": width, "height": height}
    if file_name:
        stated["file_name"] = file_name
    annotations = [{"id": k, "segmentation": rle.encode(m)} for k, m in enumerate(masks)]
    document = {"image": stated, "annotations": annotations}
    (folder / f"{name}.json").write_text(json.dumps(document))


def example(height=20, width=30, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    masks = np.zeros((2, height, width), bool)
    masks[0, 2:9, 3:20] = True
    masks[1, 10:18, 5:9] = True
    return image, masks


def test_reads_pairs_in_sorted_order_and_sub_folders(tmp_path):
    image, masks = example()
    write_pair(tmp_path / "sub", "a", image, masks)
    write_pair(tmp_path, "sa_2", image[::-1], masks, suffix=".jpeg", quality=100, subsampling=0)
    write_pair(tmp_path, "sa_1", image, masks[:1], file_name="other.png")
    source = Sa1bFolder(tmp_path)
    assert len(source) == 3
    records = [source[i] for i in range(3)]
    assert [r["name"] for r in records] == ["sa_1.json", "sa_2.json", "sub/a.json"]
    np.testing.assert_array_equal(records[0]["image"], image)
    assert records[0]["image"].dtype == np.uint8
    assert records[2]["rles"] == [rle.encode(m) for m in masks]
    assert np.abs(records[1]["image"].astype(int) - image[::-1]).mean() < 3


def test_masks_drawn_on_unturned_pixels(tmp_path):
    image, masks = example()
    exif = Image.Exif()
    exif[0x0112] = 6
    write_pair(tmp_path, "a", image, masks, exif=exif)
    np.testing.assert_array_equal(Sa1bFolder(tmp_path)[0]["image"], image)


def test_at_least_decodes_smaller_and_keeps_masks(tmp_path):
    image, masks = example(202, 303)
    write_pair(tmp_path, "a", image, masks, suffix=".jpg")
    record = Sa1bFolder(tmp_path, at_least=100)[0]
    assert record["image"].shape == (101, 152, 3)
    assert record["rles"][0]["size"] == [202, 303]
    assert Sa1bFolder(tmp_path)[0]["image"].shape == (202, 303, 3)


def damage(folder, kind):
    """Writes a record that is damaged in the given way and returns what the error must say."""
    image, masks = example()
    write_pair(folder, "bad", image, masks)
    path, picture = folder / "bad.json", folder / "bad.png"
    document = json.loads(path.read_text())
    if kind == "json":
        path.write_text(path.read_text()[:50])
        return "not readable as JSON"
    if kind == "no picture":
        picture.unlink()
        return "no picture beside it"
    if kind == "truncated":
        picture.write_bytes(picture.read_bytes()[:400])
        return "truncated"
    if kind == "size":
        document["annotations"][1]["segmentation"]["size"] = [20, 31]
    elif kind == "half size":
        Image.fromarray(image[::2, ::2]).save(picture)
    elif kind == "form":
        document = [1, 2]
    else:
        del document["annotations"][1]["segmentation"]
    path.write_text(json.dumps(document))
    return {
        "size": "mask 1 has size",
        "half size": "mask 0 has size",
        "form": "not in SA-1B form",
    }.get(kind, "annotation 1")


KINDS = ["json", "no picture", "truncated", "size", "half size", "form", "annotation"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_records_are_named(tmp_path, kind):
    sentence = damage(tmp_path, kind)
    source = Sa1bFolder(tmp_path)
    with pytest.raises(RecordError, match=f"^bad.json: .*{sentence}"):
        source[0]


def test_folders_without_records(tmp_path):
    with pytest.raises(ValueError, match="no .json file"):
        Sa1bFolder(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        Sa1bFolder(tmp_path / "absent")


def test_polygons_become_rles():
    square = [[2.0, 1.0, 8.0, 1.0, 8.0, 5.0, 2.0, 5.0]]
    got = rle.decode(segmentation_to_rle(square, (10, 12)))
    expected = np.zeros((10, 12), bool)
    expected[1:5, 2:8] = True
    np.testing.assert_array_equal(got, expected)
    two = square + [[0.0, 6.0, 3.0, 6.0, 3.0, 9.0, 0.0, 9.0]]
    assert rle.area(segmentation_to_rle(two, (10, 12))) == 24 + 9
    for bad in ([], [[1, 2, 3]], "x", None):
        with pytest.raises(ValueError, match="segmentation must be"):
            segmentation_to_rle(bad, (10, 12))
