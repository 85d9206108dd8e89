"""The two-way transformer: prompt tokens and image exchange what they know (paper figure 14)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.config import SamConfig
from sam_jax.models.layers import DECODER_EPS, dense, norm, precision

# Axes: B images, N prompts, T tokens, L pixels of the embedding, D channels. The image side has an
# axis M that is 1 as long as all prompts of an image share it, and N from then on.


class Projection(nn.Module):
    """A linear layer that gives its parameters away, for products taken in another order."""

    config: SamConfig
    features: int

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
        """The kernel [width, features] and the bias [features] in the config's dtype."""
        init = nn.initializers.xavier_uniform()
        kernel = self.param("kernel", init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel.astype(self.config.dtype), bias.astype(self.config.dtype)


class CrossAttention(nn.Module):
    """Multi-head attention with its projections; `downsample` narrows the inner width.

    Where a few tokens meet the pixels of an image, projecting the pixels is nearly all of the
    work. Scores and outputs are linear in the pixels, so the tokens may go through the pixels'
    projections instead: q (x Wk)' = (q Wk') x'. Exact but for rounding; taken where it is less
    work. The bias of keys is the same for all keys of a query and drops out of the softmax.
    """

    config: SamConfig
    downsample: int = 1

    @nn.compact
    def __call__(self, q, k, v, live=None) -> jax.Array:
        """q [B, N, Q, D], k and v [B, M, K, D], live bool [B, N, K] or None -> [B, N, Q, D]."""
        c = self.config
        heads, width = c.decoder_heads, c.embed_dim // self.downsample
        wq, wk, wv = (Projection(c, width, name=f"{n}_proj")(c.embed_dim) for n in "qkv")
        wo = Projection(c, c.embed_dim, name="out_proj")(width)
        q, k, v = (x.astype(c.dtype) for x in (q, k, v))
        ein = functools.partial(
            jnp.einsum, precision=precision(c), preferred_element_type=jnp.float32
        )

        def linear(x, weights):
            return (ein("bnlc,cd->bnld", x, weights[0]) + weights[1]).astype(c.dtype)

        def split(x):  # the last axis into heads
            return x.reshape(*x.shape[:-1], heads, width // heads)

        def few(tokens, pixels):
            return 8 * tokens < pixels and tokens * heads < width

        if live is None and few(q.shape[2], k.shape[2]) and k.shape[1] == q.shape[1]:
            q = split(linear(q, wq)) * (width // heads) ** -0.5
            q = ein("bnqhd,chd->bnhqc", q, split(wk[0])).astype(c.dtype)
            weights = jax.nn.softmax(ein("bnhqc,bnlc->bnhql", q, k), axis=-1).astype(c.dtype)
            mixed = ein("bnhql,bnlc->bnhqc", weights, v).astype(c.dtype)
            out = split(wv[1]) + ein("bnhqc,chd->bnqhd", mixed, split(wv[0]))
            out = out.reshape(*out.shape[:3], width).astype(c.dtype)
            return linear(out, wo).astype(jnp.float32)
        k, v = split(linear(k, wk)), split(linear(v, wv))
        if few(k.shape[2], q.shape[2]):
            return self._to_few(ein, q, k, v, live, split(wq[0]), split(wq[1]), wo)
        out = _attend(split(linear(q, wq)), k, v, live, precision(c))
        return linear(out.reshape(*out.shape[:3], width), wo).astype(jnp.float32)

    def _to_few(self, ein, q, k, v, live, kernel, bias, out_weights) -> jax.Array:
        """Queries are pixels, keys few tokens [B, N, K, heads, C]: `kernel` and `bias` are theirs.

        Scores are kept as [B, N, heads, K, Q]: the softmax over the few is then elementwise.
        """
        c = self.config
        k = k * k.shape[-1] ** -0.5
        if q.shape[1] == k.shape[1]:
            folded = ein("bnkhd,chd->bnhkc", k, kernel).astype(c.dtype)
            scores = ein("bnhkc,bnqc->bnhkq", folded, q)
            scores += ein("bnkhd,hd->bnhk", k, bias)[..., None]
        else:  # pixels that all prompts share are projected once
            q = (ein("bmqc,chd->bmhqd", q, kernel) + bias[:, None]).astype(c.dtype)
            scores = ein("bnkhd,bmhqd->bnhkq", k, q)
        if live is not None:
            scores = jnp.where(live[:, :, None, :, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=3).astype(c.dtype)
        kernel = out_weights[0].reshape(*k.shape[-2:], -1)
        folded = ein("bnkhd,hdc->bnhkc", v, kernel).astype(c.dtype)
        return ein("bnhkq,bnhkc->bnqc", weights, folded) + out_weights[1].astype(jnp.float32)


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
