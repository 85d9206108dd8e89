"""Training prompts that tell less than a crop shows: means of crops that are alike in something.

A phrase such as "the star" lies at the mean of the embeddings of all stars, far from every single
star's. No word is needed to make such means: of an object and one to three others, the objects
that are alike to every one of them share what those share.
"""

from __future__ import annotations

import numpy as np

DIRECTIONS = 20
"""Of the pool's principal ones, in which likeness is measured, all with equal weight: else what
embeddings differ in most (colours) hides what they differ in less (shapes)."""
SHARPNESS = 16.0
"""Of the weights exp(SHARPNESS * likeness) of the pool's objects in a mean."""
ANCHORS = 3
"""At most so many others that an object is compared with."""


class Pool:
    """The objects that means are made of.

    Args:
      embeddings: float [P, T] of length 1: any objects' crops.
    """

    def __init__(self, embeddings: np.ndarray):
        self.embeddings = embeddings.astype(np.float32)
        self._centre = self.embeddings.mean(0)
        _, spread, directions = np.linalg.svd(self.embeddings - self._centre, full_matrices=False)
        kept = min(DIRECTIONS, int((spread > 1e-3 * max(spread[0], 1e-6)).sum()))
        self._scaled = directions[:kept].T / spread[:kept]
        self._places = self._placed(self.embeddings)

    def _placed(self, embeddings: np.ndarray) -> np.ndarray:
        """Where embeddings float [..., T] lie, as vectors of length 1 whose product is likeness."""
        places = (embeddings - self._centre) @ self._scaled
        return places / np.maximum(np.linalg.norm(places, axis=-1, keepdims=True), 1e-6)

    def blend(self, embedding: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The mean [T] of what is alike to an object's embedding [T] and to a few others."""
        near = self._places @ self._placed(embedding)
        odds = np.exp(SHARPNESS / 3 * (near - near.max()))
        count = int(rng.integers(1, ANCHORS + 1))
        anchors = self._places[rng.choice(len(near), count, p=odds / odds.sum())]
        least = np.minimum(near, (self._places @ anchors.T).min(1))
        mean = np.exp(SHARPNESS * (least - least.max())) @ self.embeddings
        return mean / np.linalg.norm(mean)


def blends(texts: np.ndarray, pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
    """Means of embeddings, each still nearest to its own object.

    Args:
      texts: float [M, V, T] of length 1: V crops of each of a picture's M objects.
      pool: what means are made of.
      count: means for each object.
      rng: chooses.

    Returns:
      float32 [M, count, T] of length 1. Where a mean is as near to another object of the picture,
      it names none, and one of the object's own crops stands in its place.
    """
    texts = texts.astype(np.float32)
    centres = texts.mean(1)  # [M, T]
    made = np.empty((len(texts), count, texts.shape[2]), np.float32)
    for number, centre in enumerate(centres):
        for k in range(count):
            blend = pool.blend(centre, rng)
            alike = centres @ blend
            others = np.delete(alike, number)
            clear = not len(others) or alike[number] > others.max() + 0.1
            made[number, k] = blend if clear else texts[number, rng.integers(texts.shape[1])]
    return made
