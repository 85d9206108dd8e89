"""What is exported: three pure functions of a model, and what each takes and gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.models.config import SamConfig
from sam_jax.models.prompt_encoder import Prompts
from sam_jax.models.sam import SamModel, normalise
from sam_jax.models.transformer import ImageParts


class Signature(NamedTuple):
    """A function of (variables, arrays), and its arrays.

    Attributes:
      function: gives a tuple of arrays.
      inputs: a table each: "name", "dtype", "shape" (with "b" images and "n" prompts) and, where
        the name does not say it, "about".
      outputs: likewise.
    """

    function: Callable
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def with_sizes(self, **sizes: int) -> Signature:
        """The same for a fixed number of images or prompts: b=1, n=1."""

        def fixed(tables: list[dict]) -> list[dict]:
            return [x | {"shape": [sizes.get(n, n) for n in x["shape"]]} for x in tables]

        return Signature(self.function, fixed(self.inputs), fixed(self.outputs))


def signatures(config: SamConfig, variables: Any, side: int, slots: int) -> dict[str, Signature]:
    """ "encoder", "decoder" and "decoder-mask" (of prompts with a mask).

    Args:
      config: the model's.
      variables: its arrays, or their shapes.
      side: of the frame, pixels.
      slots: of a prompt.
    """
    grid, k, d = side // config.patch_size, config.num_masks, config.embed_dim

    def apply(v, *args, **options):
        return SamModel(config).apply(v, *args, **options)

    def parts_of(v, features):
        return apply(v, features, method="image_parts")

    def encode(v, images, input_hw):
        features = apply(v, normalise(images, input_hw), method="encode")
        return features, *parts_of(v, features)

    def decode(v, points, labels, features, *parts):
        prompts, parts = Prompts(points, labels), ImageParts(*parts)
        return apply(v, features, prompts, parts=parts, method="decode")

    def decode_mask(v, points, labels, features, masks, has_mask):
        return apply(v, features, Prompts(points, labels, masks, has_mask), method="decode")

    features = jax.ShapeDtypeStruct((1, grid, grid, d), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    parts = jax.eval_shape(parts_of, shapes, features)
    image = [
        _array("images", "uint8", ["b", side, side, 3], "0..255, red, green, blue: preprocess"),
        _array("input_hw", "int32", ["b", 2], "height and width of the photo in the frame, pixels"),
    ]
    embedded = _array("features", "float32", ["b", grid, grid, d], "the image embedding")
    shared = [
        _array(name, x.dtype, ["b", *x.shape[1:]] if x.ndim > 2 else list(x.shape))
        for name, x in parts._asdict().items()
    ]
    prompts = [
        _array("points", "float32", ["b", "n", slots, 2], "x, y in pixels of the frame"),
        _array("labels", "int32", ["b", "n", slots], "see labels"),
        embedded,
    ]
    masks = [
        _array("masks", "float32", ["b", "n", 4 * grid, 4 * grid], "logits over the whole frame"),
        _array("has_mask", "bool", ["b", "n"], "which prompts have one"),
    ]
    out = [
        _array("logits", "float32", ["b", "n", k, 4 * grid, 4 * grid], "over the whole frame"),
        _array("iou", "float32", ["b", "n", k], "predicted of each mask"),
    ]
    return {
        "encoder": Signature(encode, image, [embedded, *shared]),
        "decoder": Signature(decode, [*prompts, *shared], out),
        "decoder-mask": Signature(decode_mask, [*prompts, *masks], out),
    }


def _array(name: str, dtype, shape: list, about: str = "") -> dict[str, Any]:
    found = {"name": name, "dtype": str(np.dtype(dtype)), "shape": shape}
    return found | ({"about": about} if about else {})


def closed(signature: Signature, variables: Any) -> Callable:
    """The function with its weights inside."""
    return functools.partial(signature.function, variables)
