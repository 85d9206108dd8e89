"""The mask decoder: four masks and their predicted IoU out of an embedding and prompts."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from sam_jax.models.config import SamConfig
from sam_jax.models.layers import ENCODER_EPS, ChannelNorm, MlpHead, dense, gelu, precision, turned
from sam_jax.models.transformer import ImageParts, TwoWayTransformer

Wanted = Literal["all", "several", "one"]
"""Which masks are computed: all four, those of an ambiguous prompt (1-3), or the single one (0)."""


class MaskDecoder(nn.Module):
    """Embedding, prompt tokens and dense map -> mask logits and predicted IoU."""

    config: SamConfig

    def setup(self) -> None:
        c = self.config
        d, k = c.embed_dim, c.num_masks
        normal = nn.initializers.normal(0.3)
        self.iou_token = self.param("iou_token", normal, (1, d))
        self.mask_tokens = self.param("mask_tokens", normal, (k, d))
        self.transformer = TwoWayTransformer(c)
        for i in range(k):
            setattr(self, f"hyper_mlp_{i}", MlpHead(c, d, d // 8, 3))
        self.iou_head = MlpHead(c, c.iou_head_width, k, c.iou_head_depth)
        plain = {"kernel_init": _fan_in(), "use_bias": False}
        self.upscale_conv1 = dense(c, 4 * (d // 4), "upscale_conv1", **plain)
        self.upscale_norm = ChannelNorm(ENCODER_EPS, axis=-3, centred=True)
        self.upscale_conv2 = dense(c, 4 * (d // 8), "upscale_conv2", **plain)
        self.upscale_bias1 = self.param("upscale_bias1", nn.initializers.zeros, (d // 4,))
        self.upscale_bias2 = self.param("upscale_bias2", nn.initializers.zeros, (d // 8,))

    def image_parts(self, embedding, image_pe, dense_map) -> ImageParts:
        """What no prompt changes, computed once an image; arguments as for the decoder."""
        b, h, w, d = embedding.shape
        image = (embedding[:, None] + dense_map).reshape(b, h * w, d)
        return self.transformer.image_parts(image.swapaxes(1, 2), image_pe.reshape(h * w, d).T)

    def __call__(
        self,
        embedding,
        image_pe,
        tokens,
        live,
        dense_map,
        train: bool = False,
        wanted: Wanted = "all",
        parts: ImageParts | None = None,
        least: jnp.ndarray | None = None,
    ):
        """Decodes N prompts of each of B images.

        Args:
          embedding: float32 [B, h, w, D].
          image_pe: float32 [h, w, D].
          tokens: float32 [B, N, T, D], live: bool [B, N, T].
          dense_map: float32, broadcasts to [B, N, h, w, D]; N = 1 is shared by the prompts.
          train: whether dropout is on.
          wanted: which masks.
          parts: `image_parts` where they are at hand; `dense_map` is then shared.
          least: float32 scalar; where no predicted IoU of the call is above it, no mask is computed
            and the logits are 0. None: all are.

        Returns:
          float32 logits [B, N, K, 4h, 4w] and predicted IoU [B, N, K]; K = 0 is the single mask,
          K is 4, 3 or 1 by `wanted`.
        """
        b, h, w, d = embedding.shape
        n = tokens.shape[1]
        own = jnp.concatenate([self.iou_token, self.mask_tokens])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (b, n, *own.shape)), tokens], 2)
        live = jnp.pad(live, ((0, 0), (0, 0), (own.shape[0], 0)), constant_values=True)

        if parts is None:
            positions = image_pe.reshape(h * w, d).T
            image = embedding[:, None] + dense_map
            image = jnp.broadcast_to(image, (b, *image.shape[1:])).reshape(b, -1, h * w, d)
            image = image.swapaxes(2, 3)
        else:
            image, positions = parts.image[:, None], parts.positions
        tokens, image = self.transformer(tokens, image, positions, live, train, parts)
        count = self.config.num_masks
        chosen = {"all": range(count), "several": range(1, count), "one": range(1)}[wanted]
        heads = [getattr(self, f"hyper_mlp_{k}")(tokens[:, :, 1 + k]) for k in chosen]
        iou = self.iou_head(tokens[:, :, 0])[..., chosen.start : chosen.stop]
        heads = jnp.stack(heads, 2)
        if least is None:
            logits = self._masks(image, heads, (h, w))
        else:
            logits = nn.cond(
                ~(iou <= least).all(),
                lambda decoder, image, heads: decoder._masks(image, heads, (h, w)),
                lambda _, image, heads: jnp.zeros((*heads.shape[:3], 4 * h, 4 * w), jnp.float32),
                *(self, image, heads),
            )
        return logits.astype(jnp.float32), iou.astype(jnp.float32)

    def _masks(self, image, heads, hw):
        """Two 2x2 transposed convolutions and the product with the heads.

        image float32 [B, N, D, h * w], heads [B, N, K, D / 8] -> [B, N, K, 4h, 4w]. Both are
        matrix products a pixel; the 4 x 4 outputs of a pixel are put in their places only in the
        final logits.
        """
        c, (h, w), d = self.config, hw, self.config.embed_dim
        b, n = image.shape[:2]

        def product(x, y):
            x, y = x.astype(c.dtype), y.astype(c.dtype)
            return jnp.matmul(x, y, precision=precision(c), preferred_element_type=jnp.float32)

        # LayerNorm takes the mean from the channels: it is taken from kernel and bias instead.
        # Rows are [D / 4, 4] here, so that the second product takes all 4 pixels of the first's.
        first = self.upscale_conv1.weights(d).kernel.reshape(d, 4, d // 4)
        first = (first - first.mean(2, keepdims=True)).transpose(2, 1, 0).reshape(-1, d)
        bias = self.upscale_bias1 - self.upscale_bias1.mean()
        x = product(first, image).reshape(b, n, d // 4, 4, h * w) + bias[:, None, None]
        x = gelu(self.upscale_norm(x)).reshape(b, n, d // 4, 4 * h * w)
        x = product(turned(self.upscale_conv2.weights(d // 4).kernel), x)
        x = x.reshape(b, n, 4, d // 8, 4 * h * w) + self.upscale_bias2[:, None]
        # XLA:CPU would make one product of all four, and move them side by side for it.
        parts = [product(heads, gelu(part.squeeze(2))) for part in jnp.split(x, 4, 2)]
        logits = jnp.stack(parts, 2)
        logits = logits.reshape(b, n, 2, 2, -1, 2, 2, h, w)
        logits = logits.transpose(0, 1, 4, 7, 5, 2, 8, 6, 3)
        return logits.reshape(b, n, -1, 4 * h, 4 * w)


def _fan_in():
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
