"""A teacher: another model whose embeddings of the training pictures are learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sam_jax.checkpoint.load import load
from sam_jax.checkpoint.mobile_sam import is_mobile_sam_file, read_mobile_sam
from sam_jax.models.config import SamConfig
from sam_jax.models.sam import SamModel, normalise
from sam_jax.models.tiny_vit import tiny_vit
from sam_jax.training.config import TrainConfig
from sam_jax.training.sharding import replicated
from train.data import stage_batches


class Teacher:
    """Adds to batches what a teacher's encoder makes of their images.

    Args:
      name: a model's name or file (`sam_jax.load`), or MobileSAM's checkpoint.
      model: the config of the model that learns; products are computed in its dtype.
      mesh: of the devices; each has the teacher's parameters, and its share of the images.

    Raises:
      ValueError: nothing that can be read is there, or its embeddings have another shape.
    """

    def __init__(self, name: str, model: SamConfig, mesh: Mesh) -> None:
        params, self._encode = _encoder(name, model.dtype)
        self._params = jax.device_put(params, replicated(mesh))
        side = model.image_size
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        given = jax.eval_shape(self._encode, self._params, images, sizes).shape[1:]
        wanted = (model.grid, model.grid, model.embed_dim)
        if given != wanted:
            raise ValueError(
                f"teacher: {name} makes embeddings {given} of images of {side} pixels, and the "
                f"model that learns {wanted}; give a teacher of its patch_size and embed_dim"
            )

    def __call__(self, batch: dict) -> dict:
        """The batch with "teacher", float32 [B, h, w, D]."""
        return batch | {"teacher": self._encode(self._params, batch["image"], batch["image_hw"])}


def _encoder(name: str, dtype: str) -> tuple[dict, Callable]:
    """Parameters, and (parameters, uint8 images, their sizes) -> embeddings, compiled."""
    if Path(name).is_file() and is_mobile_sam_file(name):
        params, _ = read_mobile_sam(name)
        return params, jax.jit(lambda p, x, hw: tiny_vit(p, normalise(x, hw), dtype))
    try:
        sam = load(name, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"teacher: {error}") from error
    params = {"image_encoder": sam.params["params"]["image_encoder"]}

    def encode(params, images, image_hw):
        variables = {"params": params}
        return SamModel(sam.config).apply(variables, normalise(images, image_hw), method="encode")

    return params, jax.jit(encode)


def with_neck_like(config: TrainConfig, variables: dict, teacher: Teacher) -> dict:
    """Variables whose encoder, if its neck is fresh, begins with the teacher's mean and deviation.

    Each channel of the last norm gets those of the teacher's embeddings of the first batch: a fresh
    neck's results are several times as large as a SAM's, and a scale is learned slowly. Every
    process looks at the same pictures.
    """
    encoder = variables["params"]["image_encoder"]
    norm = jax.device_get(encoder["neck_norm2"])
    if (norm["scale"] != 1).any() or (norm["bias"] != 0).any():
        return variables
    batches = stage_batches(config, 0, 0, prefetch=1)
    try:
        batch = next(batches)
    finally:
        batches.close()
    taught = teacher({name: batch[name] for name in ("image", "image_hw")})["teacher"]
    inside = np.arange(taught.shape[1]) * config.model.patch_size < batch["image_hw"][:, :, None]
    pixels = np.asarray(taught)[inside[:, 0, :, None] & inside[:, 1, None, :]]
    encoder = encoder | {"neck_norm2": {"scale": pixels.std(0), "bias": pixels.mean(0)}}
    return variables | {"params": variables["params"] | {"image_encoder": encoder}}
