"""Seeded random weights under which every part of the model matters; no PyTorch needed."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from sam_jax.checkpoint.names import from_torch, shapes
from sam_jax.checkpoint.stored import INT8_FROM
from sam_jax.models.config import SamConfig


def lively_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 tensors by released name.

    Products keep their input's variance, position tables are as large as what they are added to,
    and no bias or norm is at the value that it is initialised with.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in sorted(shapes):
        shape = shapes[name]
        x = rng.standard_normal(shape, dtype=np.float32)
        if "pos_embed" in name:
            x *= 0.5
        elif "rel_pos" in name:
            x *= 0.3
        elif len(shape) == 4 and "output_upscaling" in name:  # transposed: input channels first
            x *= shape[0] ** -0.5
        elif len(shape) == 4 or (len(shape) == 2 and name.endswith("weight") and _product(name)):
            x *= 1.5 * float(np.prod(shape[1:])) ** -0.5
        elif name.endswith("bias"):
            x *= 0.2
        elif len(shape) == 1:  # a norm's scale
            x = 1.0 + 0.3 * x
        tensors[name] = np.asarray(x, np.float32)
    return tensors


def _product(name: str) -> bool:
    lookups = ("iou_token.", "mask_tokens.", "point_embeddings.", "_embed.weight")
    return not any(part in name for part in lookups)


def lively_variables(config: SamConfig, seed: int = 0) -> dict:
    """The same weights as a model's variables."""
    return from_torch(lively_tensors(shapes(config), seed), config)


def unrounded(variables: Mapping) -> dict:
    """Variables that those of a file with kernels in eight bits may have been rounded from."""
    rng = np.random.default_rng(0)

    def moved(path, x):
        if path[-1].key != "kernel" or x.ndim < 2 or x.size < INT8_FROM:
            return x
        step = np.abs(x).reshape(-1, x.shape[-1]).max(0) / 127
        return x + step * rng.uniform(-0.5, 0.5, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, dict(variables))
