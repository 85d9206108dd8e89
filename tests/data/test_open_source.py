"""Every form of data is recognised by what lies there."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.coco import CocoJson
from sam_jax.data.mask_folders import MaskFolder
from sam_jax.data.open_source import open_source
from sam_jax.data.sources import Sa1bFolder
from sam_jax.data.tars import Sa1bTars
from sam_jax.data.tfds import is_tfds_folder
from sam_jax.ops import rle

HW = (20, 30)
MASK = np.zeros(HW, bool)
MASK[2:9, 3:12] = True


def picture(path, hw=HW):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)).save(path)


def sa1b(folder, count=2):
    for k in range(count):
        picture(folder / f"sa_{k}.png")
        document = {"image": {}, "annotations": [{"segmentation": rle.encode(MASK)}]}
        (folder / f"sa_{k}.json").write_text(json.dumps(document))


def tar(path, count=2):
    sa1b(path.parent / "loose", count)
    with tarfile.open(path, "w") as archive:
        for file in sorted((path.parent / "loose").iterdir()):
            archive.addfile(_member(file), io.BytesIO(file.read_bytes()))


def _member(file):
    member = tarfile.TarInfo(file.name)
    member.size = file.stat().st_size
    return member


def coco(path, pictures):
    picture(pictures / "1.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 1, "file_name": "1.png", "height": 20, "width": 30}]
    annotations = [{"id": 1, "image_id": 1, "segmentation": rle.encode(MASK)}]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def mask_folder(images, masks):
    picture(images / "a.jpg")
    masks.mkdir(parents=True, exist_ok=True)
    Image.fromarray(MASK).save(masks / "a.png")


def check(path, kind, length):
    source = open_source(path)
    assert type(source) is kind and len(source) == length
    np.testing.assert_array_equal(rle.decode(source[0]["rles"][0]), MASK)
    return source


def test_sa_1b_folders(tmp_path):
    sa1b(tmp_path / "sub" / "deep", 3)
    check(tmp_path, Sa1bFolder, 3)
    picture(tmp_path / "images" / "x.jpg")  # sub-folders of another form change nothing
    check(str(tmp_path), Sa1bFolder, 3)


def test_tars(tmp_path):
    (tmp_path / "loose").mkdir()
    for k in range(3):
        tar(tmp_path / f"sa_{k}.tar", k + 1)
    check(tmp_path / "sa_1.tar", Sa1bTars, 2)
    check(tmp_path / "sa_[12].tar", Sa1bTars, 5)
    check(tmp_path, Sa1bTars, 6)
    (tmp_path / "sa_3.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(ValueError, match="compressed with gzip"):
        open_source(tmp_path)


def test_coco(tmp_path):
    path = tmp_path / "annotations" / "instances_val.json"
    coco(path, tmp_path / "val")
    check(path, CocoJson, 1)
    check(tmp_path, CocoJson, 1)
    check(tmp_path / "annotations", CocoJson, 1)
    coco(tmp_path / "b" / "x.json", tmp_path / "far" / "off")
    check(f"{tmp_path}/b/x.json:../far/off", CocoJson, 1)
    coco(tmp_path / "annotations" / "instances_train.json", tmp_path / "train")
    with pytest.raises(ValueError, match="several COCO files; name one: .*train.json, .*val.json"):
        open_source(tmp_path)


def test_mask_folders(tmp_path):
    mask_folder(tmp_path / "a" / "images", tmp_path / "a" / "masks")
    (tmp_path / "a" / "classes.json").write_text("{}")
    check(tmp_path / "a", MaskFolder, 1)
    mask_folder(tmp_path / "voc" / "JPEGImages", tmp_path / "voc" / "SegmentationObject")
    check(tmp_path / "voc", MaskFolder, 1)
    mask_folder(tmp_path / "flat", tmp_path / "flat")
    check(tmp_path / "flat", MaskFolder, 1)


def test_tfds_is_recognised(tmp_path):
    (tmp_path / "segment_anything" / "1.0.0").mkdir(parents=True)
    info = tmp_path / "segment_anything" / "1.0.0" / "dataset_info.json"
    info.write_text('{"name": "segment_anything", "fileFormat": "tfrecord"}')
    assert is_tfds_folder(tmp_path)
    with pytest.raises(ValueError, match="no random access"):
        open_source(tmp_path)


def test_smaller_decoding_reaches_every_source(tmp_path):
    big = tmp_path / "images" / "a.jpg"
    picture(big, (200, 300))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.kron(MASK, np.ones((10, 10), bool))).save(tmp_path / "masks" / "a.png")
    record = open_source(tmp_path, at_least=100)[0]
    assert record["image"].shape == (100, 150, 3) and record["rles"][0]["size"] == [200, 300]


def test_what_is_none_of_them(tmp_path):
    for path, sentence in [
        (tmp_path / "absent", "does not exist:\n.*SA-1B form"),
        (tmp_path, "holds none of the forms that are read:\n"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            open_source(path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="a.txt is none of the forms"):
        open_source(tmp_path / "a.txt")
    picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="1 pictures and 0 masks"):
        open_source(tmp_path)
