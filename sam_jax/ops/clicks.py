"""Clicks for evaluation: the middle of a mask or of its largest error (paper section D.1)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def interior_distance(mask: np.ndarray) -> tuple[float, tuple[int, int]]:
    """How deep a mask's deepest pixel lies, and where.

    Args:
      mask: bool [H, W]; what lies beyond its edges counts as outside.

    Returns:
      The exact Euclidean distance to the nearest pixel outside, and that pixel (x, y); 0 and
      (0, 0) for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, (0, 0)
    top, left = rows[0], columns[0]
    part = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    distance = ndimage.distance_transform_edt(part)
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return float(distance[y, x]), (int(left + x - 1), int(top + y - 1))


def centre_click(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask [H, W] that is farthest from its boundary."""
    return interior_distance(mask)[1]


def corrective_click(predicted: np.ndarray, true: np.ndarray) -> tuple[tuple[int, int], int]:
    """The next click: the middle of the deepest error, and its label.

    The distances within what is missing and within what is too much are compared; the larger wins,
    a tie goes to the negative click (SAM 2's evaluation, after RITM). Where the prediction is
    perfect the mask's own middle is clicked.

    Args:
      predicted, true: bool [H, W].

    Returns:
      The pixel (x, y), and 1 for missing foreground or 0 for surplus.
    """
    missing, missing_at = interior_distance(true & ~predicted)
    surplus, surplus_at = interior_distance(predicted & ~true)
    if missing == surplus == 0:
        return centre_click(true), 1
    return (missing_at, 1) if missing > surplus else (surplus_at, 0)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
