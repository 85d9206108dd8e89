"""A teacher: another model, whose embeddings and whose answers to prompts are learned."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sam_jax.checkpoint.load import Sam, load
from sam_jax.models.attention import images_over
from sam_jax.models.prompt_encoder import Prompts, draw_boxes
from sam_jax.models.sam import SamModel, normalise
from sam_jax.training.config import TrainConfig
from sam_jax.training.sharding import batch_sharding, global_batch, replicated
from sam_jax.training.step import first_points
from train.data import stage_batches


class Teacher:
    """Adds to batches what a teacher makes of their images, and its answers to first prompts.

    Args:
      config: the run's. Its frame, enlarged by `teacher_enlarge`, is the teacher's; products are
        computed in the dtype of its model, and batches in `devices.accumulate` parts.
      mesh: of the devices; each has the teacher's parameters, and its share of the images.

    Raises:
      ValueError: nothing that can be read is there, or its embeddings or masks have another shape.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh) -> None:
        self._mesh, answers = mesh, bool(config.loss.answers_weight)
        try:
            sam = load(config.teacher, dtype=config.model.dtype)
            _check_shapes(config, sam)
        except ValueError as error:
            raise ValueError(f"teacher: {error}") from error
        variables = sam.params
        if not answers:
            encoder = variables["params"]["image_encoder"]
            variables = {"params": {"image_encoder": encoder}}
        self._reads = ("image", "image_hw")
        if answers:
            self._reads += ("masks", "mask_valid", "boxes_xyxy")
        everywhere, split = replicated(mesh), batch_sharding(mesh)
        place = jax.jit(lambda x: x, out_shardings=everywhere)
        self._variables = place(jax.device_get(variables))
        self._look = jax.jit(
            _in_parts(_look(config, SamModel(sam.config)), config.devices.accumulate),
            in_shardings=(everywhere, everywhere, split),
            out_shardings=split,
        )

    def __call__(self, batch: dict, key: jax.Array) -> dict:
        """A batch on the mesh with what `make_step` reads of a teacher besides.

        Args:
          batch: with images; for `loss.answers_weight` with masks.
          key: of the first prompts, which are drawn here where they are answered.
        """
        seen = {name: batch[name] for name in self._reads}
        with images_over(self._mesh):
            return batch | self._look(self._variables, key, seen)

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
        wanted = {name: batch[name] for name in self._reads}
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

        taught = self(global_batch(self._mesh, wanted), jax.random.key(0))
        mean, deviation = jax.device_get(measured(taught["teacher"], taught["image_hw"]))
        return mean, deviation


def _check_shapes(config: TrainConfig, teacher: Sam) -> None:
    """What the teacher makes of the enlarged frame must come down to what the run's model makes."""
    model, enlarge = config.model, config.teacher_enlarge
    side = model.image_size * enlarge

    def encode(variables, images):
        return teacher.model.apply(variables, images, method="encode")

    frame = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    _, cells, _, width = jax.eval_shape(encode, teacher.params, frame).shape
    given = (cells // enlarge, cells // enlarge, width)
    wanted = (model.grid, model.grid, model.embed_dim)
    if config.loss.teacher_weight and given != wanted:
        raise ValueError(
            f"{config.teacher} makes embeddings {given} of images of {model.image_size} pixels, "
            f"and the model that learns {wanted}; give a teacher of its patch_size and embed_dim"
        )
    if cells < model.grid or cells % model.grid:
        raise ValueError(
            f"{config.teacher} makes masks of {4 * cells} x {4 * cells} logits of images of {side} "
            f"pixels, which do not average down to the {4 * model.grid} of the model that learns; "
            "choose another teacher_enlarge"
        )


def _look(config: TrainConfig, teacher: SamModel) -> Callable:
    """(variables, key, batch) -> what the losses of a teacher read, of a batch or a part of it.

    Enlarging mixes the outermost pixels of a photo with the padding beside them.
    """
    enlarge, loss, sizes = config.teacher_enlarge, config.loss, teacher.config

    def look(variables, key, batch):
        b, h, w, _ = batch["image"].shape
        large = (b, h * enlarge, w * enlarge, 3)
        images = jax.image.resize(batch["image"].astype(jnp.float32), large, "linear")
        images = normalise(images, batch["image_hw"] * enlarge)
        embedding, found = teacher.apply(variables, images, method="encode"), {}
        if loss.teacher_weight:
            found["teacher"] = nn.avg_pool(embedding, (enlarge, enlarge), (enlarge, enlarge))
        if not loss.answers_weight:
            return found
        batch = batch | {"masks": batch["masks"].astype(jnp.float32) / 255}
        points, labels = first_points(key, batch, config.prompts, h)
        prompts = Prompts((points + 0.5) * enlarge - 0.5, labels)
        if sizes.draw_boxes:
            prompts = draw_boxes(prompts, embedding.shape[1:3], sizes.patch_size)
        answers, iou = teacher.apply(variables, embedding, prompts, method="decode")
        side = 4 * h // config.model.patch_size
        cell = answers.shape[-1] // side
        answers = answers.reshape(*answers.shape[:3], side, cell, side, cell).mean((4, 6))
        said = {"points": points, "labels": labels, "answers": answers, "answers_iou": iou}
        return found | said

    return look


def _in_parts(look: Callable, parts: int) -> Callable:
    """`look` at a batch in parts, one after the other, split as the training step splits it."""
    if parts == 1:
        return look

    def in_parts(variables, key, batch):
        split = {
            name: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()
        }
        xs = jax.random.split(key, parts), split
        found = jax.lax.map(lambda part: look(variables, *part), xs)
        return {name: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for name, x in found.items()}

    return in_parts


def with_neck_like(config: TrainConfig, variables: dict, teacher: Teacher) -> dict:
    """Variables whose encoder, if its neck is fresh, begins with the teacher's mean and deviation.

    A fresh neck's results are several times as large as a SAM's, and a scale is learned slowly.

    Args:
      config: the run's, with its first batch.
      variables: {"params", "buffers"}.
      teacher: the run's.
    """
    if not config.loss.teacher_weight:
        return variables
    encoder = variables["params"]["image_encoder"]
    norm = jax.device_get(encoder["neck_norm2"])
    if (norm["scale"] != 1).any() or (norm["bias"] != 0).any():
        return variables
    mean, deviation = teacher.statistics(config)
    encoder = encoder | {"neck_norm2": {"scale": deviation, "bias": mean}}
    return variables | {"params": variables["params"] | {"image_encoder": encoder}}
