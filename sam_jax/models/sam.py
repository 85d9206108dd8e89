"""Segment Anything: the three parts as one module of pure functions."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.config import SamConfig
from sam_jax.models.image_encoder import ImageEncoder
from sam_jax.models.mask_decoder import MaskDecoder, Wanted
from sam_jax.models.prompt_encoder import EMPTY, PromptEncoder, Prompts
from sam_jax.models.tiny_vit import TinyViT
from sam_jax.models.transformer import ImageParts

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class SamModel(nn.Module):
    """The model. `apply(variables, ..., method="encode")`, then `method="decode"`.

    `variables` is {"params": ..., "buffers": ...}; the one buffer is the matrix of the positional
    encoding, which is neither trained nor decayed.
    """

    config: SamConfig

    def setup(self) -> None:
        encoder = {"vit": ImageEncoder, "tiny_vit": TinyViT}[self.config.encoder]
        self.image_encoder = encoder(self.config)
        self.prompt_encoder = PromptEncoder(self.config)
        self.mask_decoder = MaskDecoder(self.config)

    def encode(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Normalised, padded images float [B, H, W, 3] -> embeddings float32 [B, h, w, D]."""
        return self.image_encoder(images, train)

    def text_tokens(self, text: jax.Array) -> jax.Array:
        """Text embeddings [..., T] of length 1 -> the tokens [..., D] that the decoder gets."""
        return self.prompt_encoder.text_tokens(text).astype(jnp.float32)

    def image_parts(self, embedding: jax.Array) -> ImageParts:
        """What the decoder makes of embeddings [B, h, w, D] before any prompt is there.

        Given to `decode` it saves that work for every prompt that comes without a mask.
        """
        hw = embedding.shape[1:3]
        positions = self.prompt_encoder.dense_positions(hw)
        return self.mask_decoder.image_parts(embedding, positions, self.prompt_encoder.plain_map())

    def decode(
        self,
        embedding: jax.Array,
        prompts: Prompts,
        train: bool = False,
        wanted: Wanted = "all",
        parts: ImageParts | None = None,
        least: jax.Array | None = None,
    ):
        """Embeddings [B, h, w, D] and prompts -> logits [B, N, K, 4h, 4w], IoU [B, N, K].

        K is 4: index 0 is the mask for several prompts, 1-3 the whole, part and subpart of one
        ambiguous prompt. Points are pixels of the padded model frame [h * patch, w * patch].
        With `wanted` "several" K is 3 (index 0 left out), with "one" it is 1. `parts` is what
        `image_parts` gave for the embeddings; it goes unused where prompts have masks. Where no
        predicted IoU of the call is above `least`, its masks are not computed, and 0.
        """
        if embedding.ndim != 4 or embedding.shape[-1] != self.config.embed_dim:
            raise ValueError(
                f"embedding: expected [B, h, w, {self.config.embed_dim}], got {embedding.shape}"
            )
        b, hw = embedding.shape[0], embedding.shape[1:3]
        if prompts.points.shape[0] != b or prompts.labels.shape != prompts.points.shape[:3]:
            raise ValueError(
                f"prompts: expected points [{b}, N, P, 2] and labels [{b}, N, P], got "
                f"{prompts.points.shape} and {prompts.labels.shape}"
            )
        tokens, live, dense_map = self.prompt_encoder(prompts, hw)
        parts = parts if prompts.masks is None else None
        image_pe = self.prompt_encoder.dense_positions(hw) if parts is None else None
        return self.mask_decoder(
            embedding, image_pe, tokens, live, dense_map, train, wanted, parts, least
        )

    def __call__(self, images: jax.Array, prompts: Prompts, train: bool = False):
        """Encodes and decodes: logits [B, N, K, 4h, 4w] and predicted IoU [B, N, K]."""
        return self.decode(self.encode(images, train), prompts, train)


@functools.partial(jax.jit, static_argnums=0)
def init(config: SamConfig, key: jax.Array) -> dict:
    """Fresh variables {"params", "buffers"} of a model; `jax.eval_shape` of it gives the shapes.

    In the decoder's cross attentions the keys' projections start as copies of the queries': a
    prompt then begins by attending to the place that it names (ours; the released code draws both
    independently; what it saves was not measured).
    """
    side = config.patch_size
    prompts = Prompts(
        points=jnp.zeros((1, 1, 1, 2)),
        labels=jnp.full((1, 1, 1), EMPTY, jnp.int32),
        text=jnp.zeros((1, 1, config.text_width)) if config.text_width else None,
    )
    variables = SamModel(config).init(key, jnp.zeros((1, side, side, 3)), prompts)
    transformer = variables["params"]["mask_decoder"]["transformer"]
    for layer in transformer.values():
        for attention in (layer, layer.get("token_to_image"), layer.get("image_to_token")):
            if attention and "q_proj" in attention:
                attention["k_proj"]["kernel"] = jnp.copy(attention["q_proj"]["kernel"])
    return variables


def normalise(images: jax.Array, image_hw: jax.Array | None = None) -> jax.Array:
    """uint8 or float [B, H, W, 3] in 0..255 -> normalised float32, zero outside `image_hw`.

    `image_hw` int [B, 2] is the size of each image's content at the top left; the rest is padding,
    which is zero *after* normalising.
    """
    x = (images.astype(jnp.float32) - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)
    if image_hw is None:
        return x
    inside = (jnp.arange(x.shape[1])[:, None] < image_hw[:, 0, None, None]) & (
        jnp.arange(x.shape[2])[None, :] < image_hw[:, 1, None, None]
    )
    return jnp.where(inside[..., None], x, 0.0)
