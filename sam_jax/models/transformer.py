"""The two-way transformer: prompt tokens and image exchange what they know (paper figure 14)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.config import SamConfig
from sam_jax.models.layers import DECODER_EPS, dense, norm, precision

# Axes: B images, N prompts, T tokens, L pixels of the embedding, D channels. The image side has an
# axis M that is 1 as long as all prompts of an image share it, and N from then on.


class CrossAttention(nn.Module):
    """Multi-head attention with its projections; `downsample` narrows the inner width."""

    config: SamConfig
    downsample: int = 1

    @nn.compact
    def __call__(self, q, k, v, live=None) -> jax.Array:
        """q [B, N, Q, D], k and v [B, M, K, D], live bool [B, N, K] or None -> [B, N, Q, D]."""
        c = self.config
        heads, width = c.decoder_heads, c.embed_dim // self.downsample
        init = nn.initializers.xavier_uniform()
        q, k, v = (
            dense(c, width, f"{name}_proj", kernel_init=init)(x.astype(c.dtype))
            for name, x in (("q", q), ("k", k), ("v", v))
        )
        q, k, v = (x.reshape(*x.shape[:3], heads, width // heads) for x in (q, k, v))
        n = max(q.shape[1], k.shape[1])
        out = _attend(q, k, v, live, precision(c))
        out = out.reshape(q.shape[0], n, q.shape[2], width)
        return dense(c, c.embed_dim, "out_proj", kernel_init=init)(out).astype(jnp.float32)


def _attend(q, k, v, live, precision):
    """Softmax attention in which an axis N of size 1 is shared, never copied."""
    q_axis, k_axis = ("bm" if x.shape[1] == 1 else "bn" for x in (q, k))
    out_axis = "bn" if "bn" in (q_axis, k_axis) else "bm"
    scores = jnp.einsum(
        f"{q_axis}qhd,{k_axis}khd->{out_axis}hqk",
        q * q.shape[-1] ** -0.5,
        k,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    if live is not None:
        scores = jnp.where(live[:, :, None, None, :], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum(
        f"{out_axis}hqk,{k_axis}khd->{out_axis}qhd",
        weights,
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    ).astype(v.dtype)


class TwoWayLayer(nn.Module):
    """Self-attention, tokens to image, MLP, image to tokens; post-norm."""

    config: SamConfig
    first: bool

    @nn.compact
    def __call__(self, tokens, image, token_pe, image_pe, live, train: bool):
        c = self.config
        drop = nn.Dropout(c.decoder_dropout, deterministic=not train)
        attention = CrossAttention(c, name="self_attn")
        if self.first:  # no positions, and the result replaces the tokens
            tokens = drop(attention(tokens, tokens, tokens, live))
        else:
            q = tokens + token_pe
            tokens = tokens + drop(attention(q, q, tokens, live))
        tokens = norm(DECODER_EPS, "norm1")(tokens)

        attention = CrossAttention(c, c.attention_downsample, name="token_to_image")
        tokens = tokens + drop(attention(tokens + token_pe, image + image_pe, image))
        tokens = norm(DECODER_EPS, "norm2")(tokens)

        y = nn.relu(dense(c, c.decoder_mlp_width, "lin1")(tokens.astype(c.dtype)))
        tokens = tokens + drop(dense(c, c.embed_dim, "lin2")(y).astype(jnp.float32))
        tokens = norm(DECODER_EPS, "norm3")(tokens)

        attention = CrossAttention(c, c.attention_downsample, name="image_to_token")
        image = image + drop(attention(image + image_pe, tokens + token_pe, tokens, live))
        return tokens, norm(DECODER_EPS, "norm4")(image)


class TwoWayTransformer(nn.Module):
    """Layers of exchange, then a last attention from the tokens to the image."""

    config: SamConfig

    @nn.compact
    def __call__(self, tokens, image, image_pe, live, train: bool = False):
        """Tokens [B, N, T, D], image [B, M, L, D], image_pe [L, D], live [B, N, T] -> both."""
        c = self.config
        token_pe = tokens
        for i in range(c.decoder_depth):
            tokens, image = TwoWayLayer(c, first=i == 0, name=f"layer_{i}")(
                tokens, image, token_pe, image_pe, live, train
            )
        attention = CrossAttention(c, c.attention_downsample, name="final_attn")
        tokens = tokens + nn.Dropout(c.decoder_dropout, deterministic=not train)(
            attention(tokens + token_pe, image + image_pe, image)
        )
        return norm(DECODER_EPS, "norm_final")(tokens), image
