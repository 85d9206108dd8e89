"""Small holes and islands of masks (`utils/amg.py` remove_small_regions), 8-connected."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_EIGHT = np.ones((3, 3), int)


def fill_small_holes(
    mask: np.ndarray, min_area: float, beyond: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> tuple[np.ndarray, bool]:
    """Sets the connected regions of unset pixels that are strictly smaller than `min_area`.

    Args:
      mask: bool [H, W].
      min_area: in pixels.
      beyond: unset pixels above, below, left and right of `mask` where that is a part of a picture;
        on a side that has any, the outermost line of `mask` is unset and counts as one with them.

    Returns:
      bool [H, W], and whether anything changed. A mask that did not change is returned as it is.
    """
    regions, sizes = _regions(~np.asarray(mask, bool))
    for pixels, label in zip(
        beyond, (regions[0, 0], regions[-1, 0], regions[0, 0], regions[0, -1]), strict=True
    ):
        if pixels:
            sizes[label - 1] += pixels
    small = sizes < min_area
    if not small.any():
        return mask, False
    return mask | np.concatenate([[False], small])[regions], True


def drop_small_islands(mask: np.ndarray, min_area: float) -> tuple[np.ndarray, bool]:
    """Clears the connected regions that are strictly smaller than `min_area`.

    The largest stays even if it is smaller (the paper would drop such a mask, the released code
    keeps it). Arguments and results as `fill_small_holes`; with a lone small island the second is
    True although the mask is the same, as in the released code.
    """
    regions, sizes = _regions(np.asarray(mask, bool))
    small = sizes < min_area
    if not small.any():
        return mask, False
    if small.all():
        small[np.argmax(sizes)] = False
    return np.concatenate([[False], ~small])[regions], True


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels int [H, W], 0 where unset, and the number of pixels of each label from 1 on."""
    if mask.ndim != 2:
        raise ValueError(f"mask: expected bool [H, W], got shape {mask.shape}; pass one at a time")
    labels, count = ndimage.label(mask, structure=_EIGHT)
    return labels, np.bincount(labels.reshape(-1), minlength=count + 1)[1:]
