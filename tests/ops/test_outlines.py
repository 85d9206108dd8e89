"""Outlines of masks: filled again they are the mask."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sam_jax.ops.outlines import outlines, simplify


def filled(rings: list[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """Pixels inside of rings along pixel edges, by the even-odd rule."""
    mask = np.zeros(hw, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
            if x0 == x1:
                mask[int(min(y0, y1)) : int(max(y0, y1)), int(x0) :] ^= True
    return mask


def area(ring: np.ndarray) -> float:
    """Signed, positive where the ring runs clockwise on the screen."""
    x, y = ring.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


@pytest.mark.parametrize("seed", range(60))
def test_each_part_has_its_outline_and_its_holes(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 14, 2)) < rng.choice([0, 0.2, 0.5, 0.8, 1])
    labels, count = ndimage.label(mask)
    found = outlines(mask)
    assert len(found) == count
    for i, rings in enumerate(found):
        np.testing.assert_array_equal(filled(rings, mask.shape), labels == i + 1)
        assert area(rings[0]) > 0 and all(area(hole) < 0 for hole in rings[1:])
        assert sum(map(area, rings)) == (labels == i + 1).sum()


def test_by_hand():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:5] = True
    mask[2, 2] = False
    ((outline, hole),) = outlines(mask)
    np.testing.assert_array_equal(outline, [[5, 1], [5, 4], [1, 4], [1, 1]])
    assert {tuple(p) for p in hole} == {(2, 2), (3, 2), (3, 3), (2, 3)}


def test_simplified_rings_stay_near():
    y, x = np.mgrid[:80, :80]
    ((ring,),) = outlines(np.hypot(x - 40, y - 40) < 30)
    few = simplify(ring, 1.0)
    assert 6 < len(few) < len(ring) / 3
    assert abs(area(few) / area(ring) - 1) < 0.05
    assert simplify(ring, 0.0) is ring
    np.testing.assert_array_equal(simplify(ring[:3], 9.0), ring[:3])
