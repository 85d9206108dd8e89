"""Boxes, crops and grids of automatic mask generation."""

from __future__ import annotations

import numpy as np
import pytest

from sam_jax.ops.boxes import (
    box_area,
    crop_boxes,
    near_crop_edge,
    point_grid,
    point_grids,
    xyxy_to_xywh,
)


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
