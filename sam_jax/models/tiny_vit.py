"""MobileSAM's image encoder (Zhang et al. 2023): TinyViT-5M (Wu et al. 2022) with SAM's neck.

Four stages at a quarter, an eighth and a sixteenth of the image: convolutions, then attention in
windows with a bias for each distance, each followed by a depthwise convolution. Its result is what
SAM's decoder takes. The released one's batch norms are folded into the convolutions before them
(`sam_jax.checkpoint.mobile_sam`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.config import SamConfig
from sam_jax.models.image_encoder import join_windows, neck, partition_windows
from sam_jax.models.layers import dense, gelu, norm, precision

WIDTHS, DEPTHS = (64, 128, 160, 320), (2, 2, 6, 2)
WINDOWS = (0, 7, 14, 7)
"""Side of each stage's windows; the first stage convolves."""
STRIDES = (2, 2, 1)
"""Of the steps between two stages."""
HEAD_DIM = 32
BLOCK_EPS = 1e-5
PATCH = 16
"""Pixels of the image to one of the result."""


class TinyViT(nn.Module):
    """Normalised images [B, H, W, 3] -> embeddings float32 [B, H / 16, W / 16, D]."""

    config: SamConfig

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        del train  # nothing in it is random
        c = self.config
        if images.shape[1] % PATCH or images.shape[2] % PATCH or images.shape[3] != 3:
            raise ValueError(
                f"images: expected [B, H, W, 3] with H and W multiples of {PATCH}, got "
                f"{images.shape}"
            )
        x = images.astype(c.dtype)
        for i, width in enumerate((WIDTHS[0] // 2, WIDTHS[0])):
            x = nn.Conv(
                width,
                (3, 3),
                strides=2,
                padding=1,
                dtype=c.dtype,
                precision=precision(c),
                name=f"stem_{i}",
            )(gelu(x) if i else x)
        for i in range(len(WIDTHS)):
            x = Stage(c, i, name=f"stage_{i}")(x)
        return neck(c, x)


class Stage(nn.Module):
    """Blocks of one width, and the step to the next."""

    config: SamConfig
    index: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, i, width = self.config, self.index, WIDTHS[self.index]
        for j in range(DEPTHS[i]):
            if WINDOWS[i]:
                x = Block(c, width, WINDOWS[i], name=f"block_{j}")(x)
            else:
                x = gelu(x + Bottleneck(c, 4 * width, width, name=f"block_{j}")(x))
        if i == len(STRIDES):
            return x
        after = WIDTHS[i + 1]
        return Bottleneck(c, after, after, STRIDES[i], name="merge")(x)


class Bottleneck(nn.Module):
    """Channels mixed, a convolution of each by itself, channels mixed."""

    config: SamConfig
    hidden: int
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = gelu(dense(self.config, self.hidden, "expand")(x))
        y = gelu(Depthwise(self.stride, name="depthwise")(y))
        return dense(self.config, self.width, "project")(y)


class Block(nn.Module):
    """Attention in windows, a depthwise convolution, an MLP."""

    config: SamConfig
    width: int
    window: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, hw = self.config, x.shape[1:3]
        # Zeros fill the last windows before the norm, and are attended to.
        y = Attention(c, self.window, name="attn")(partition_windows(x, self.window))
        x = Depthwise(name="local")(x + join_windows(y, hw))
        y = gelu(dense(c, 4 * self.width, "lin1")(norm(BLOCK_EPS, "mlp_norm")(x)))
        return x + dense(c, self.width, "lin2")(y)


class Attention(nn.Module):
    """[windows, s, s, C] -> such: by heads, with a bias for how far rows and columns are apart."""

    config: SamConfig
    window: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, n, width, length = self.config, x.shape[0], x.shape[-1], self.window**2
        heads = width // HEAD_DIM
        distances = self.param("distances", nn.initializers.zeros, (heads, length))
        y = norm(BLOCK_EPS, "norm")(x)
        qkv = dense(c, 3 * width, "qkv")(y).reshape(n, length, heads, 3 * HEAD_DIM)
        q, k, v = jnp.split(qkv, 3, -1)
        rows, columns = jnp.divmod(jnp.arange(length), self.window)
        rows, columns = (jnp.abs(at[:, None] - at) for at in (rows, columns))
        bias = distances[:, rows * self.window + columns]
        exact = {"precision": precision(c), "preferred_element_type": jnp.float32}
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, **exact)
        weights = jax.nn.softmax(scores * HEAD_DIM**-0.5 + bias, -1).astype(x.dtype)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v, **exact).astype(x.dtype)
        return dense(c, width, "proj")(y.reshape(n, self.window, self.window, width))


class Depthwise(nn.Module):
    """A convolution of each channel by itself, 3 x 3, as a sum of nine shifted maps.

    XLA's grouped convolutions take several times as long on a CPU.
    """

    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h, w, width = x.shape[1:]
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, 1, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = (
            padded[:, i : i + h : self.stride, j : j + w : self.stride] * kernel[i, j, 0]
            for i in range(3)
            for j in range(3)
        )
        return sum(shifted, bias).astype(x.dtype)
