"""COCO files: polygons and RLEs, crowds, what is broken."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.coco import CROWD, CocoJson, is_coco_json
from sam_jax.data.sources import RecordError
from sam_jax.ops import rle


def square(x0, y0, x1, y1):
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


def filled(x0, y0, x1, y1, hw=(20, 30)):
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def image(number, **changes):
    return {"id": number, "file_name": f"{number}.png", "height": 20, "width": 30} | changes


def annotation(number, image_id, segmentation, **more):
    return {"id": number, "image_id": image_id, "category_id": 1, "segmentation": segmentation} | (
        more
    )


def write(folder, images, annotations, name="instances_train.json", pictures=None):
    folder.mkdir(parents=True, exist_ok=True)
    places = folder if pictures is None else pictures
    places.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(images):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(places / entry["file_name"].split("/")[-1])
    document = {"info": {}, "images": images, "annotations": annotations, "categories": []}
    (folder / name).write_text(json.dumps(document))
    return folder / name


def test_every_form_of_mask(tmp_path):
    mask = filled(3, 2, 12, 9)
    two = [square(3, 2, 12, 9), square(20, 2, 25, 9), [1.0, 1.0, 2.0, 2.0]]
    path = write(
        tmp_path,
        [image(1), image(2), image(7)],
        [
            annotation(1, 7, [square(3, 2, 12, 9)], bbox=[3, 2, 9, 7], area=63.0),
            annotation(2, 7, rle.encode(mask)),
            annotation(3, 7, rle.uncompressed(mask), iscrowd=0),
            annotation(4, 1, two),
        ],
    )
    source = CocoJson(path)
    assert [source[i]["name"] for i in range(len(source))] == ["1.png", "7.png"]
    record = source[1]
    assert record["image"].shape == (20, 30, 3)
    for one in record["rles"]:
        np.testing.assert_array_equal(rle.decode(one), mask)
    assert record["stated"] == [
        {"bbox": [3, 2, 9, 7], "area": 63.0, "extent": [3, 2, 12, 9]},
        {},
        {},
    ]
    assert rle.area(source[0]["rles"][0]) == 63 + 35
    assert source.left_out == {"2.png": "no masks"} and source.damage == {}
    assert pickle.loads(pickle.dumps(source))[1]["rles"] == record["rles"]


def test_crowds_and_broken_annotations_are_left_out_and_counted(tmp_path):
    path = write(
        tmp_path,
        [image(1)],
        [
            annotation(1, 1, rle.uncompressed(filled(0, 0, 30, 9)), iscrowd=1),
            annotation(2, 1, []),
            annotation(3, 1, [[1.0, 2.0, 3.0, 4.0]]),
            annotation(4, 99, [square(1, 1, 5, 5)]),
            annotation(5, 1, [square(1, 1, 5, 5)]),
            "nonsense",
        ],
    )
    source = CocoJson(path)
    assert len(source[0]["rles"]) == 1
    assert source.left_out == {"1.png: annotation 1": CROWD}
    assert sorted(source.damage) == [
        "1.png: annotation 2",
        "1.png: annotation 3",
        "annotation 4",
        "annotation ?",
    ]


def test_records_that_cannot_be_read_are_named(tmp_path):
    path = write(
        tmp_path,
        [image(1), image(2), image(3, width=31), image(4, height=None)],
        [annotation(k, k, [square(1, 1, 5, 5)]) for k in (1, 2, 3, 4)]
        + [annotation(5, 1, {"size": [20, 30], "counts": "x"})],
    )
    (tmp_path / "2.png").unlink()
    source = CocoJson(path)
    assert len(source[0]["rles"]) == 2  # counts are looked at when they are drawn
    for index, kind, text in [
        (1, "image", "2.png: .*no such file"),
        (2, "size", "3.png: mask 0 has size"),
        (3, "mask", "4.png: mask 0: TypeError"),
    ]:
        with pytest.raises(RecordError, match=text) as caught:
            source[index]
        assert caught.value.kind == kind


def test_where_the_pictures_are(tmp_path):
    masks = [annotation(1, 1, [square(1, 1, 5, 5)])]
    coco = tmp_path / "coco"
    path = write(coco / "annotations", [image(1)], masks, pictures=coco / "train")
    assert CocoJson(path).images == coco / "train"
    path = write(tmp_path / "b", [image(1)], masks, "x.json", tmp_path / "b" / "images")
    assert len(CocoJson(path)) == 1
    path = write(tmp_path / "c", [image(1, file_name="C:\\somewhere\\1.png")], masks)
    (tmp_path / "c" / "C:\\somewhere\\1.png").rename(tmp_path / "c" / "1.png")
    assert CocoJson(path)[0]["name"] == "C:/somewhere/1.png"
    lvis = {"id": 1, "coco_url": "http://images/train/1.png", "height": 20, "width": 30}
    path.write_text(json.dumps({"images": [lvis], "annotations": masks}))
    assert CocoJson(path)[0]["name"] == "train/1.png"
    # LVIS's val set has pictures in two of COCO's folders.
    two = [
        {**lvis, "id": k, "coco_url": f"http://images/{s}2017/1.png"} for k, s in enumerate("ab")
    ]
    both = [annotation(k, k, [square(1, 1, 5, 5)]) for k in (0, 1)]
    path = write(
        tmp_path / "lvis" / "annotations", [image(1)], both, pictures=tmp_path / "lvis" / "a2017"
    )
    (tmp_path / "lvis" / "b2017").mkdir()
    shutil.copy(tmp_path / "lvis" / "a2017" / "1.png", tmp_path / "lvis" / "b2017" / "1.png")
    path.write_text(json.dumps({"images": two, "annotations": both}))
    assert [CocoJson(path)[i]["name"] for i in (0, 1)] == ["a2017/1.png", "b2017/1.png"]
    path = write(tmp_path / "d", [image(1)], masks, pictures=tmp_path / "far")
    with pytest.raises(ValueError, match="images: expected the folder .*instances_train.json:FOLD"):
        CocoJson(path)
    assert len(CocoJson(path, tmp_path / "far")) == 1
    with pytest.raises(ValueError, match="images: expected a folder"):
        CocoJson(path, tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected a COCO file"),
        ('{"images": []}', "expected a COCO file"),
        ('{"images": [{}], "annotations": []}', r"images\[0\] has no 'id'"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\] has no 'file_name'"),
    ],
)
def test_other_files_are_refused(tmp_path, text, sentence):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        CocoJson(tmp_path / "a.json")
    with pytest.raises(ValueError, match="no such file"):
        CocoJson(tmp_path / "b.json")


def test_a_file_without_masks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="with masks"):
        CocoJson(write(tmp_path, [image(1)], []))


def test_told_apart_from_sa_1b(tmp_path):
    assert is_coco_json(write(tmp_path, [image(1)], []))
    (tmp_path / "sa.json").write_text(json.dumps({"image": {"id": 1}, "annotations": []}))
    assert not is_coco_json(tmp_path / "sa.json")
    late = {"annotations": [annotation(1, 1, "x" * (3 << 20))], "images": []}
    (tmp_path / "late.json").write_text(json.dumps(late))
    assert is_coco_json(tmp_path / "late.json")
