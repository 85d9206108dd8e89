"""How sure a mean is: 95% bootstrap intervals.

Masks of one image are alike, so images are drawn, with all their masks, and not masks. An interval
of so few images that chance cannot be seen (one) has no width, which `table` functions leave out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

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
    means = []
    for weights in image_weights(count, resamples, seed):
        total = (weights @ masks).reshape(-1, *[1] * (values.ndim - 1))
        means.append((weights @ sums) / total)
    return np.concatenate(means)


def image_weights(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of `count` images is drawn: int [R, count], few of the draws at a time."""
    rng, step = np.random.default_rng(seed), max(1, (1 << 22) // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size)


def keyed(*key: object) -> np.random.Generator:
    """Chance that depends on a key alone, whatever was drawn before."""
    text = "/".join(map(str, key)).encode(errors="surrogateescape")
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()))


def bounds(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the central 95% of resampled means [R] or [R, C], along the first axis."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def half_width(means: np.ndarray) -> np.ndarray:
    """Half the length of that interval: what is written behind a plus-minus sign."""
    low, high = bounds(means)
    return (high - low) / 2
