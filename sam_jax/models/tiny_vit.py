"""MobileSAM's image encoder, to learn from (Zhang et al. 2023; TinyViT, Wu et al. 2022).

Four stages at a quarter, an eighth and a sixteenth of the image: convolutions, then attention in
windows with a bias for each distance, each followed by a depthwise convolution. Its result is what
SAM's decoder takes. Inference alone: batch norms are folded into the convolutions before them
(`sam_jax.checkpoint.mobile_sam`).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sam_jax.models.image_encoder import join_windows, partition_windows
from sam_jax.models.layers import ENCODER_EPS, gelu

WINDOWS = (0, 7, 14, 7)
"""Side of each stage's windows; the first stage convolves."""
HEAD_DIM = 32
BLOCK_EPS = 1e-5

Params = Mapping


def tiny_vit(params: Params, images: jax.Array, dtype: str = "float32") -> jax.Array:
    """Normalised images [B, H, W, 3] -> float32 [B, H / 16, W / 16, 256].

    Args:
      params: of `sam_jax.checkpoint.mobile_sam.read_mobile_sam`.
      images: float32, sides multiples of 16, zeros where there is no image.
      dtype: what products are computed in.
    """
    x = images.astype(dtype)
    x = _conv(x, params["stem_0"], 2)
    x = _conv(gelu(x), params["stem_1"], 2)
    for i, window in enumerate(WINDOWS):
        stage = params[f"stage_{i}"]
        for name in sorted(n for n in stage if n.startswith("block_")):
            x = _attending(x, stage[name], window) if window else _convolving(x, stage[name])
        if "merge" in stage:
            x = _merge(x, stage["merge"], stride=1 if i == len(WINDOWS) - 2 else 2)
    neck = params["neck"]
    x = _norm(_conv(x, neck["conv_0"]), neck["norm_0"], ENCODER_EPS).astype(dtype)
    return _norm(_conv(x, neck["conv_1"]), neck["norm_1"], ENCODER_EPS)


def _convolving(x: jax.Array, p: Params) -> jax.Array:
    """An inverted bottleneck."""
    y = gelu(_conv(x, p["expand"]))
    y = gelu(_depthwise(y, p["depthwise"]))
    return gelu(x + _conv(y, p["project"]))


def _merge(x: jax.Array, p: Params, stride: int) -> jax.Array:
    """Between two stages: other channels, and a half of the size unless the stride is 1."""
    y = gelu(_conv(x, p["expand"]))
    y = gelu(_depthwise(y, p["depthwise"], stride))
    return _conv(y, p["project"])


def _attending(x: jax.Array, p: Params, window: int) -> jax.Array:
    """Attention in windows, a depthwise convolution, an MLP."""
    hw = x.shape[1:3]
    # Zeros fill the last windows before the norm, and are attended to.
    y = _attention(partition_windows(x, window), p["attn"], window)
    x = _depthwise(x + join_windows(y, hw), p["local"])
    y = _norm(x, p["mlp_norm"], BLOCK_EPS).astype(x.dtype)
    return x + _linear(gelu(_linear(y, p["lin1"])), p["lin2"])


def _attention(x: jax.Array, p: Params, window: int) -> jax.Array:
    """[windows, s, s, C] -> such: by heads, with a bias for how far rows and columns are apart."""
    n, width = len(x), x.shape[-1]
    y = _norm(x, p["norm"], BLOCK_EPS).astype(x.dtype).reshape(n, window**2, width)
    heads = width // HEAD_DIM
    q, k, v = jnp.split(_linear(y, p["qkv"]).reshape(n, window**2, heads, 3 * HEAD_DIM), 3, -1)
    at = jnp.arange(window**2)
    rows, columns = (jnp.abs(i[:, None] - i) for i in (at // window, at % window))
    bias = p["distances"][:, rows * window + columns]
    exact = {"precision": _precision(x), "preferred_element_type": jnp.float32}
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, **exact)
    weights = jax.nn.softmax(scores * HEAD_DIM**-0.5 + bias, -1).astype(x.dtype)
    y = jnp.einsum("nhqk,nkhd->nqhd", weights, v, **exact).astype(x.dtype)
    return _linear(y.reshape(n, window, window, width), p["proj"])


def _conv(x: jax.Array, p: Params, stride: int = 1) -> jax.Array:
    """A convolution by a kernel [s, s, C, D], s odd, as many zeros on all sides."""
    size = p["kernel"].shape[0]
    if size == 1:
        return _linear(x, {**p, "kernel": p["kernel"][0, 0]})
    y = jax.lax.conv_general_dilated(
        x,
        p["kernel"].astype(x.dtype),
        (stride, stride),
        [(size // 2, size // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_precision(x),
    )
    return y + p["bias"].astype(x.dtype) if "bias" in p else y


def _depthwise(x: jax.Array, p: Params, stride: int = 1) -> jax.Array:
    """A convolution of each channel by itself, 3 x 3, as a sum of nine shifted maps.

    XLA's grouped convolutions take several times as long on a CPU.
    """
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = (
        padded[:, i : i + h : stride, j : j + w : stride] * p["kernel"][i, j, 0]
        for i in range(3)
        for j in range(3)
    )
    return sum(shifted, p["bias"]).astype(x.dtype)


def _linear(x: jax.Array, p: Params) -> jax.Array:
    y = jnp.matmul(
        x, p["kernel"].astype(x.dtype), precision=_precision(x), preferred_element_type=jnp.float32
    )
    return (y + p["bias"] if "bias" in p else y).astype(x.dtype)


def _norm(x: jax.Array, p: Params, epsilon: float) -> jax.Array:
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return x * p["scale"] + p["bias"]


def _precision(x: jax.Array) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
