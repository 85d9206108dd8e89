"""The encoder's weights in eight bits."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

LAYERS = ("qkv", "proj", "lin1", "lin2")
"""A block's linear layers: 98% of ViT-H's encoder."""


def quantise_encoder(variables: Mapping) -> dict:
    """Variables whose encoder blocks hold int8 kernels and a float32 "scale" a column.

    A column's largest weight is 127. Products are computed in the config's dtype as before, on
    weights that were rounded: a quarter of the memory, and no training.

    Args:
      variables: {"params", "buffers"} in float32, as `sam_jax.load` gives them.

    Returns:
      New variables; everything else is shared with those given.

    Raises:
      ValueError: its encoder is MobileSAM's, which is small and half of it convolutions.
    """
    encoder = dict(variables["params"]["image_encoder"])
    if "stem_0" in encoder:
        raise ValueError("encoder_weights: expected 'float32' for MobileSAM's encoder, got 'int8'")
    for name, block in encoder.items():
        if name.startswith("block_"):
            attention, mlp = dict(block["attn"]), dict(block)
            for layers in (attention, mlp):
                layers.update({k: _quantised(layers[k]) for k in LAYERS if k in layers})
            encoder[name] = mlp | {"attn": attention}
    return {**variables, "params": {**variables["params"], "image_encoder": encoder}}


def is_quantised(variables: Mapping) -> bool:
    """Whether any kernel is in int8."""
    return any(x.dtype == jnp.int8 for x in jax.tree.leaves(variables))


def _quantised(layer: Mapping) -> dict:
    kernel = layer["kernel"]
    scale = jnp.maximum(jnp.abs(kernel).max(0), jnp.finfo(jnp.float32).tiny) / 127
    return {**layer, "kernel": jnp.round(kernel / scale).astype(jnp.int8), "scale": scale}
