"""How the colours of a training sample are changed: none of it moves a pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from sam_jax.data.samples import PipelineConfig

_LUMA = np.array([0.299, 0.587, 0.114])


def jittered(image: Image.Image, rng: np.random.Generator, config: PipelineConfig) -> Image.Image:
    """Brightness, contrast, saturation, grey and negative as one affine map of the colours."""
    j = config.colour_jitter
    brightness, contrast, saturation = rng.uniform(1 - j, 1 + j, 3)
    grey, invert = rng.random(2) < (config.grey_probability, config.invert_probability)
    if j == 0 and not grey and not invert:
        return image
    if grey:
        saturation = 0.0
    matrix = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * matrix
    mean = _LUMA @ np.asarray(image.resize((1, 1), Image.Resampling.BOX)).reshape(3)
    offset = np.full(3, brightness * (1 - contrast) * mean)
    if invert:
        matrix, offset = -matrix, 255 - offset
    return image.convert("RGB", tuple(np.column_stack([matrix, offset]).reshape(-1).tolist()))


def blurred(image: Image.Image, rng: np.random.Generator, config: PipelineConfig) -> Image.Image:
    """The image, or by `config.blur_probability` one less sharp."""
    if config.blur_probability and rng.random() < config.blur_probability:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    return image
