"""A model small enough to compile in a second, with weights made by numpy, and a photo for it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from sam_jax.checkpoint.load import Sam
from sam_jax.models.config import SamConfig
from sam_jax.models.sam import SamModel, init

WORDS = ("a", "the", "red", "green", "circle", "square")
CONFIG = SamConfig(
    32,
    2,
    2,
    (1,),
    image_size=64,
    window_size=3,
    embed_dim=32,
    decoder_heads=4,
    decoder_mlp_width=64,
    iou_head_width=32,
)


@functools.cache
def variables(config: SamConfig = CONFIG, seed: int = 0) -> dict:
    """Random variables of a config: products keep their size, no bias is zero, no scale one."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        x = rng.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return x * np.float32(np.prod(leaf.shape[:-1])) ** -0.5
        return 1 + 0.3 * x if name == "scale" else 0.3 * x if leaf.ndim == 1 else x

    return jax.tree_util.tree_map_with_path(
        fill, jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    )


def small_sam(config: SamConfig = CONFIG, seed: int = 0) -> Sam:
    """A model of the config with random weights."""
    return Sam(SamModel(config), jax.device_put(variables(config, seed)), config, "small")


def reading_sam(seed: int = 0) -> Sam:
    """Such a model with a text tower that knows the words of WORDS; needs `tokenizers`."""
    from tests.clips import word_clip

    clip = word_clip(WORDS)
    config = CONFIG.replace(text_width=clip.config.embed_dim)
    return dataclasses.replace(small_sam(config, seed), text=clip.text_tower())


def photo(hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth waves and noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: hw[0], : hw[1]].astype(np.float32)
    waves = [np.sin(x / (3 + 4 * i) + y / (9 - 2 * i) + i) for i in range(3)]
    noise = rng.normal(0, 20, (*hw, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
