"""Endless training pictures: procedural scenes, and objects cut out of photos pasted on others.

Both classes here are sources in the sense of `sam_jax.data.sources`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.data.cut_paste import MIN_PIXELS, CutPaste
from sam_jax.data.images import read_image
from sam_jax.data.scene_camera import photographed
from sam_jax.data.scene_layouts import Canvas, compose, new_canvas
from sam_jax.data.sources import Record
from sam_jax.ops import rle as rle_ops

__all__ = ["CutPaste", "ProceduralScenes"]


class ProceduralScenes:
    """A source of drawn scenes: textured objects with parts and parts of parts, overlapping.

    A mask is the visible part of an object, of one of its parts, or of a region of the
    background; a whole is the union of its parts. Record i depends on (seed, i, size) and on the
    texture photographs, and on nothing else.
    """

    def __init__(
        self,
        length: int = 100_000,
        size: int = 512,
        seed: int = 0,
        texture_photos: Sequence[Any] = (),
    ):
        """
        Args:
          length: number of scenes.
          size: height and width in pixels.
          seed: of everything random.
          texture_photos: pictures (whatever `read_image` takes) whose windows serve as surfaces
            and backgrounds; they are kept in memory.

        Raises:
          ValueError: a length below 1, or a size below 64.
          ImageError: a texture photograph that cannot be read.
        """
        if length < 1 or size < 64:
            raise ValueError(
                f"length must be at least 1 and size at least 64, got {length} and {size}"
            )
        self.length, self.size, self.seed = length, size, seed
        self._photos = [Image.fromarray(read_image(photo)) for photo in texture_photos]

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"ProceduralScenes(length={self.length}, size={self.size}, seed={self.seed})"

    def __getitem__(self, index: int) -> Record:
        """Scene `index`: image uint8 [size, size, 3], rles, name; IndexError beyond the length."""
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in 0..{self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, int(index)])
        canvas = new_canvas(self.size, self._photos)
        compose(canvas, rng)
        return {
            "image": np.array(photographed(canvas.image, rng)),
            "rles": _visible_masks(canvas),
            "name": f"scene:{self.seed}:{index}",
        }


def _visible_masks(canvas: Canvas) -> list[dict[str, Any]]:
    """RLEs of the groups with enough visible pixels, each different set of pixels once."""
    pixels = np.bincount(canvas.labels.reshape(-1), minlength=canvas.count + 1)
    kept: dict[frozenset[int], None] = {}
    for group in canvas.groups:
        visible = frozenset(label for label in group if pixels[label])
        if sum(pixels[label] for label in visible) >= MIN_PIXELS:
            kept[visible] = None
    return rle_ops.encode_groups(canvas.labels, [sorted(group) for group in kept])
