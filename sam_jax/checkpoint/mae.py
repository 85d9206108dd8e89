"""Masked-autoencoder checkpoints as the image encoder's initialisation (paper section A).

The paper starts from an MAE pre-trained ViT and doesn't say how it is fitted to 1024-pixel images
and patches of 16. Here, as in ViTDet: the class token's position is dropped and the others resized
bicubically (a = -0.75, no antialiasing; detectron2 get_abs_pos), and so is a patch kernel of
another size, which is ViT-H's case (14 -> 16, as ViTDet's authors describe in
facebookresearch/long_seq_mae issue 2). The sum of its weights grows with its area; it isn't scaled
back. Fresh are relative positions (zeros), the neck, the prompt encoder and the decoder.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.checkpoint.infer import describe
from sam_jax.checkpoint.names import flatten, own_shapes, unflatten
from sam_jax.checkpoint.pth import read_pth
from sam_jax.checkpoint.strict import CheckpointError, Shape, check
from sam_jax.models.config import SamConfig
from sam_jax.models.sam import init
from sam_jax.ops.resize import weights

IGNORED = re.compile(r"cls_token|mask_token|norm\.(weight|bias)|decoder_.*")
"""What SAM's encoder has no place for: tokens, the last norm, and MAE's decoder."""

_BLOCK = {
    "norm1.weight": "norm1/scale",
    "norm1.bias": "norm1/bias",
    "norm2.weight": "norm2/scale",
    "norm2.bias": "norm2/bias",
    "attn.qkv.weight": "attn/qkv/kernel",
    "attn.qkv.bias": "attn/qkv/bias",
    "attn.proj.weight": "attn/proj/kernel",
    "attn.proj.bias": "attn/proj/bias",
    "mlp.fc1.weight": "lin1/kernel",
    "mlp.fc1.bias": "lin1/bias",
    "mlp.fc2.weight": "lin2/kernel",
    "mlp.fc2.bias": "lin2/bias",
}
_ENCODER = "params/image_encoder"


def load_mae(path: str | os.PathLike, config: SamConfig, key: jax.Array) -> dict:
    """Fresh variables of a model whose encoder begins as an MAE checkpoint's.

    Args:
      path: a .pth with the names of facebookresearch/mae (models_mae.py), perhaps under "model".
      config: of the model; its encoder's width, depth and MLP must be the checkpoint's.
      key: random, for what the checkpoint lacks.

    Returns:
      {"params", "buffers"} as `sam_jax.models.sam.init` gives, float32.

    Raises:
      CheckpointError: the file is damaged, or doesn't fit: every tensor is named.
      ValueError: there is no such file.
    """
    path = Path(path)
    try:
        tensors = read_pth(path)
    except OSError as error:
        raise ValueError(f"path: can't read {path}: {error.strerror or error}") from error
    return from_mae(tensors, config, key, str(path))


def from_mae(
    tensors: Mapping[str, np.ndarray], config: SamConfig, key: jax.Array, what: str = "tensors"
) -> dict:
    """As `load_mae`, from tensors by their names."""
    if config.encoder != "vit":
        raise CheckpointError(
            f"{what}: expected a model whose encoder is a ViT, as an MAE's is, got "
            f"{describe(config)}; leave the MAE out (init_encoder)"
        )
    tensors = {name: x for name, x in tensors.items() if not IGNORED.fullmatch(name)}
    names, own_shape = _names(config), own_shapes(config)
    patch, grid = _patch_and_grid(tensors, what)
    expected: dict[str, Shape] = {
        "pos_embed": (1, grid * grid + 1, config.encoder_width),
        "patch_embed.proj.weight": (config.encoder_width, 3, patch, patch),
    }
    for name, own in names.items():
        expected.setdefault(name, tuple(reversed(own_shape[own])))
    check(expected, tensors, f"{what} as the MAE encoder of {describe(config)}")
    flat = dict(_fresh(config, key))
    for name, own in names.items():
        x = np.asarray(tensors[name], np.float32)
        if name == "pos_embed":
            x = _resize(x[0, 1:].reshape(1, grid, grid, -1), config.grid, (1, 2))
        elif name == "patch_embed.proj.weight":
            x = _resize(x, config.patch_size, (2, 3)).transpose(2, 3, 1, 0)
            x = x.reshape(-1, config.encoder_width)
        else:
            x = x.T
        flat[own] = jnp.array(x, jnp.float32, copy=True)
    return unflatten(flat)


@functools.partial(jax.jit, static_argnums=0)
def _fresh(config: SamConfig, key: jax.Array) -> dict[str, jax.Array]:
    """By flat names, what a checkpoint lacks; what isn't returned isn't computed."""
    taken = set(_names(config).values())
    return {name: x for name, x in flatten(init(config, key)).items() if name not in taken}


def _names(config: SamConfig) -> dict[str, str]:
    """MAE's name -> own flat name, of everything that is taken over."""
    names = {
        "pos_embed": f"{_ENCODER}/pos_embed",
        "patch_embed.proj.weight": f"{_ENCODER}/patch_embed/kernel",
        "patch_embed.proj.bias": f"{_ENCODER}/patch_embed/bias",
    }
    for i in range(config.encoder_depth):
        names |= {f"blocks.{i}.{mae}": f"{_ENCODER}/block_{i}/{own}" for mae, own in _BLOCK.items()}
    return names


def _patch_and_grid(tensors: Mapping[str, np.ndarray], what: str) -> tuple[int, int]:
    """The checkpoint's patch size, and the side of its position table without the class token."""
    kernel, table = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if kernel is None or table is None or kernel.ndim != 4 or table.ndim != 3:
        raise CheckpointError(
            f"{what}: is no MAE encoder: expected patch_embed.proj.weight [C, 3, p, p] and "
            f"pos_embed [1, 1 + N, C] among its {len(tensors)} tensors, which begin with "
            f"{', '.join(list(tensors)[:3]) or 'nothing'}"
        )
    positions = table.shape[1] - 1
    grid = math.isqrt(max(positions, 0))
    if grid * grid != positions or grid == 0:
        raise CheckpointError(
            f"{what}: pos_embed: expected [1, 1 + g * g, C], got {tuple(table.shape)}"
        )
    return kernel.shape[-1], grid


def _resize(x: np.ndarray, size: int, axes: tuple[int, int]) -> np.ndarray:
    """Two axes resized bicubically; the same bits where they have that size."""
    for axis in axes:
        if x.shape[axis] != size:
            matrix = weights(x.shape[axis], size, "cubic")
            x = np.moveaxis(np.tensordot(x, matrix, axes=([axis], [1])), -1, axis)
    return x
