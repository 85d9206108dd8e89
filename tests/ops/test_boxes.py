"""Boxes, crops and grids of automatic mask generation."""

from __future__ import annotations

import numpy as np
import pytest

from sam_jax.ops.boxes import (
    box_area,
    crop_boxes,
    near_crop_edge,
    nms,
    point_grid,
    point_grids,
    xyxy_to_xywh,
)


def test_nms_keeps_the_best_and_is_strict_at_the_threshold():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 9]]
    # IoU with the first: 0.5, 0, 0.9.
    np.testing.assert_array_equal(nms(boxes, [0.9, 0.8, 0.7, 0.95], 0.5), [3, 2])
    np.testing.assert_array_equal(nms(boxes, [0.95, 0.8, 0.7, 0.9], 0.5), [0, 1, 2])
    np.testing.assert_array_equal(nms(boxes, [0.95, 0.8, 0.7, 0.9], 0.49), [0, 2])


def test_nms_orders_ties_as_they_came_and_leaves_boxes_without_area():
    boxes = [[0, 0, 0, 0], [5, 5, 9, 9], [0, 0, 0, 0], [5, 5, 9, 9]]
    np.testing.assert_array_equal(nms(boxes, [1.0, 1.0, 1.0, 1.0], 0.7), [0, 1, 2])
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.7).shape == (0,)


def test_nms_against_the_plain_double_loop():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 60, (200, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 40, (200, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 20, 200) / 20  # many ties
    kept: list[int] = []
    for i in sorted(range(200), key=lambda i: (-scores[i], i)):
        for j in kept:
            last, first = np.minimum(boxes[i], boxes[j])[2:], np.maximum(boxes[i], boxes[j])[:2]
            wide, high = last - first
            shared = max(wide, 0) * max(high, 0)
            if shared / (box_area(boxes[i]) + box_area(boxes[j]) - shared) > 0.3:
                break
        else:
            kept.append(i)
    np.testing.assert_array_equal(nms(boxes, scores, 0.3), kept)
    assert 10 < len(kept) < 190


def test_areas_and_xywh_have_no_plus_one():
    assert box_area([2, 3, 5, 9]) == 18
    np.testing.assert_array_equal(xyxy_to_xywh([2, 3, 5, 9]), [2, 3, 3, 6])
    np.testing.assert_array_equal(xyxy_to_xywh([[0, 0, 0, 0]]), [[0, 0, 0, 0]])


def test_point_grid_is_the_cells_centres_row_by_row():
    np.testing.assert_allclose(
        point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    )
    assert [len(grid) for grid in point_grids(32, 2, 2)] == [1024, 256, 64]
    assert [len(grid) for grid in point_grids(10, 1, 3)] == [100, 9]


def test_crop_boxes_of_a_real_photo():
    boxes, layers = crop_boxes((1500, 2060), 2, 512 / 1500)
    assert len(boxes) == 1 + 4 + 16 and layers == [0] + [1] * 4 + [2] * 16
    assert boxes[0] == (0, 0, 2060, 1500)
    # A record of SA-1B quoted in PROTOCOLS section 8 has the crop box [622, 902, 567, 707] in
    # XYWH: one of the 16 of layer 2 in a photo of 1500 x 2060 or of 2060 x 1500.
    boxes, _ = crop_boxes((2060, 1500), 2, 512 / 1500)
    x0, y0, x1, y1 = next(box for box in boxes if box[:2] == (622, 902))
    assert (x1 - x0, y1 - y0) == (567, 707)


def test_crops_cover_the_photo_column_by_column():
    boxes, _ = crop_boxes((90, 170), 1, 0.5)
    assert boxes[1:] == [(0, 0, 108, 68), (0, 23, 108, 90), (63, 0, 170, 68), (63, 23, 170, 90)]
    assert crop_boxes((90, 170), 0, 0.5) == ([(0, 0, 170, 90)], [0])


@pytest.mark.parametrize(
    "box, expected",
    [
        ((100, 100, 179, 179), False),  # 21 pixels from the crop's right and lower edge
        ((100, 100, 180, 179), True),  # 20 pixels
        ((150, 150, 199, 199), True),
        ((0, 0, 150, 150), False),  # at the photo's own edges
    ],
)
def test_near_crop_edge(box, expected):
    assert near_crop_edge([box], (0, 0, 200, 200), (400, 400)).tolist() == [expected]


def test_no_edge_is_near_where_the_crop_is_the_photo():
    boxes = [[0, 0, 5, 5], [390, 390, 399, 399], [0, 0, 399, 399]]
    assert not near_crop_edge(boxes, (0, 0, 400, 400), (400, 400)).any()
