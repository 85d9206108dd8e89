"""Endless training pictures: procedural scenes, and objects cut out of photos pasted on others.

Both classes here are sources in the sense of `sam_jax.data.sources`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from sam_jax.data.cut_paste import MIN_PIXELS, CutPaste
from sam_jax.data.images import read_image
from sam_jax.data.scene_layouts import Canvas, compose, new_canvas
from sam_jax.data.scene_textures import bank
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
            "image": np.array(_photographed(canvas.image, rng)),
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


def _photographed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What a camera adds: uneven light, defocus or motion, sensor noise, JPEG, loss of colour."""
    if rng.random() < 0.4:
        low = rng.integers(int(rng.integers(90, 220)), 256, (3, 3), dtype=np.uint8)
        light = Image.fromarray(low).resize(image.size, Image.Resampling.BICUBIC)
        image = ImageChops.multiply(image, Image.merge("RGB", (light, light, light)))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.choice((0.4, 0.7, 1.0, 1.6)))))
    elif rng.random() < 0.1:
        image = image.filter(_motion(rng))
    if rng.random() < 0.1:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.6:
        image = _noisy(image, rng)
    if rng.random() < 0.35:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(25, 95)))
        image = Image.open(file).convert("RGB")
    return image


def _motion(rng: np.random.Generator) -> ImageFilter.Kernel:
    """A blur along a line of 5 pixels."""
    weights = np.zeros((5, 5))
    angle = rng.uniform(0, np.pi)
    for step in np.linspace(-2, 2, 9):
        weights[round(2 + step * np.sin(angle)), round(2 + step * np.cos(angle))] = 1
    return ImageFilter.Kernel((5, 5), weights.reshape(-1).tolist(), scale=float(weights.sum()))


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Adds sensor noise of a standard deviation up to about 12 grey levels."""
    size = max(image.size)
    tile = _sensor_noise(size)[int(rng.integers(2))]
    x, y = (int(v) for v in rng.integers(0, tile.width - size, 2, endpoint=True))
    noise = tile.crop((x, y, x + image.width, y + image.height))
    amount = rng.uniform(0.05, 0.4)
    noise = noise.point([round(128 + (v - 128) * amount) for v in range(256)] * 3)
    return ImageChops.add(image, noise, 1.0, -128)


@lru_cache(maxsize=4)
def _sensor_noise(size: int) -> tuple[Image.Image, Image.Image]:
    """Noise around 128, coloured and grey, somewhat larger than `size`; always the same."""
    bank()  # made together, so that the first scene pays for all tables
    rng = np.random.default_rng(5)
    values = rng.normal(128, 30, (size + 64, size + 64, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values), Image.fromarray(np.repeat(values[..., :1], 3, axis=2))
