"""How sure a mean is: 95% bootstrap intervals.

Masks of one image are alike, so images are drawn, with all their masks, and not masks. An interval
of so few images that chance cannot be seen (one) has no width, which `table` functions leave out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def resampled_means(
    values: np.ndarray, images: Sequence, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means over all masks of images drawn with replacement.

    Args:
      values: float [M] or [M, C], of masks.
      images: [M], the image of each mask: any labels.
      resamples: how often to draw.
      seed: of the drawing; equal seeds draw equal images where the images are the same.

    Returns:
      float [resamples] or [resamples, C].
    """
    values = np.asarray(values, np.float64)
    _, index = np.unique(np.asarray(images), return_inverse=True)
    count = int(index.max()) + 1
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, index, values)
    masks = np.bincount(index)
    rng, means = np.random.default_rng(seed), []
    step = max(1, (1 << 22) // count)  # few weights in memory at a time
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size)
        total = (weights @ masks).reshape(size, *[1] * (values.ndim - 1))
        means.append((weights @ sums) / total)
    return np.concatenate(means)


def bounds(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the central 95% of resampled means [R] or [R, C], along the first axis."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def half_width(means: np.ndarray) -> np.ndarray:
    """Half the length of that interval: what is written behind a plus-minus sign."""
    low, high = bounds(means)
    return (high - low) / 2
