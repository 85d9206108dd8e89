"""The two-way transformer: prompt tokens and image exchange what they know (paper figure 14)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.config import SamConfig
from sam_jax.models.layers import DECODER_EPS, ChannelNorm, dense, norm, precision, turned

# Axes: B images, N prompts, T tokens, L pixels of the embedding, D channels, H heads of C channels
# each. The image is [.., D, L] throughout: every product with it then is one of plain matrices, and
# softmax over few tokens and LayerNorm over channels are elementwise in L.


class ImageParts(NamedTuple):
    """What the decoder makes of an image before any prompt is there.

    Attributes:
      image: float32 [B, D, L], the embedding and the dense map of prompts without a mask.
      positions: float32 [D, L].
      keys: [B, H, C, L] in the model's dtype, of the first attention from the tokens to the image.
      values: [B, H, L, C], likewise.
      queries: [B, H, C, L], of the first attention from the image to the tokens.
    """

    image: jax.Array
    positions: jax.Array
    keys: jax.Array
    values: jax.Array
    queries: jax.Array


class CrossAttention(nn.Module):
    """Multi-head attention with its projections; `downsample` narrows the inner width.

    Where a few tokens meet the pixels of an image, projecting the pixels is nearly all of the
    work. What all prompts share is projected once (`project_keys`, `project_queries`). Else scores
    and outputs are linear in the pixels, so the tokens may go through the pixels' projections
    instead: q (x Wk)' = (q Wk') x'. Exact but for rounding; taken where it is less work. The bias
    of keys is the same for all keys of a query and drops out of the softmax.
    """

    config: SamConfig
    downsample: int = 1

    def setup(self) -> None:
        c = self.config
        self.width = c.embed_dim // self.downsample
        for name in "qkv":
            setattr(self, f"{name}_proj", dense(c, self.width, f"{name}_proj"))
        self.out_proj = dense(c, c.embed_dim, "out_proj")

    def among_tokens(self, q, v, live) -> jax.Array:
        """Queries and keys q, values v [B, N, T, D], live bool [B, N, T] -> [B, N, T, D]."""
        values = self._heads(self.v_proj(v))
        q, k = self._queries(q), self._heads(self.k_proj(q))
        scores = jnp.where(live[:, :, None, None], self._product(q, k.mT), -jnp.inf)
        return self._out(self._product(jax.nn.softmax(scores), values))

    def to_image(self, q, placed, image) -> jax.Array:
        """Tokens q [B, N, T, D] attend to pixels [B, N, D, L]: [B, N, T, D]."""
        b, n, t, d = q.shape
        if not self._few(t, image.shape[-1]):
            keys, values = self.project_keys(*(_merged(x) for x in (placed, image)))
            return self.to_shared(q.reshape(b * n, 1, t, d), keys, values).reshape(b, n, t, d)
        wk, wv = (self._kernel(proj) for proj in (self.k_proj, self.v_proj))
        q = self._product(self._queries(q), wk.transpose(1, 2, 0))
        weights, total = _softmax_parts(self._product(q.reshape(b, n, -1, d), placed))
        # Not image times columns: XLA:CPU takes up to five times as long (bfloat16, AMX).
        mixed = self._product(weights, image, "bnkl,bndl->bnkd") / total
        mixed = mixed.reshape(b, n, -1, t, d)
        bias = self.v_proj.weights(d).bias.reshape(mixed.shape[2], 1, -1)
        return self._out(self._product(mixed, wv.swapaxes(0, 1)) + bias)

    def from_image(self, placed, k, v, live) -> jax.Array:
        """Pixels [B, N, D, L] attend to tokens k and v [B, N, T, D]: [B, N, D, L]."""
        b, n, t, d = k.shape
        if not self._few(t, placed.shape[-1]):
            k, v, live = (x.reshape(b * n, 1, *x.shape[2:]) for x in (k, v, live))
            queries = self.project_queries(_merged(placed))
            return self.from_shared(queries, k, v, live).reshape(b, n, d, -1)
        k = self._heads(self.k_proj(k)) * self._scale
        folded = self._product(k, self._kernel(self.q_proj).transpose(1, 2, 0))
        bias = self.q_proj.weights(d).bias.reshape(k.shape[2], -1, 1)
        scores = self._product(folded.reshape(b, n, -1, d), placed)
        scores = scores.reshape(*k.shape[:4], -1) + self._product(k, bias)
        return self._from_scores(scores, v, live)

    def project_keys(self, placed, image) -> tuple[jax.Array, jax.Array]:
        """Keys [B, H, C, L] and values [B, H, L, C] of pixels [B, D, L]."""
        values = self._project(self.v_proj, image)
        return self._project(self.k_proj, placed), values.mT

    def project_queries(self, placed) -> jax.Array:
        """Queries [B, H, C, L] of pixels [B, D, L]."""
        return self._project(self.q_proj, placed)

    def to_shared(self, q, keys, values) -> jax.Array:
        """Tokens q [B, N, T, D] attend to what `project_keys` gave: [B, N, T, D]."""
        b, n, t, _ = q.shape
        q = self._queries(q).swapaxes(1, 2).reshape(b, keys.shape[1], n * t, -1)
        weights, total = _softmax_parts(self._product(q, keys))
        out = self._product(weights, values) / total
        return self._out(out.reshape(b, -1, n, t, out.shape[-1]).swapaxes(1, 2))

    def from_shared(self, queries, k, v, live) -> jax.Array:
        """What `project_queries` gave attends to tokens k and v [B, N, T, D]: [B, N, D, L]."""
        b, n, t, _ = k.shape
        k = (self._heads(self.k_proj(k)) * self._scale).swapaxes(1, 2)
        scores = self._product(k.reshape(b, queries.shape[1], n * t, -1), queries)
        scores = scores.reshape(b, -1, n, t, scores.shape[-1]).swapaxes(1, 2)
        return self._from_scores(scores, v, live)

    def _from_scores(self, scores, v, live) -> jax.Array:
        """Scores float32 [B, N, H, T, L] and values v [B, N, T, D] -> [B, N, D, L]."""
        b, n, heads, t, length = scores.shape
        scores = jnp.where(live[:, :, None, :, None], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=3)
        v = self._heads(self.v_proj(v))
        wo = self.out_proj.weights(self.width)
        if self._few(t, length):
            folded = self._product(v, wo.kernel.reshape(heads, -1, wo.kernel.shape[1]))
            folded = folded.reshape(b, n, heads * t, -1).mT
            out = self._product(folded, weights.reshape(b, n, heads * t, length))
        else:
            out = self._product(v.mT, weights).reshape(b, n, self.width, length)
            out = self._product(turned(wo.kernel), out)
        return out + wo.bias[:, None]

    def _product(self, a, b, axes: str | None = None) -> jax.Array:
        """A matrix product in the config's dtype, or one by its axes, summed in float32."""
        c = self.config
        product = jnp.matmul if axes is None else functools.partial(jnp.einsum, axes)
        return product(
            a.astype(c.dtype),
            b.astype(c.dtype),
            precision=precision(c),
            preferred_element_type=jnp.float32,
        )

    def _project(self, proj, x) -> jax.Array:
        """[B, D, L] -> [B, H, C, L] in the config's dtype."""
        weights = proj.weights(self.config.embed_dim)
        y = self._product(turned(weights.kernel), x) + weights.bias[:, None]
        return y.reshape(x.shape[0], self.config.decoder_heads, -1, x.shape[-1]).astype(
            self.config.dtype
        )

    def _few(self, tokens: int, pixels: int) -> bool:
        return 8 * tokens < pixels and tokens * self.config.decoder_heads <= self.width

    @property
    def _scale(self) -> float:
        return (self.width // self.config.decoder_heads) ** -0.5

    def _kernel(self, proj) -> jax.Array:
        """[D, H, C]."""
        kernel = proj.weights(self.config.embed_dim).kernel
        return kernel.reshape(len(kernel), self.config.decoder_heads, -1)

    def _queries(self, q) -> jax.Array:
        return self._heads(self.q_proj(q)) * self._scale

    def _heads(self, x) -> jax.Array:
        """[B, N, T, H * C] -> [B, N, H, T, C]."""
        return x.reshape(*x.shape[:-1], self.config.decoder_heads, -1).swapaxes(2, 3)

    def _out(self, x) -> jax.Array:
        """[B, N, H, T, C] -> float32 [B, N, T, D]."""
        x = x.swapaxes(2, 3)
        return self.out_proj(x.reshape(*x.shape[:-2], self.width)).astype(jnp.float32)


def _merged(x):
    """[B, N, ..] -> [B * N, ..]."""
    return x.reshape(-1, *x.shape[2:])


def _softmax_parts(scores):
    """Weights [..., L] of a softmax and what the result is to be divided by [..., 1]."""
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return weights, weights.sum(-1, keepdims=True)


class TwoWayLayer(nn.Module):
    """Self-attention, tokens to image, MLP, image to tokens; post-norm."""

    config: SamConfig
    first: bool

    def setup(self) -> None:
        c = self.config
        self.self_attn = CrossAttention(c)
        self.token_to_image = CrossAttention(c, c.attention_downsample)
        self.image_to_token = CrossAttention(c, c.attention_downsample)
        for i in range(1, 4):
            setattr(self, f"norm{i}", norm(DECODER_EPS, f"norm{i}"))
        self.norm4 = ChannelNorm(DECODER_EPS, axis=-2)
        self.lin1 = dense(c, c.decoder_mlp_width, "lin1")
        self.lin2 = dense(c, c.embed_dim, "lin2")
        self.dropout = nn.Dropout(c.decoder_dropout)

    def shared(self, image, positions) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys, values and queries of images [B, D, L]: see `ImageParts`."""
        placed = image + positions
        queries = self.image_to_token.project_queries(placed)
        return *self.token_to_image.project_keys(placed, image), queries

    def __call__(self, tokens, image, token_pe, positions, live, train: bool, parts=None):
        """As `TwoWayTransformer`; with `parts` the image [B, 1, D, L] is shared by the prompts."""
        drop = functools.partial(self.dropout, deterministic=not train)
        if self.first:  # no positions, and the result replaces the tokens
            tokens = drop(self.self_attn.among_tokens(tokens, tokens, live))
        else:
            tokens += drop(self.self_attn.among_tokens(tokens + token_pe, tokens, live))
        tokens = self.norm1(tokens)

        q = tokens + token_pe
        if parts is None:
            found = self.token_to_image.to_image(q, image + positions, image)
        else:
            found = self.token_to_image.to_shared(q, parts.keys, parts.values)
        tokens = self.norm2(tokens + drop(found))

        found = self.lin2(nn.relu(self.lin1(tokens))).astype(jnp.float32)
        tokens = self.norm3(tokens + drop(found))

        k = tokens + token_pe
        if parts is None:
            found = self.image_to_token.from_image(image + positions, k, tokens, live)
        else:
            found = self.image_to_token.from_shared(parts.queries, k, tokens, live)
        return tokens, self.norm4(image + drop(found))


class TwoWayTransformer(nn.Module):
    """Layers of exchange, then a last attention from the tokens to the image."""

    config: SamConfig

    def setup(self) -> None:
        c = self.config
        for i in range(c.decoder_depth):
            setattr(self, f"layer_{i}", TwoWayLayer(c, first=i == 0))
        self.final_attn = CrossAttention(c, c.attention_downsample)
        self.norm_final = norm(DECODER_EPS, "norm_final")
        self.dropout = nn.Dropout(c.decoder_dropout)

    def image_parts(self, image, positions) -> ImageParts:
        """What needs no prompt, of images [B, D, L] and positions [D, L]."""
        return ImageParts(image, positions, *self.layer_0.shared(image, positions))

    def __call__(self, tokens, image, positions, live, train: bool = False, parts=None):
        """Tokens and the image after the exchange.

        Args:
          tokens: float32 [B, N, T, D], live: bool [B, N, T].
          image: float32 [B, N, D, L], or [B, 1, D, L] if all prompts share it.
          positions: float32 [D, L].
          train: whether dropout is on.
          parts: `image_parts` of a shared image, where they are at hand.

        Returns:
          float32 [B, N, T, D] and [B, N, D, L].
        """
        token_pe = tokens
        if parts is None and image.shape[1] == 1:
            parts = self.image_parts(image[:, 0], positions)
        for i in range(self.config.decoder_depth):
            layer = getattr(self, f"layer_{i}")
            tokens, image = layer(tokens, image, token_pe, positions, live, train, parts)
            parts = None
        found = self.final_attn.to_image(tokens + token_pe, image + positions, image)
        tokens = tokens + self.dropout(found, deterministic=not train)
        return self.norm_final(tokens), image
