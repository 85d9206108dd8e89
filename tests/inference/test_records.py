"""What is made of automatic masks."""

from __future__ import annotations

import numpy as np
import pytest

import sam_jax
from sam_jax.inference.records import mask_of
from sam_jax.ops import rle


def record(rows: slice, columns: slice, score: float, form: str = "coco") -> dict:
    mask = np.zeros((20, 30), bool)
    mask[rows, columns] = True
    segmentation = {"coco": rle.encode, "plain": rle.uncompressed, "mask": lambda x: x}[form](mask)
    return {"segmentation": segmentation, "area": int(mask.sum()), "predicted_iou": score}


@pytest.mark.parametrize("form", ["coco", "plain", "mask"])
def test_overlaps(form):
    whole = record(np.s_[:10], np.s_[:10], 0.8, form)
    nearly = record(np.s_[:10], np.s_[:9], 0.9, form)  # IoU 0.9 with the whole
    part = record(np.s_[:5], np.s_[:8], 0.7, form)  # lies in both, IoU 0.4 and 0.44
    other = record(np.s_[15:], np.s_[20:], 0.1, form)
    everything = [whole, nearly, part, other]

    def kept(**arguments):
        return [r["predicted_iou"] for r in sam_jax.remove_overlaps(everything, **arguments)]

    assert kept() == [0.9, 0.7, 0.1]
    assert kept(max_iou=0.95) == [0.9, 0.8, 0.7, 0.1]
    assert kept(max_iou=0.42) == [0.9, 0.1]
    assert kept(max_contained=0.9) == [0.9, 0.1]
    assert kept(max_iou=0.3, by="area") == [0.8, 0.1]
    assert sam_jax.remove_overlaps([]) == []
    with pytest.raises(ValueError, match="several sizes"):
        odd = {"segmentation": np.ones((3, 3), bool), "predicted_iou": 1.0}
        sam_jax.remove_overlaps([whole, odd])


def test_label_maps():
    large = record(np.s_[:10], np.s_[:10], 0.8)
    small = record(np.s_[5:12], np.s_[5:12], 0.7)
    maps = {p: sam_jax.to_label_map([large, small], p) for p in ("small", "large", "confident")}
    assert all(labels.dtype == np.uint8 and labels[0, 0] == 1 for labels in maps.values())
    assert {p: int(labels[6, 6]) for p, labels in maps.items()} == {
        "small": 2,
        "large": 1,
        "confident": 1,
    }
    assert (maps["small"] == 2).sum() == 49 and (maps["large"] == 2).sum() == 49 - 25
    many = sam_jax.to_label_map([small] * 300)
    assert many.dtype == np.uint16 and set(np.unique(many)) == {0, 300}
    assert not sam_jax.to_label_map([], image_hw=(3, 4)).any()
    for arguments, message in [
        (([],), "image_hw"),
        (([large], "biggest"), "policy"),
        (([large], "small", (5, 5)), "expected masks of"),
    ]:
        with pytest.raises(ValueError, match=message):
            sam_jax.to_label_map(*arguments)


def test_polygons():
    one = record(np.s_[2:6], np.s_[3:9], 0.5)
    ((ring,),) = sam_jax.to_polygons(one)
    np.testing.assert_array_equal(ring, [[9, 2], [9, 6], [3, 6], [3, 2]])
    assert mask_of(one)[2:6, 3:9].all()
    assert sam_jax.to_polygons(record(np.s_[:0], np.s_[:0], 0.5)) == []
    with pytest.raises(ValueError, match="segmentation"):
        mask_of({"segmentation": np.ones(3)})
