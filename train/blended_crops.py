"""Training prompts that tell less than a crop shows: means of crops that are alike in something.

A phrase such as "the star" is near the mean of the embeddings of all stars, far from every single
star's. No word is needed to make such means: of an object and one to three others, the objects
that are alike to every one of them share what those share.
"""

from __future__ import annotations

import numpy as np

SHARPNESS = 12.0
"""Of the weights exp(SHARPNESS * cosine) of the pool's objects in a mean."""
ANCHORS = 3
"""At most so many others that an object is compared with."""


def blends(texts: np.ndarray, pool: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Means of embeddings, each still nearest to its own object.

    Args:
      texts: float [M, V, T] of length 1: V crops of each of a picture's M objects.
      pool: float32 [P, T] of length 1: any objects' crops.
      count: means for each object.
      rng: chooses.

    Returns:
      float32 [M, count, T] of length 1. Where a mean is as near to another object of the picture,
      it names none, and one of the object's own crops stands in its place.
    """
    texts = texts.astype(np.float32)
    centres = texts.mean(1)  # [M, T]
    near = centres @ pool.T
    made = np.empty((len(texts), count, texts.shape[2]), np.float32)
    for number in range(len(texts)):
        for k in range(count):
            blend = _blend(near[number], pool, rng)
            alike = centres @ blend
            others = np.delete(alike, number)
            clear = not len(others) or alike[number] > others.max() + 0.1
            made[number, k] = blend if clear else texts[number, rng.integers(texts.shape[1])]
    return made


def _blend(near: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean of what is alike to an object (its cosines with the pool [P]) and a few others."""
    odds = np.exp(SHARPNESS / 2 * (near - near.max()))
    anchors = rng.choice(len(pool), int(rng.integers(1, ANCHORS + 1)), p=odds / odds.sum())
    least = np.minimum(near, (pool @ pool[anchors].T).min(1))
    weights = np.exp(SHARPNESS * (least - least.max()))
    mean = weights @ pool
    return mean / np.linalg.norm(mean)
