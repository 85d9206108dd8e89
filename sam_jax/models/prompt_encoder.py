"""Prompts as arrays of fixed shape, and the encoder that makes tokens and maps of them."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.models.config import SamConfig
from sam_jax.models.layers import ENCODER_EPS, dense, gelu, norm

NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
NOT_A_POINT = -1
"""A live token, appended once by the released code where points come without a box."""
EMPTY = -2
"""A slot that nothing attends to: the result does not depend on how many there are."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """B images with N prompts each, every prompt in P slots.

    Attributes:
      points: float32 [B, N, P, 2], (x, y) in pixels of the padded model frame.
      labels: int32 [B, N, P]: 1 foreground, 0 background, 2 and 3 the top left and bottom right
        corner of a box, -1 the "not a point" token, -2 an empty slot.
      masks: float32 logits [B, N, 4h, 4w] over the padded frame, or None.
      has_mask: bool [B, N], which prompts have a mask; None means all, where `masks` is given.
      text: float32 [B, N, T] text embeddings of length 1, or None.
      has_text: bool [B, N], as `has_mask`.
    """

    points: jax.Array
    labels: jax.Array
    masks: jax.Array | None = None
    has_mask: jax.Array | None = None
    text: jax.Array | None = None
    has_text: jax.Array | None = None


DRAWN_SLOPE, DRAWN_LIMIT = 2.5, 10.0
"""Logits a pixel of the frame inward from a drawn box's edge, and the largest."""


def draw_boxes(prompts: Prompts, grid_hw: tuple[int, int], patch_size: int) -> Prompts:
    """`prompts` in which a box that has no mask also comes as a mask: its own shape, drawn.

    Two corner tokens among many say where a box is only roughly, which a small model cannot make
    up for; on the decoder's grid of a quarter of the frame it is exact. Ours, for the bundled
    model: see `SamConfig.draw_boxes`.

    Args:
      prompts: numpy or JAX arrays; boxes are pairs of labels 2 and 3 in neighbouring slots.
      grid_hw: the embedding's size in patches.
      patch_size: side of a patch, frame pixels.
    """
    xp = jnp if isinstance(prompts.labels, jax.Array) else np
    is_first = prompts.labels == TOP_LEFT
    has_box = is_first.any(2)
    if xp is np and not has_box.any():
        return prompts
    slot = xp.argmax(is_first, 2)[..., None, None]
    last = prompts.points.shape[2] - 1
    low, high = (
        xp.take_along_axis(prompts.points, xp.minimum(slot + i, last), 2)[:, :, 0] for i in (0, 1)
    )

    def inward(axis):  # pixels from the nearer edge [B, N, cells], positive inside
        cells = 4 * grid_hw[1 - axis]
        centre = ((np.arange(cells) + 0.5) * (patch_size / 4)).astype(np.float32)
        return xp.minimum(centre - low[..., axis, None], high[..., axis, None] + 1 - centre)

    depth = xp.minimum(inward(1)[..., :, None], inward(0)[..., None, :])
    drawn = xp.clip(DRAWN_SLOPE * depth, -DRAWN_LIMIT, DRAWN_LIMIT).astype(np.float32)
    if prompts.masks is None:
        return dataclasses.replace(prompts, masks=drawn, has_mask=has_box)
    had = xp.ones_like(has_box) if prompts.has_mask is None else prompts.has_mask
    masks = xp.where(had[..., None, None], prompts.masks, drawn)
    return dataclasses.replace(prompts, masks=masks, has_mask=had | has_box)


def fourier_features(gaussian: jax.Array, unit_xy: jax.Array) -> jax.Array:
    """Random Fourier features [..., 2F] of coordinates in 0..1 [..., 2]; always float32."""
    x = 2.0 * unit_xy.astype(jnp.float32) - 1.0
    x = jnp.matmul(x, gaussian, precision=jax.lax.Precision.HIGHEST) * (2 * np.pi)
    return jnp.concatenate([jnp.sin(x), jnp.cos(x)], -1)


class PromptEncoder(nn.Module):
    """`Prompts` -> tokens [B, N, T, D], which of them are live [B, N, T], and a dense map."""

    config: SamConfig

    def setup(self) -> None:
        c = self.config
        normal = nn.initializers.normal(0.3)  # below the positions' 0.7, which they are added to
        # A buffer of the released code: neither trained nor decayed.
        self.gaussian = self.variable(
            "buffers",
            "gaussian",
            lambda: jax.random.normal(self.make_rng("params"), (2, c.embed_dim // 2)),
        )
        self.point_embeddings = self.param("point_embeddings", normal, (4, c.embed_dim))
        self.not_a_point = self.param("not_a_point", normal, (c.embed_dim,))
        self.no_mask = self.param("no_mask", normal, (c.embed_dim,))
        self.mask_conv1 = dense(c, c.mask_channels // 4, "mask_conv1", kernel_init=_fan_in())
        self.mask_norm1 = norm(ENCODER_EPS, "mask_norm1")
        self.mask_conv2 = dense(c, c.mask_channels, "mask_conv2", kernel_init=_fan_in())
        self.mask_norm2 = norm(ENCODER_EPS, "mask_norm2")
        self.mask_conv3 = dense(c, c.embed_dim, "mask_conv3", kernel_init=_fan_in())
        if c.text_width:
            self.text_proj = dense(c, c.embed_dim, "text_proj", kernel_init=_fan_in())

    def dense_positions(self, hw: tuple[int, int]) -> jax.Array:
        """float32 [h, w, D]: the positional encoding of the centres of the embedding's pixels."""
        y, x = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in hw)
        unit = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), -1)
        return fourier_features(self.gaussian.value, unit)

    def __call__(self, prompts: Prompts, grid_hw: tuple[int, int]):
        """Tokens, their liveness, and the dense map [B, M, h, w, D] or [1, 1, 1, 1, D].

        `grid_hw` is the embedding's size; the frame that points are measured in is that many
        patches.
        """
        c = self.config
        frame_wh = np.array([grid_hw[1], grid_hw[0]], np.float32) * c.patch_size
        labels = prompts.labels[..., None]
        unit_xy = (prompts.points.astype(jnp.float32) + 0.5) / frame_wh
        position = fourier_features(self.gaussian.value, unit_xy)
        corner = self.point_embeddings[jnp.clip(prompts.labels, 0, 3)]
        tokens = jnp.where(labels >= 0, position + corner, 0.0)
        tokens = jnp.where(labels == NOT_A_POINT, self.not_a_point, tokens)
        live = prompts.labels != EMPTY
        if prompts.text is not None:
            tokens, live = self._add_text(tokens, live, prompts)
        return tokens, live, self._dense(prompts, grid_hw)

    def text_tokens(self, text: jax.Array) -> jax.Array:
        """Text embeddings [..., T] of length 1 -> tokens [..., D]."""
        if not self.config.text_width:
            raise ValueError("prompts.text: this model has no text head (config.text_width is 0)")
        # As they are they would give a token that is hardly there beside the others.
        return self.text_proj(text * self.config.text_width**0.5)

    def _add_text(self, tokens, live, prompts: Prompts):
        text = self.text_tokens(prompts.text)[:, :, None].astype(tokens.dtype)
        has = jnp.ones(live.shape[:2], bool) if prompts.has_text is None else prompts.has_text
        return jnp.concatenate([tokens, text], 2), jnp.concatenate([live, has[..., None]], 2)

    def plain_map(self) -> jax.Array:
        """float32 [1, 1, 1, 1, D]: the dense map of prompts without a mask."""
        return self.no_mask[None, None, None, None]

    def _dense(self, prompts: Prompts, grid_hw: tuple[int, int]) -> jax.Array:
        no_mask = self.plain_map()
        if prompts.masks is None:
            if self.is_initializing():
                self._embed_masks(jnp.zeros((1, 1, 4, 4)))
            return no_mask
        expected = (4 * grid_hw[0], 4 * grid_hw[1])
        if prompts.masks.shape[-2:] != expected:
            raise ValueError(
                f"prompts.masks: expected low-resolution logits [B, N, {expected[0]}, "
                f"{expected[1]}], got {prompts.masks.shape}"
            )
        embedded = self._embed_masks(prompts.masks)
        if prompts.has_mask is None:
            return embedded
        return jnp.where(prompts.has_mask[:, :, None, None, None], embedded, no_mask)

    def _embed_masks(self, masks: jax.Array) -> jax.Array:
        """Logits [B, N, 4h, 4w] -> [B, N, h, w, D]: two 2x2 convolutions and one 1x1."""
        x = masks[..., None].astype(self.config.dtype)
        for conv, layer_norm in (
            (self.mask_conv1, self.mask_norm1),
            (self.mask_conv2, self.mask_norm2),
        ):
            b, n, h, w, d = x.shape
            x = x.reshape(b, n, h // 2, 2, w // 2, 2, d).transpose(0, 1, 2, 4, 3, 5, 6)
            x = conv(x.reshape(b, n, h // 2, w // 2, 4 * d))
            x = gelu(layer_norm(x)).astype(self.config.dtype)
        return self.mask_conv3(x).astype(jnp.float32)


def _fan_in():
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
