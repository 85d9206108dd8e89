"""The image encoder: a ViT with windowed and global attention, and the neck (paper section A)."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from sam_jax.models.attention import rel_pos_attention
from sam_jax.models.config import SamConfig
from sam_jax.models.layers import ENCODER_EPS, dense, gelu, linear, norm, precision
from sam_jax.models.platforms import in_parts
from sam_jax.ops.resize import resize_hw

TOKENS_AT_A_TIME = 512
"""In an MLP on CPUs: in ViT-B 6 MB of float32 lie between its layers then, not 50."""


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


def kept(x: jax.Array) -> jax.Array:
    """Marks what the backward pass finds again unless all of a block is computed again."""
    return checkpoint_name(x, "kept")


def _policy(c: SamConfig):
    """What of a block is kept for the backward pass; the rest is computed again from it."""
    policies = jax.checkpoint_policies
    return policies.nothing_saveable if c.remat else policies.save_only_these_names("kept")


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
        qkv = kept(dense(c, 3 * width, "qkv")(x)).reshape(b, h, w, 3, c.encoder_heads, c.head_dim)
        # Not by indices: their gradients would be padded and added.
        q, k, v = (part.squeeze(3) for part in jnp.split(qkv, 3, 3))
        out = kept(rel_pos_attention(q, k, v, *tables, precision=precision(c)))
        return kept(dense(c, width, "proj")(out.reshape(b, h, w, width)))


class Block(nn.Module):
    """A pre-norm transformer block; `window` 0 attends globally."""

    config: SamConfig
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, branch_scale: jax.Array | None = None) -> jax.Array:
        """Maps [B, h, w, D] to such; `branch_scale` [2, B] multiplies the two branches."""
        c = self.config
        hw = x.shape[1:3]

        def scaled(y, i):
            if branch_scale is None:
                return y
            return y * branch_scale[i][:, None, None, None].astype(y.dtype)

        y = norm(ENCODER_EPS, "norm1")(x).astype(c.dtype)
        if self.window:  # padding comes after the norm, and padded tokens are attended to
            y = partition_windows(y, self.window)
        y = Attention(c, self.window or c.grid, name="attn")(y)
        if self.window:
            y = join_windows(y, hw)
        # Without barriers XLA may compute the sum of all later branches' gradients anew in each
        # of its readers (make_step in sam_jax.training.step).
        x = jax.lax.optimization_barrier(x + scaled(y, 0))
        y = norm(ENCODER_EPS, "norm2")(x).astype(c.dtype)
        return jax.lax.optimization_barrier(x + scaled(self._mlp(y), 1))

    def _mlp(self, x: jax.Array) -> jax.Array:
        c = self.config
        hidden = int(c.encoder_width * c.encoder_mlp_ratio)
        weights = (
            dense(c, hidden, "lin1").weights(c.encoder_width),
            dense(c, c.encoder_width, "lin2").weights(hidden),
        )

        def mlp(x, weights, settled):
            y = gelu(kept(linear(x, weights[0], c.dtype).astype(c.dtype)))
            return linear(settled(y), weights[1], c.dtype).astype(c.dtype)

        tokens = x.reshape(-1, c.encoder_width)
        return in_parts(mlp, tokens, weights, TOKENS_AT_A_TIME).reshape(x.shape)


def neck(c: SamConfig, x: jax.Array) -> jax.Array:
    """The end of an encoder, to be called in its module: [B, h, w, C] -> float32 [B, h, w, D]."""
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
        scales = self._branch_scales(b) if train and c.drop_path else None
        if c.scan_blocks and not self.is_initializing():
            x = _loop_over_blocks(c, self.variables["params"], x, scales)
        else:
            block = nn.remat(Block, policy=_policy(c))
            for i, window in enumerate(c.windows):
                scale = None if scales is None else scales[i]
                x = block(c, window, name=f"block_{i}")(x, scale)
        return neck(c, x)

    def _branch_scales(self, images: int) -> jax.Array:
        """float32 [depth, 2, B], stochastic depth: an image's branch is dropped (0) or grows."""
        c = self.config
        rates = c.drop_path * np.arange(c.encoder_depth) / max(c.encoder_depth - 1, 1)
        keep = (1.0 - rates)[:, None, None].astype(np.float32)
        shape = (c.encoder_depth, 2, images)
        return jax.random.bernoulli(self.make_rng("drop_path"), keep, shape) / keep


def _loop_over_blocks(c: SamConfig, params: dict, x: jax.Array, scales: jax.Array | None):
    """All blocks as a loop over equal groups of them, and in a group over runs of like ones.

    In ViT-B, L and H every group is some windowed blocks and a global one, so that a program of
    two blocks is compiled instead of 12, 24 or 32.
    """
    period = next(
        n
        for n in range(1, c.encoder_depth + 1)
        if c.encoder_depth % n == 0 and c.windows == c.windows[:n] * (c.encoder_depth // n)
    )
    runs = [
        (window, [i for i, _ in run])
        for window, run in itertools.groupby(enumerate(c.windows[:period]), lambda pair: pair[1])
    ]

    def stack(places, leaf_of):
        """[groups, run, ...] of what belongs to the blocks at these places of a group."""
        blocks = [g + i for g in range(0, c.encoder_depth, period) for i in places]
        shape = (-1, len(places))
        return jax.tree.map(
            lambda *leaves: jnp.stack(leaves).reshape(*shape, *leaves[0].shape),
            *[leaf_of(i) for i in blocks],
        )

    def group(x, xs):
        for (window, _), run in zip(runs, xs, strict=True):
            block = Block(c, window, parent=None)

            def one(x, params_scale, block=block):
                params, scale = params_scale
                return block.apply({"params": params}, x, scale), None

            x, _ = jax.lax.scan(jax.checkpoint(one, prevent_cse=False, policy=_policy(c)), x, run)
        return x, None

    def leaves(i):
        return params[f"block_{i}"], None if scales is None else scales[i]

    return jax.lax.scan(group, x, [stack(places, leaves) for _, places in runs])[0]
