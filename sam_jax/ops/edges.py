"""From masks to edges: gradients along a mask's outer boundary, and ridges one pixel wide."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_EIGHT = np.ones((3, 3), bool)


def sobel_magnitude(values: np.ndarray) -> np.ndarray:
    """float32 [H, W]: the length of the Sobel gradient of float [H, W], edges repeated."""
    values = np.asarray(values, np.float32)
    return np.hypot(
        ndimage.sobel(values, 0, mode="nearest"), ndimage.sobel(values, 1, mode="nearest")
    )


def outer_boundary(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: the pixels outside a mask that touch it, corners included."""
    return ndimage.binary_dilation(mask, _EIGHT) & ~mask


def mask_edges(logits: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """How steeply a mask ends where it ends (paper, section D.2).

    Args:
      logits: float [H, W] at the photo's size.
      threshold: above which a pixel is in the mask.

    Returns:
      float32 [H, W]: the Sobel magnitude of the sigmoid of the logits on the mask's outer boundary,
      0 elsewhere.
    """
    border = outer_boundary(logits > threshold)
    with np.errstate(over="ignore"):
        likely = 1 / (1 + np.exp(-np.asarray(logits, np.float32)))
    return np.where(border, sobel_magnitude(likely), np.float32(0))


def edge_nms(
    edges: np.ndarray, sigma: float = 1.0, orientation_sigma: float = 2.0, slack: float = 1.01
) -> np.ndarray:
    """Keeps of an edge map what is highest across the edge.

    Canny's rule looks along the gradient, which on a line two pixels wide is 0 in the middle and
    noise elsewhere. Here the direction across is that in which the smoothed map bends most.

    Args:
      edges: float [H, W], not negative.
      sigma: of the Gaussian that joins what belongs to one line, in pixels.
      orientation_sigma: of the one whose second derivatives give the direction.
      slack: a neighbour across the line must be so many times higher to suppress.

    Returns:
      float32 [H, W] in 0..1, the smoothed map divided by its maximum; 0 where suppressed.
    """
    edges = np.asarray(edges, np.float32)
    smooth = ndimage.gaussian_filter(edges, sigma)
    if not smooth.max() > 0:
        return np.zeros_like(smooth)
    smooth /= smooth.max()
    yy, xx, xy = (
        ndimage.gaussian_filter(edges, orientation_sigma, order=order)
        for order in ((2, 0), (0, 2), (1, 1))
    )
    across = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2  # where the second derivative is least
    step_y, step_x = np.sin(across), np.cos(across)
    y, x = np.mgrid[: edges.shape[0], : edges.shape[1]]
    highest = np.ones(edges.shape, bool)
    for sign in (1, -1):
        beside = ndimage.map_coordinates(
            smooth, [y + sign * step_y, x + sign * step_x], order=1, mode="nearest"
        )
        highest &= smooth * slack >= beside
    return np.where(highest, smooth, np.float32(0))
