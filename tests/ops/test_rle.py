"""COCO run-length encoding against pycocotools and by hand."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_jax.ops import rle


def some_masks():
    rng = np.random.default_rng(0)
    masks = [rng.random((h, w)) < p for h, w, p in [(7, 5, 0.5), (64, 48, 0.02), (33, 90, 0.97)]]
    wide = np.zeros((700, 900), bool)
    wide[13:600, 20:850] = True  # long runs: counts of several groups
    masks += [wide, ~wide, np.zeros((4, 6), bool), np.ones((4, 6), bool), np.ones((1, 1), bool)]
    masks += [np.arange(12)[None] % 3 == 0, np.arange(12)[:, None] % 4 == 1]
    return masks


def test_counts_by_hand():
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)  # by columns: 0 0 | 1 0 | 1 1
    assert rle.uncompressed(mask) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert rle.uncompressed(~mask) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    assert rle.encode(mask) == {"size": [2, 3], "counts": "2111"}


@pytest.mark.parametrize("number", range(10))
def test_agrees_with_pycocotools(number):
    mask = some_masks()[number]
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = rle.encode(mask)
    assert ours["counts"] == theirs["counts"].decode()
    assert json.loads(json.dumps(ours)) == ours
    for form in (ours, theirs, rle.uncompressed(mask)):
        decoded = rle.decode(form)
        assert decoded.dtype == bool and decoded.shape == mask.shape
        np.testing.assert_array_equal(decoded, mask)
        assert rle.area(form) == mask.sum()
    assert rle.bbox_xywh(ours) == (coco_mask.toBbox(theirs).tolist() if mask.any() else [0] * 4)


def test_groups_of_labels():
    labels = np.random.default_rng(1).integers(0, 6, (40, 31)).astype(np.uint16)
    groups = [[1], [0, 2, 5], [3, 9], [], [0, 1, 2, 3, 4, 5]]
    for group, got in zip(groups, rle.encode_groups(labels, groups), strict=True):
        assert got == rle.encode(np.isin(labels, group))


def test_other_dtypes_count_as_set_where_not_zero():
    grey = np.array([[0, 7], [255, 0]], np.uint8)
    assert rle.encode(grey) == rle.encode(grey > 0)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"size": [2, 3], "counts": [2, 1, 1]}, "sum to height"),
        ({"size": [2, 3], "counts": "211"}, "sum to height"),
        ({"size": [3, 3], "counts": "2111"}, "sum to height"),
        ({"size": [2, 3], "counts": [-1, 7]}, "negative"),
        ({"size": [2, 3], "counts": "21!1"}, "position 2"),
        ({"size": [2, 3], "counts": "2P"}, "cut short"),
        ({"size": [2, 3], "counts": "ooooooooooooooo0"}, "60 bits"),
        ({"size": [2], "counts": "2111"}, "height, width"),
        ({"size": [0, 3], "counts": []}, "positive"),
        ({"size": [2, 3], "counts": [1.5, 4.5]}, "list of integers"),
        ([[0, 0, 4, 0, 4, 4]], "polygons"),
    ],
)
def test_bad_rles_are_refused(bad, sentence):
    for function in (rle.decode, rle.area, rle.bbox_xywh):
        with pytest.raises(ValueError, match=sentence):
            function(bad)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (0, 4)])
def test_bad_masks_are_refused(shape):
    with pytest.raises(ValueError, match="mask must be bool"):
        rle.encode(np.zeros(shape, bool))
    with pytest.raises(ValueError, match="labels must be integers"):
        rle.encode_groups(np.zeros(shape, np.uint8), [[1]])


@pytest.mark.parametrize("seed", range(60))
def test_parts_of_masks(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 9, 2)
    h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    mask = np.zeros((height, width), bool)
    part = rng.random((h, w)) < rng.choice([0, 0.3, 0.9, 1])
    mask[y : y + h, x : x + w] = part
    whole = rle.uncompressed(mask)
    assert rle.uncompressed_part(part, (y, x), (height, width)) == whole
    np.testing.assert_array_equal(rle.decode_part(whole, (y, x), (h, w)), part)
    np.testing.assert_array_equal(rle.decode_part(rle.encode(mask), (y, x), (h, w)), part)
