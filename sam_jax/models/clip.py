"""CLIP (Radford et al. 2021): an image tower and a text tower whose embeddings meet.

The numbers are those of Hugging Face's `CLIPModel` with the same weights. Hidden states are had by
`apply(..., mutable="intermediates", capture_intermediates=True)`: under "image" or "text", what
`norm_pre` (image) and each `block_<i>` gave, [B, T, D], and what `norm_post` or `norm_final` gave,
the pooled state [B, D] before its projection.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.layers import Dense, gelu, linear, norm

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of pixels in 0..1 (openai/CLIP clip/clip.py)."""
LEGACY_EOS = 2
"""The end token's id in configs from before it was written down: the highest id is meant."""
FIRST_SCALE = math.log(1 / 0.07)
"""What the logarithm of the similarities' factor starts as (paper section 2.5)."""


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """The transformer of one tower."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Of the MLPs; OpenAI's models have "quick_gelu", x * sigmoid(1.702 x)."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} does not divide into {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Everything that decides the shapes of the parameters, and how they are computed with."""

    image: TowerConfig
    text: TowerConfig
    embed_dim: int
    """Width of the embeddings that both towers end in."""
    image_size: int
    patch_size: int
    vocab_size: int = 49408
    context: int = 77
    """The most tokens of a text, its begin and end included."""
    eos_id: int = 49407
    """Id of the token that ends a text; where it is 2 (`LEGACY_EOS`) the highest id does."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in. Parameters, softmax, norms and sums: float32."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: expected a multiple of patch_size={self.patch_size}, "
                f"got {self.image_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along an image's side."""
        return self.image_size // self.patch_size

    def replace(self, **changes) -> ClipConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU that OpenAI's models were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}

_TEXT_B = TowerConfig(512, 12, 8, 2048)
CLIP_VIT_B_32 = ClipConfig(TowerConfig(768, 12, 12, 3072), _TEXT_B, 512, 224, 32)
CLIP_VIT_B_16 = ClipConfig(TowerConfig(768, 12, 12, 3072), _TEXT_B, 512, 224, 16)
CLIP_VIT_L_14_336 = ClipConfig(
    TowerConfig(1024, 24, 16, 4096), TowerConfig(768, 12, 12, 3072), 768, 336, 14
)
CLIP_TINY = ClipConfig(
    TowerConfig(128, 4, 4, 512),
    TowerConfig(128, 3, 4, 512),
    128,
    64,
    8,
    vocab_size=256,
    eos_id=255,
)
"""Small enough to train on a CPU. `vocab_size` and `eos_id` come from its tokenizer: see
`sam_jax.inference.text.with_tokenizer`."""


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None, dtype: str
) -> jax.Array:
    """Softmax attention, the weights in float32.

    Args:
      q, k, v: [B, T, H, C], H heads of C channels.
      allowed: bool, broadcast to [B, H, T, T] (query, key), or None. A query that may attend to
        nothing attends to everything alike.
      dtype: of the products' factors.

    Returns:
      float32 [B, T, H, C].
    """
    exact = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    how = {"precision": exact, "preferred_element_type": jnp.float32}
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k, **how) * q.shape[-1] ** -0.5
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v, **how)


class Attention(nn.Module):
    """Multi-head self-attention over [B, T, D]; `allowed` as in `attend`."""

    tower: TowerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
        t = self.tower
        std = t.width**-0.5
        q, k, v = (
            Dense(t.width, self.dtype, kernel_init=nn.initializers.normal(std), name=name)(
                x
            ).reshape(*x.shape[:-1], t.heads, t.width // t.heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = attend(q, k, v, allowed, self.dtype).reshape(x.shape)
        return Dense(t.width, self.dtype, kernel_init=_branch_end(t), name="out_proj")(out)


class Block(nn.Module):
    """A pre-norm transformer block over float32 [B, T, D]; `allowed` as in `attend`."""

    tower: TowerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
        t = self.tower
        y = norm(t.norm_eps, "norm1")(x).astype(self.dtype)
        x = x + Attention(t, self.dtype, name="attn")(y, allowed)
        y = norm(t.norm_eps, "norm2")(x).astype(self.dtype)
        first = nn.initializers.normal((2 * t.width) ** -0.5)
        y = Dense(t.mlp_width, self.dtype, kernel_init=first, name="lin1")(y)
        y = ACTIVATIONS[t.activation](y)
        return x + Dense(t.width, self.dtype, kernel_init=_branch_end(t), name="lin2")(y)


def _branch_end(t: TowerConfig):
    """Initialiser of what is added to the stream: the deeper the tower, the less."""
    return nn.initializers.normal(t.width**-0.5 * (2 * t.depth) ** -0.5)


def object_attention(object_mask: jax.Array) -> jax.Array:
    """Which token attends to which in the last layer, if the class token is to see an object.

    The class token attends to the patches inside the mask and to itself. Itself, because the
    restriction (Segment Anything section 7.5, appendix D) is to "positions inside the mask", and it
    has no position in the image; it is one of its own keys in all of CLIP's training, and what it
    says of the rest of the image is in the result anyway, by the residual. A mask without any patch
    is no restriction. The patches attend to everything.

    Args:
      object_mask: bool [B, gh, gw].

    Returns:
      bool [B, 1, 1 + L, 1 + L] (query, key), the class token first and L = gh * gw.
    """
    inside = object_mask.reshape(object_mask.shape[0], -1)
    inside = inside | ~inside.any(1, keepdims=True)
    tokens = 1 + inside.shape[1]
    allowed = jnp.ones((inside.shape[0], 1, tokens, tokens), bool)
    return allowed.at[:, 0, 0, 1:].set(inside)


class ClipImage(nn.Module):
    """Normalised images [B, S, S, 3] -> embeddings float32 [B, T], not of length 1."""

    config: ClipConfig

    @nn.compact
    def __call__(self, images: jax.Array, object_mask: jax.Array | None = None) -> jax.Array:
        c, t = self.config, self.config.image
        b, g, p = images.shape[0], c.grid, c.patch_size
        if images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(
                f"images: expected [B, {c.image_size}, {c.image_size}, 3], got {images.shape}; "
                "resize them to the tower's size"
            )
        allowed = None
        if object_mask is not None:
            if object_mask.shape != (b, g, g) or object_mask.dtype != bool:
                raise ValueError(
                    f"object_mask: expected bool [{b}, {g}, {g}], one for each patch, got "
                    f"{object_mask.dtype} {object_mask.shape}"
                )
            allowed = object_attention(object_mask)
        normal = nn.initializers.normal(t.width**-0.5)
        x = images.reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, g * g, -1)
        x = Dense(t.width, c.dtype, use_bias=False, name="patch_embed")(x).astype(jnp.float32)
        class_token = self.param("class_token", normal, (t.width,))
        positions = self.param("pos_embed", normal, (1 + g * g, t.width))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (b, 1, t.width)), x], 1) + positions
        x = norm(t.norm_eps, "norm_pre")(x)
        for i in range(t.depth):
            last = i == t.depth - 1
            x = Block(t, c.dtype, name=f"block_{i}")(x, allowed if last else None)
        return _project(c, t, norm(t.norm_eps, "norm_post")(x[:, 0]))


class ClipText(nn.Module):
    """Tokens' ids int [B, T] -> embeddings float32 [B, D], not of length 1."""

    config: ClipConfig

    @nn.compact
    def __call__(self, ids: jax.Array, live: jax.Array | None = None) -> jax.Array:
        c, t = self.config, self.config.text
        if ids.ndim != 2 or not 0 < ids.shape[1] <= c.context:
            raise ValueError(f"ids: expected [B, T] with T of 1 to {c.context}, got {ids.shape}")
        if live is not None and live.shape != ids.shape:
            raise ValueError(f"live: expected {ids.shape}, as the ids, got {live.shape}")
        length = ids.shape[1]
        normal = nn.initializers.normal
        table = self.param("token_embed", normal(0.02), (c.vocab_size, t.width))
        positions = self.param("pos_embed", normal(0.01), (c.context, t.width))
        allowed = jnp.tri(length, dtype=bool)[None, None]
        if live is not None:
            allowed = allowed & live.astype(bool)[:, None, None]
        x = table[ids] + positions[:length]
        for i in range(t.depth):
            x = Block(t, c.dtype, name=f"block_{i}")(x, allowed)
        x = x[jnp.arange(len(ids)), end_positions(ids, c.eos_id)]
        return _project(c, t, norm(t.norm_eps, "norm_final")(x))


def end_positions(ids: jax.Array, eos_id: int) -> jax.Array:
    """int [B]: where each text [B, T] ends: at its first `eos_id`, or at 0 if it has none.

    With `LEGACY_EOS` at its highest id, the end token's in OpenAI's vocabulary; transformers'
    CLIPTextModel has both rules.
    """
    return jnp.argmax(ids if eos_id == LEGACY_EOS else ids == eos_id, 1)


def _project(c: ClipConfig, t: TowerConfig, pooled: jax.Array) -> jax.Array:
    normal = nn.initializers.normal(t.width**-0.5)
    layer = Dense(c.embed_dim, c.dtype, use_bias=False, kernel_init=normal, name="proj")
    return linear(pooled, layer.weights(t.width), c.dtype)


class Scale(nn.Module):
    """The factor of the similarities, kept as its logarithm; made only where it is used."""

    @nn.compact
    def __call__(self) -> jax.Array:
        return jnp.exp(self.param("log", nn.initializers.constant(FIRST_SCALE), ()))


class ClipModel(nn.Module):
    """Both towers. `apply(params, ..., method="encode_image")`, "encode_text" or "similarity".

    `params` is {"params": {"image", "text", "logit_scale"}}; a method needs its own part alone, so
    that {"params": {"text": ...}} is enough for "encode_text".
    """

    config: ClipConfig

    def setup(self) -> None:
        self.image = ClipImage(self.config)
        self.text = ClipText(self.config)
        self.logit_scale = Scale()

    def encode_image(
        self,
        images: jax.Array,
        object_mask: jax.Array | None = None,
        normalise: bool = False,
    ) -> jax.Array:
        """Images -> embeddings.

        Args:
          images: [B, S, S, 3] as `clip_normalise` gives them.
          object_mask: bool [B, gh, gw] over the patches: the embedding is to be that of what is
            inside; see `object_attention`.
          normalise: whether embeddings are to have length 1.

        Returns:
          float32 [B, T], T = config.embed_dim.

        Raises:
          ValueError: the images or masks are of another size.
        """
        return _finish(self.image(images, object_mask), normalise)

    def encode_text(
        self, ids: jax.Array, live: jax.Array | None = None, normalise: bool = False
    ) -> jax.Array:
        """Tokens -> embeddings.

        Args:
          ids: int [B, L], L at most config.context, below config.vocab_size; what follows the end
            token changes nothing.
          live: bool [B, L], which tokens may be attended to; None: all, each up to its own place.
          normalise: whether embeddings are to have length 1.

        Returns:
          float32 [B, T].

        Raises:
          ValueError: the ids are too long, or the two shapes differ.
        """
        return _finish(self.text(ids, live), normalise)

    def similarity(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        """Embeddings [B, T] and [N, T] -> logits float32 [B, N]: scaled cosines."""
        images, texts = unit_length(images), unit_length(texts)
        cosines = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
        return self.logit_scale() * cosines

    def __call__(self, images: jax.Array, ids: jax.Array, live: jax.Array | None = None):
        """Images [B, S, S, 3] and texts [N, L] -> logits float32 [B, N]."""
        return self.similarity(self.encode_image(images), self.encode_text(ids, live))


def _finish(embeddings: jax.Array, normalise: bool) -> jax.Array:
    return unit_length(embeddings) if normalise else embeddings


def unit_length(x: jax.Array) -> jax.Array:
    """[..., T] divided by its Euclidean norm; zeros stay zeros."""
    squares = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))


@functools.partial(jax.jit, static_argnums=(0, 2))
def init_clip(config: ClipConfig, key: jax.Array, text_tower_only: bool = False) -> dict:
    """Fresh {"params"} of a model, or of its text tower; `jax.eval_shape` of it gives the shapes.

    Initialised as in openai/CLIP clip/model.py, but for the patches' kernel (Glorot's uniform).
    """
    model, ids = ClipModel(config), jnp.zeros((1, 1), jnp.int32)
    if text_tower_only:
        return model.init(key, ids, method="encode_text")
    return model.init(key, jnp.zeros((1, config.image_size, config.image_size, 3)), ids)


def clip_normalise(images: jax.Array) -> jax.Array:
    """uint8 or float [B, S, S, 3] in 0..255 -> float32 with CLIP's mean and deviation taken out."""
    return (images.astype(jnp.float32) / 255 - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)
