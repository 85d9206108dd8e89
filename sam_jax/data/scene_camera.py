"""What a camera adds to a drawn scene: light, blur, noise, compression."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from sam_jax.data.scene_textures import bank


def photographed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The RGB image in uneven light, out of focus or moved, noisy, as a JPEG, without colour.

    Each of these happens to a share of the pictures.
    """
    if rng.random() < 0.4:
        image = unevenly_lit(image, int(rng.integers(90, 220)), rng)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.choice((0.4, 0.7, 1.0, 1.6)))))
    elif rng.random() < 0.1:
        image = image.filter(_motion(rng))
    if rng.random() < 0.1:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.6:
        image = noisy(image, 0.4, rng)
    if rng.random() < 0.35:
        image = compressed(image, int(rng.integers(25, 95)))
    return image


def mildly_photographed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Likewise, but so mildly that colours keep their names and fine patterns can be seen."""
    if rng.random() < 0.4:
        image = unevenly_lit(image, int(rng.integers(200, 240)), rng)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.6))))
    if rng.random() < 0.6:
        image = noisy(image, 0.2, rng)
    if rng.random() < 0.35:
        image = compressed(image, int(rng.integers(70, 96)))
    return image


def unevenly_lit(image: Image.Image, darkest: int, rng: np.random.Generator) -> Image.Image:
    """Multiplied by a smooth field of light from `darkest` to 255 (which keeps)."""
    low = rng.integers(darkest, 256, (3, 3), dtype=np.uint8)
    light = Image.fromarray(low).resize(image.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(image, Image.merge("RGB", (light, light, light)))


def noisy(image: Image.Image, most: float, rng: np.random.Generator) -> Image.Image:
    """Adds sensor noise of a standard deviation of 1.5 to 30 * `most` grey levels."""
    size = max(image.size)
    tile = _sensor_noise(size)[int(rng.integers(2))]
    x, y = (int(v) for v in rng.integers(0, tile.width - size, 2, endpoint=True))
    noise = tile.crop((x, y, x + image.width, y + image.height))
    amount = rng.uniform(0.05, most)
    noise = noise.point([round(128 + (v - 128) * amount) for v in range(256)] * 3)
    return ImageChops.add(image, noise, 1.0, -128)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """The image as a JPEG file of that quality gives it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _motion(rng: np.random.Generator) -> ImageFilter.Kernel:
    """A blur along a line of 5 pixels."""
    weights = np.zeros((5, 5))
    angle = rng.uniform(0, np.pi)
    for step in np.linspace(-2, 2, 9):
        weights[round(2 + step * np.sin(angle)), round(2 + step * np.cos(angle))] = 1
    return ImageFilter.Kernel((5, 5), weights.reshape(-1).tolist(), scale=float(weights.sum()))


@lru_cache(maxsize=4)
def _sensor_noise(size: int) -> tuple[Image.Image, Image.Image]:
    """Noise around 128, coloured and grey, somewhat larger than `size`; always the same."""
    bank()  # made together, so that the first scene pays for all tables
    rng = np.random.default_rng(5)
    values = rng.normal(128, 30, (size + 64, size + 64, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values), Image.fromarray(np.repeat(values[..., :1], 3, axis=2))
