"""The encoder's weights in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

LAYERS = ("qkv", "proj", "lin1", "lin2", "expand", "project")
"""The encoder's linear layers: 98% of ViT-H's, 87% of MobileSAM's."""


def quantise_encoder(variables: Mapping) -> dict:
    """Variables whose encoder's linear layers hold int8 kernels and a float32 "scale" a column.

    A column's largest weight is 127. Products are computed in the config's dtype as before, on
    weights that were rounded: a quarter of a ViT's memory, a third of MobileSAM's; no training.

    Args:
      variables: {"params", "buffers"} in float32, as `sam_jax.load` gives them.

    Returns:
      New variables; everything else is shared with those given.
    """
    encoder = _with_layers(variables["params"]["image_encoder"], _quantised)
    return {**variables, "params": {**variables["params"], "image_encoder": encoder}}


def round_encoder(encoder: Mapping, dtype: str) -> dict:
    """The encoder's parameters, its float32 kernels of linear layers as `dtype`.

    In bfloat16 its products round them anyhow: to do so once saves that at each photo.
    """

    def change(layer):
        kernel = layer["kernel"]
        return {**layer, "kernel": kernel if kernel.dtype == jnp.int8 else kernel.astype(dtype)}

    return _with_layers(encoder, change)


def _with_layers(tree: Mapping, change: Callable[[Mapping], dict]) -> dict:
    return {
        name: change(part)
        if name in LAYERS
        else _with_layers(part, change)
        if isinstance(part, Mapping)
        else part
        for name, part in tree.items()
    }


def is_quantised(variables: Mapping) -> bool:
    """Whether any kernel is in int8."""
    return any(x.dtype == jnp.int8 for x in jax.tree.leaves(variables))


def _quantised(layer: Mapping) -> dict:
    kernel, scale = rounded(layer["kernel"], jnp)
    return {**layer, "kernel": kernel, "scale": scale}


def rounded(kernel, np=np):
    """[C, D] -> such in int8, and float32 [D] that its columns are to be multiplied by."""
    scale = np.maximum(np.abs(kernel).max(0), np.finfo(np.float32).tiny) / np.float32(127)
    return np.round(kernel / scale).astype(np.int8), scale
