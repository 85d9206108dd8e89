"""A teacher: another model whose embeddings of the training pictures are learned."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sam_jax.checkpoint.load import load
from sam_jax.models.attention import images_over
from sam_jax.models.sam import SamModel, normalise
from sam_jax.training.config import TrainConfig
from sam_jax.training.sharding import batch_sharding, global_batch, replicated
from train.data import stage_batches


class Teacher:
    """Adds to batches what a teacher's encoder makes of their images.

    Args:
      config: the run's. Of its model the sizes must be the teacher's, and products are computed in
        its dtype; images go through in `devices.accumulate` parts, enlarged by `teacher_enlarge`.
      mesh: of the devices; each has the teacher's parameters, and its share of the images.

    Raises:
      ValueError: nothing that can be read is there, or its embeddings have another shape.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh) -> None:
        model, self._mesh = config.model, mesh
        try:
            params, encode = _encoder(config.teacher, model.dtype, config.teacher_enlarge)
            side = model.image_size
            image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
            size = jax.ShapeDtypeStruct((1, 2), jnp.int32)
            given = jax.eval_shape(encode, params, image, size).shape[1:]
        except ValueError as error:
            raise ValueError(f"teacher: {error}") from error
        wanted = (model.grid, model.grid, model.embed_dim)
        if given != wanted:
            raise ValueError(
                f"teacher: {config.teacher} makes embeddings {given} of images of {side} pixels, "
                f"and the model that learns {wanted}; give a teacher of its patch_size and "
                "embed_dim"
            )
        everywhere, split = replicated(mesh), batch_sharding(mesh)
        self._params = jax.jit(lambda x: x, out_shardings=everywhere)(params)
        self._encode = jax.jit(
            _in_parts(encode, config.devices.accumulate),
            in_shardings=(everywhere, split, split),
            out_shardings=split,
        )

    def __call__(self, batch: dict) -> dict:
        """A batch on the mesh with "teacher" besides, float32 [B, h, w, D]."""
        with images_over(self._mesh):
            taught = self._encode(self._params, batch["image"], batch["image_hw"])
        return batch | {"teacher": taught}

    def statistics(self, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation [D] of its embeddings of the first batch, where the photos are.

        Args:
          config: the run's.
        """
        batches = stage_batches(
            *(config, 0, 0),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        try:
            batch = next(batches)
        finally:
            batches.close()
        wanted = {name: batch[name] for name in ("image", "image_hw")}
        patch = config.model.patch_size

        @jax.jit
        def measured(taught, image_hw):
            y, x = (jnp.arange(side) * patch for side in taught.shape[1:3])
            inside = (y[:, None] < image_hw[:, :1, None]) & (x < image_hw[:, 1:, None])
            inside = inside[..., None].astype(jnp.float32)
            mean = (taught * inside).sum((0, 1, 2)) / inside.sum()
            variance = (jnp.square(taught - mean) * inside).sum((0, 1, 2)) / inside.sum()
            found = jnp.stack([mean, jnp.sqrt(variance)])
            return jax.lax.with_sharding_constraint(found, replicated(self._mesh))

        taught = self(global_batch(self._mesh, wanted))
        mean, deviation = jax.device_get(measured(taught["teacher"], taught["image_hw"]))
        return mean, deviation


def _encoder(name: str, dtype: str, enlarge: int) -> tuple[dict, Callable]:
    """Parameters, and (parameters, uint8 images, their sizes) -> embeddings.

    Enlarging mixes the outermost pixels of a photo with the padding beside them.
    """
    sam = load(name, dtype=dtype)
    config = sam.config

    def encode(params, images, image_hw):
        b, h, w, _ = images.shape
        large = (b, h * enlarge, w * enlarge, 3)
        images = jax.image.resize(images.astype(jnp.float32), large, "linear")
        images = normalise(images, image_hw * enlarge)
        found = SamModel(config).apply({"params": params}, images, method="encode")
        return nn.avg_pool(found, (enlarge, enlarge), (enlarge, enlarge))

    return jax.device_get({"image_encoder": sam.params["params"]["image_encoder"]}), encode


def _in_parts(encode: Callable, parts: int) -> Callable:
    """`encode` of a batch in parts, one after the other, split as the training step splits it."""
    if parts == 1:
        return encode

    def in_parts(params, *arrays):
        split = [x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
        found = jax.lax.map(lambda part: encode(params, *part), split)
        return found.swapaxes(0, 1).reshape(-1, *found.shape[2:])

    return in_parts


def with_neck_like(config: TrainConfig, variables: dict, teacher: Teacher) -> dict:
    """Variables whose encoder, if its neck is fresh, begins with the teacher's mean and deviation.

    A fresh neck's results are several times as large as a SAM's, and a scale is learned slowly.

    Args:
      config: the run's, with its first batch.
      variables: {"params", "buffers"}.
      teacher: the run's.
    """
    encoder = variables["params"]["image_encoder"]
    norm = jax.device_get(encoder["neck_norm2"])
    if (norm["scale"] != 1).any() or (norm["bias"] != 0).any():
        return variables
    mean, deviation = teacher.statistics(config)
    encoder = encoder | {"neck_norm2": {"scale": deviation, "bias": mean}}
    return variables | {"params": variables["params"] | {"image_encoder": encoder}}
