"""Small holes and islands."""

from __future__ import annotations

import numpy as np
import pytest

from sam_jax.ops.regions import drop_small_islands, fill_small_holes


def picture(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


def test_holes_strictly_smaller_than_the_area_are_filled():
    mask = picture("""
        #######
        #.#..##
        #####.#
        #######
    """)
    filled, changed = fill_small_holes(mask, 3)  # 8-connected: the holes have 1 and 3 pixels
    assert changed and filled.sum() == mask.sum() + 1 and filled[1, 1]
    filled, _ = fill_small_holes(mask, 4)
    assert filled.all()
    same, changed = fill_small_holes(mask, 1)
    assert not changed and same is mask


def test_background_at_the_edge_counts_as_a_hole():
    filled, changed = fill_small_holes(picture("..## #### ####"), 3)
    assert changed and filled.all()


def test_islands_touching_at_a_corner_are_one():
    mask = picture("""
        #......
        .#...##
        ....#..
        #......
    """)
    dropped, changed = drop_small_islands(mask, 3)
    expected = picture("....... .....## ....#.. .......")
    assert changed
    np.testing.assert_array_equal(dropped, expected)


def test_the_largest_island_stays():
    mask = picture("##..# .....")
    dropped, changed = drop_small_islands(mask, 100)
    assert changed
    np.testing.assert_array_equal(dropped, picture("##... ....."))
    alone, changed = drop_small_islands(dropped, 100)
    assert changed  # as the released code reports it
    np.testing.assert_array_equal(alone, dropped)
    empty = np.zeros((3, 3), bool)
    assert drop_small_islands(empty, 100) == (empty, False)
    assert fill_small_holes(~empty, 100)[1] is False


@pytest.mark.torch
def test_against_the_released_code():
    pytest.importorskip("cv2", reason="the released code finds regions with OpenCV")
    from tests.reference import stand_in_torchvision

    stand_in_torchvision()
    from segment_anything.utils.amg import remove_small_regions

    rng = np.random.default_rng(0)
    for density in (0.3, 0.5, 0.7):
        mask = rng.random((60, 80)) < density
        for area in (1, 3, 10, 100):
            for ours, mode in ((fill_small_holes, "holes"), (drop_small_islands, "islands")):
                (a, a_changed), (b, b_changed) = (
                    ours(mask, area),
                    remove_small_regions(mask, area, mode),
                )
                np.testing.assert_array_equal(a, b)
                assert a_changed == b_changed


def test_one_mask_at_a_time():
    with pytest.raises(ValueError, match="one at a time"):
        fill_small_holes(np.zeros((2, 3, 3), bool), 5)
