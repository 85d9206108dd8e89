"""Clicks of the evaluation, by hand on small masks."""

import numpy as np
import pytest

from sam_jax.ops.clicks import centre_click, corrective_click, interior_distance, iou


def box(x0, y0, x1, y1, hw=(20, 30)):
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_centre_is_the_deepest_pixel():
    assert centre_click(box(4, 5, 11, 12)) == (7, 8)
    thin_and_thick = box(0, 2, 30, 4) | box(20, 10, 29, 19)
    assert centre_click(thin_and_thick) == (24, 14)


def test_the_pictures_edge_is_a_boundary():
    assert interior_distance(np.ones((9, 5), bool)) == (3.0, (2, 2))
    assert interior_distance(np.zeros((9, 5), bool)) == (0.0, (0, 0))


def test_the_deepest_error_is_clicked():
    true = box(2, 2, 12, 12)
    assert corrective_click(box(2, 2, 5, 12), true) == ((8, 5), 1)
    x, y = corrective_click(true | box(15, 0, 30, 20), true)[0]
    assert 15 <= x < 30 and corrective_click(true | box(15, 0, 30, 20), true)[1] == 0


def test_a_tie_is_negative_and_a_perfect_mask_is_clicked_inside():
    assert corrective_click(box(10, 0, 14, 4), box(0, 0, 4, 4))[1] == 0
    assert corrective_click(box(0, 0, 5, 5), box(0, 0, 5, 5)) == ((2, 2), 1)


def test_iou():
    assert iou(box(0, 0, 4, 4), box(2, 0, 6, 4)) == pytest.approx(1 / 3)
    assert iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0
