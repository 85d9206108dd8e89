"""The mask decoder: four masks and their predicted IoU out of an embedding and prompts."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from sam_jax.models.config import SamConfig
from sam_jax.models.layers import ENCODER_EPS, MlpHead, dense, gelu, norm, precision
from sam_jax.models.transformer import TwoWayTransformer

TOKEN_TILE = 16


class MaskDecoder(nn.Module):
    """Embedding, prompt tokens and dense map -> mask logits and predicted IoU."""

    config: SamConfig

    @nn.compact
    def __call__(
        self, embedding, image_pe, tokens, live, dense_map, train: bool = False, multi: bool = False
    ):
        """Decodes N prompts of each of B images.

        Args:
          embedding: float32 [B, h, w, D].
          image_pe: float32 [h, w, D].
          tokens: float32 [B, N, T, D], live: bool [B, N, T].
          dense_map: float32, broadcasts to [B, N, h, w, D]; N = 1 is shared by the prompts.
          train: whether dropout is on.
          multi: whether only the masks of an ambiguous prompt are wanted. Tokens are not padded
            then, so the result is what it is otherwise, and with other slots, within rounding.

        Returns:
          float32 logits [B, N, K, 4h, 4w] and predicted IoU [B, N, K]; K = 0 is the single mask,
          which is left out with `multi`.
        """
        c = self.config
        b, h, w, d = embedding.shape
        n = tokens.shape[1]
        normal = nn.initializers.normal(0.3)
        iou_token = self.param("iou_token", normal, (1, d))
        mask_tokens = self.param("mask_tokens", normal, (c.num_masks, d))
        own = jnp.concatenate([iou_token, mask_tokens])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (b, n, *own.shape)), tokens], 2)
        live = jnp.pad(live, ((0, 0), (0, 0), (own.shape[0], 0)), constant_values=True)
        # Products of other shapes round differently: within a tile of tokens the result is the
        # same to the bit however many slots are empty.
        extra = 0 if train or multi else -tokens.shape[2] % TOKEN_TILE
        tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, extra), (0, 0)))
        live = jnp.pad(live, ((0, 0), (0, 0), (0, extra)))

        image = embedding[:, None] + dense_map
        image = jnp.broadcast_to(image, (b, *image.shape[1:])).reshape(b, -1, h * w, d)
        tokens, image = TwoWayTransformer(c, name="transformer")(
            tokens, image, image_pe.reshape(h * w, d), live, train
        )
        heads = [
            MlpHead(c, d, d // 8, 3, name=f"hyper_mlp_{k}")(tokens[:, :, 1 + k])
            for k in range(1 if multi else 0, c.num_masks)
        ]
        iou = MlpHead(c, c.iou_head_width, c.num_masks, c.iou_head_depth, name="iou_head")(
            tokens[:, :, 0]
        )
        logits = self._masks(image.astype(c.dtype), jnp.stack(heads, 2), (h, w))
        iou = iou[..., c.num_masks - len(heads) :]
        return logits.astype(jnp.float32), iou.astype(jnp.float32)

    def _masks(self, image, heads, hw):
        """Two 2x2 transposed convolutions and the product with the heads.

        Both are matrix products a pixel; the 4 x 4 outputs of a pixel are put in their places
        only in the final logits.
        """
        c, (h, w), d = self.config, hw, self.config.embed_dim
        up1 = dense(c, 4 * (d // 4), "upscale_conv1", kernel_init=_fan_in(), use_bias=False)
        bias1 = self.param("upscale_bias1", nn.initializers.zeros, (d // 4,))
        up2 = dense(c, 4 * (d // 8), "upscale_conv2", kernel_init=_fan_in(), use_bias=False)
        bias2 = self.param("upscale_bias2", nn.initializers.zeros, (d // 8,))
        b, n = image.shape[:2]
        x = up1(image).reshape(b, n, h * w, 4, d // 4) + bias1.astype(c.dtype)
        x = gelu(norm(ENCODER_EPS, "upscale_norm")(x)).astype(c.dtype)
        x = up2(x).reshape(b, n, h * w * 16, d // 8) + bias2.astype(c.dtype)
        logits = jnp.einsum(
            "bnpd,bnkd->bnkp",
            gelu(x),
            heads,
            precision=precision(c),
            preferred_element_type=jnp.float32,
        )
        logits = logits.reshape(b, n, -1, h, w, 2, 2, 2, 2)
        logits = logits.transpose(0, 1, 2, 3, 5, 7, 4, 6, 8)
        return logits.reshape(b, n, -1, 4 * h, 4 * w)


def _fan_in():
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
