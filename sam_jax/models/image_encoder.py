"""The image encoder: a ViT with windowed and global attention, and the neck (paper section A)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.attention import rel_pos_attention
from sam_jax.models.config import SamConfig
from sam_jax.models.layers import ENCODER_EPS, dense, gelu, norm, precision
from sam_jax.ops.resize import resize_hw


def partition_windows(x: jax.Array, size: int) -> jax.Array:
    """[B, h, w, D] -> [B * windows, size, size, D]; zeros fill the last row and column of them."""
    b, h, w, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
    rows, columns = x.shape[1] // size, x.shape[2] // size
    x = x.reshape(b, rows, size, columns, size, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b * rows * columns, size, size, d)


def join_windows(windows: jax.Array, hw: tuple[int, int]) -> jax.Array:
    """What `partition_windows` was given: [B * windows, size, size, D] -> [B, h, w, D]."""
    size, d = windows.shape[1], windows.shape[-1]
    rows, columns = -(-hw[0] // size), -(-hw[1] // size)
    x = windows.reshape(-1, rows, columns, size, size, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * size, columns * size, d)[:, : hw[0], : hw[1]]


class Attention(nn.Module):
    """Multi-head self-attention with decomposed relative positions over a map [B, h, w, D]."""

    config: SamConfig
    table_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        b, h, w, width = x.shape
        tables = [
            self.param(
                f"rel_pos_{axis}", nn.initializers.zeros, (2 * self.table_size - 1, c.head_dim)
            )
            for axis in "hw"
        ]
        qkv = dense(c, 3 * width, "qkv")(x).reshape(b, h, w, 3, c.encoder_heads, c.head_dim)
        q, k, v = (qkv[:, :, :, i] for i in range(3))
        out = rel_pos_attention(q, k, v, *tables, precision=precision(c))
        return dense(c, width, "proj")(out.reshape(b, h, w, width))


class Block(nn.Module):
    """A pre-norm transformer block; `window` 0 attends globally."""

    config: SamConfig
    window: int
    drop_path: float

    def _drop(self, x: jax.Array, train: bool) -> jax.Array:
        """Stochastic depth: the branch of an image is dropped whole."""
        if not train or self.drop_path == 0.0:
            return x
        keep = 1.0 - self.drop_path
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, (x.shape[0], 1, 1, 1))
        return x * (kept / keep).astype(x.dtype)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.config
        hw = x.shape[1:3]
        y = norm(ENCODER_EPS, "norm1")(x).astype(c.dtype)
        if self.window:  # padding comes after the norm, and padded tokens are attended to
            y = partition_windows(y, self.window)
        y = Attention(c, self.window or c.grid, name="attn")(y)
        if self.window:
            y = join_windows(y, hw)
        # Without barriers XLA may compute the sum of all later branches' gradients anew in each
        # of its readers (make_step in sam_jax.training.step).
        x = jax.lax.optimization_barrier(x + self._drop(y, train))
        y = norm(ENCODER_EPS, "norm2")(x).astype(c.dtype)
        y = gelu(dense(c, int(c.encoder_width * c.encoder_mlp_ratio), "lin1")(y))
        x = x + self._drop(dense(c, c.encoder_width, "lin2")(y), train)
        return jax.lax.optimization_barrier(x)


class ImageEncoder(nn.Module):
    """Normalised images [B, H, W, 3] -> embeddings float32 [B, h, w, D], h = H / patch_size."""

    config: SamConfig

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        c, p = self.config, self.config.patch_size
        b, height, width, channels = images.shape
        if height % p or width % p or channels != 3:
            raise ValueError(
                f"images: expected [B, H, W, 3] with H and W multiples of {p}, got {images.shape}"
            )
        hw = (height // p, width // p)
        patches = images.reshape(b, hw[0], p, hw[1], p, 3).transpose(0, 1, 3, 2, 4, 5)
        x = dense(c, c.encoder_width, "patch_embed")(patches.reshape(b, *hw, p * p * 3))
        table = self.param(
            "pos_embed",
            nn.initializers.truncated_normal(0.02),
            (1, c.grid, c.grid, c.encoder_width),
        )
        x = x + resize_hw(table, hw, (1, 2), "cubic").astype(x.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if c.remat else Block
        for i in range(c.encoder_depth):
            window = 0 if i in c.global_blocks else c.window_size
            rate = c.drop_path * i / max(c.encoder_depth - 1, 1)
            x = block(c, window, rate, name=f"block_{i}")(x, train)
        return self._neck(x)

    def _neck(self, x: jax.Array) -> jax.Array:
        c = self.config
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        x = dense(c, c.embed_dim, "neck_conv1", use_bias=False, kernel_init=fan_in)(x)
        x = norm(ENCODER_EPS, "neck_norm1")(x).astype(c.dtype)
        x = nn.Conv(
            c.embed_dim,
            (3, 3),
            padding=1,
            use_bias=False,
            dtype=c.dtype,
            precision=precision(c),
            kernel_init=fan_in,
            name="neck_conv2",
        )(x)
        return norm(ENCODER_EPS, "neck_norm2")(x)
