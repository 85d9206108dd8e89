"""One training step, pure: (state, batch, key) -> (state, metrics)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from sam_jax.models.attention import images_over
from sam_jax.models.prompt_encoder import (
    EMPTY,
    NOT_A_POINT,
    TOP_LEFT,
    Prompts,
    draw_boxes,
)
from sam_jax.models.sam import SamModel, normalise
from sam_jax.ops.resize import resize_hw
from sam_jax.training import prompts as simulator
from sam_jax.training.config import PromptConfig, Stage, TrainConfig
from sam_jax.training.lora import merged
from sam_jax.training.losses import (
    answers_loss,
    grouping_loss,
    matching_loss,
    prompt_losses,
    teacher_loss,
)
from sam_jax.training.optim import average, is_frozen, path_tree
from sam_jax.training.sharding import batch_sharding, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. `params` and `ema` are the trained tree without buffers."""

    step: jax.Array
    params: dict
    buffers: dict
    opt_state: optax.OptState
    ema: dict


def first_points(key, batch, config: PromptConfig, side: int) -> tuple[jax.Array, jax.Array]:
    """A click or a noisy box for every mask: points [B, N, 2, 2] and labels [B, N, 2].

    Args:
      key: of the draw.
      batch: as in `make_step`, with masks in 0..1.
      config: the run's `prompts`.
      side: of the frame, pixels.
    """
    kind_key, point_key, box_key = jax.random.split(key, 3)
    b, n = batch["mask_valid"].shape
    point = simulator.first_point(point_key, batch["masks"], side)
    if config.centre_probability:
        centre_key = jax.random.fold_in(kind_key, 3)
        in_centre = jax.random.bernoulli(centre_key, config.centre_probability, (b, n))
        centre = simulator.centre_point(batch["masks"], side)
        point = jnp.where(in_centre[..., None], centre, point)
    most = config.box_noise_most * side / 1024
    box = simulator.noisy_box(
        box_key, batch["boxes_xyxy"], batch["image_hw"], config.box_noise, most
    )
    is_box = jax.random.bernoulli(kind_key, config.box_probability, (b, n))
    click = jnp.stack([point, jnp.zeros_like(point)], 2)
    points = jnp.where(is_box[..., None, None], box.reshape(b, n, 2, 2), click)
    labels = jnp.where(is_box[..., None], jnp.array([2, 3]), jnp.array([1, NOT_A_POINT]))
    return points, labels


def first_prompts(key, batch, config: TrainConfig, stage: Stage) -> Prompts:
    """A click, a noisy box or a text for every mask, in a row with room for the later clicks.

    Where the batch brings points along, which a teacher has answered, these are taken.
    """
    side, kind_key = stage.image_size, jax.random.split(key, 3)[0]
    b, n = batch["mask_valid"].shape
    if "points" in batch:
        points, labels = batch["points"], batch["labels"]
    else:
        points, labels = first_points(key, batch, config.prompts, side)
    later = stage.corrective_clicks + stage.mask_only_rounds
    prompts = Prompts(
        jnp.pad(points, ((0, 0), (0, 0), (0, later), (0, 0))),
        jnp.pad(labels, ((0, 0), (0, 0), (0, later)), constant_values=EMPTY),
    )
    if "text" in batch:
        text_key = jax.random.fold_in(kind_key, 2)
        is_text = jax.random.bernoulli(text_key, config.text.share, (b, n))
        labels = jnp.where(is_text[..., None], EMPTY, prompts.labels)
        prompts = Prompts(prompts.points, labels, text=batch["text"], has_text=is_text)
    if not config.model.draw_boxes:
        return prompts
    drawn = draw_boxes(prompts, (side // config.model.patch_size,) * 2, config.model.patch_size)
    draw_key = jax.random.fold_in(kind_key, 1)
    is_drawn = jax.random.bernoulli(draw_key, config.prompts.draw_probability, (b, n))
    return dataclasses.replace(drawn, has_mask=drawn.has_mask & is_drawn)


def interaction_losses(model: SamModel, variables, embedding, batch, key, config, stage):
    """The losses of all rounds [R, B, N]: the first prompt, then clicks and mask-only rounds.

    The first round counts the best of the three masks; every later one has several prompts and
    counts the single mask (PROTOCOLS section 1). "answers" [1, B, N], of a batch that a teacher has
    answered, is the first round's alone.
    """
    first_key, order_key, click_key = jax.random.split(key, 3)
    target, side = batch["masks"], stage.image_size
    content = simulator.content_area(batch["image_hw"], side, target.shape[-1])
    loss = dataclasses.asdict(config.loss)
    # These are of the embedding, not of a prompt, and answers are not of the true masks.
    for name in ("grouping_weight", "text_weight", "matching_weight", "teacher_weight"):
        loss.pop(name)
    answers_weight = loss.pop("answers_weight")
    box_on_all, text_on_all = loss.pop("box_on_all"), loss.pop("text_on_all")

    def decode(prompts):
        return model.apply(
            variables, embedding, prompts, True, method="decode", rngs={"dropout": click_key}
        )

    def at_target_size(logits):
        return resize_hw(logits, target.shape[-2:], (-2, -1), "linear")

    def feed_back(logits):
        return logits if config.prompts.mask_gradient else jax.lax.stop_gradient(logits)

    def decode_round(prompts, several):
        """Logits, predicted IoU, and the losses of the single mask or of the best of the three."""
        logits, iou = decode(prompts)

        def losses_of(masks, on_all=None):
            chosen, scores = at_target_size(logits[:, :, masks]), iou[:, :, masks]
            return prompt_losses(chosen, scores, target, on_all=on_all, **loss)

        if several:
            return logits, iou, losses_of(slice(0, 1))
        on_all = jnp.zeros(iou.shape[:2], bool)
        if box_on_all:
            on_all |= prompts.labels[..., 0] == TOP_LEFT
        if text_on_all and prompts.has_text is not None:
            on_all |= prompts.has_text
        elif not box_on_all:
            return logits, iou, losses_of(slice(1, None))
        three, single = losses_of(slice(1, None), on_all), losses_of(slice(0, 1))
        share = jnp.where(on_all, 1 / iou.shape[-1], 0.0)
        return logits, iou, jax.tree.map(lambda a, b: a + share * (b - a), three, single)

    if config.prompts.remat:
        decode_round = jax.checkpoint(decode_round, static_argnums=1)
    prompts = first_prompts(first_key, batch, config, stage)
    logits, iou, losses = decode_round(prompts, False)
    likeliest = jnp.argmax(iou[:, :, 1:], 2)[:, :, None, None, None]
    last = jnp.take_along_axis(logits[:, :, 1:], likeliest, 2)[:, :, 0]
    is_click = simulator.click_schedule(order_key, stage.corrective_clicks, stage.mask_only_rounds)

    def later_round(carry, x):
        points, labels, last = carry
        index, clicked, key = x
        point, label = simulator.corrective_click(key, at_target_size(last), target, content, side)
        points = points.at[:, :, index + 2].set(point)
        labels = labels.at[:, :, index + 2].set(jnp.where(clicked, label, EMPTY))
        later = dataclasses.replace(prompts, points=points, labels=labels)
        later = dataclasses.replace(later, masks=feed_back(last), has_mask=None)
        logits, _, losses = decode_round(later, True)
        return (points, labels, logits[:, :, 0]), losses

    rounds = is_click.shape[0]
    xs = (jnp.arange(rounds), is_click, jax.random.split(click_key, rounds))
    carry, unroll = (prompts.points, prompts.labels, last), config.prompts.unroll
    _, later = jax.lax.scan(later_round, carry, xs, unroll=unroll)
    losses = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), losses, later)
    if answers_weight:
        taught = batch["answers"].astype(jnp.float32), batch["answers_iou"]
        photo = simulator.content_area(batch["image_hw"], side, logits.shape[-1])
        weights = config.loss.focal_weight, config.loss.dice_weight, config.loss.iou_weight
        losses["answers"] = answers_loss(logits, iou, *taught, photo, *weights)[None]
    return losses


def embed(model: SamModel, variables, batch, drop_key) -> jax.Array:
    """Embeddings float32 [B, h, w, D] of the batch's images, or those that it brings along."""
    if "embedding" in batch:
        return batch["embedding"].astype(jnp.float32)
    images = normalise(batch["image"], batch["image_hw"])
    return model.apply(variables, images, True, method="encode", rngs={"drop_path": drop_key})


def batch_loss(
    params, buffers, batch, key, model: SamModel, config: TrainConfig, stage: Stage, count=None
):
    """Scalar loss and metrics: summed over rounds, averaged over the masks that are there.

    `count` is the number of masks to divide by, where `batch` is a part of a larger one; the
    losses and metrics of all parts then add up to those of the whole.
    """
    drop_key, prompt_key = jax.random.split(key)
    # Nothing is computed for gradients that nobody uses, and they do not count in their norm.
    params = path_tree(
        params, lambda path, p: jax.lax.stop_gradient(p) if is_frozen(path, config.optim) else p
    )
    variables = {"params": merged(params, config.lora), "buffers": buffers}
    batch = dict(batch, masks=batch["masks"].astype(jnp.float32) / 255)
    if config.text.noise and "text" in batch:
        noise_key = jax.random.fold_in(prompt_key, 3)
        batch["text"] = simulator.noisy_text(noise_key, batch["text"], config.text.noise)
    embedding = embed(model, variables, batch, drop_key)
    valid = batch["mask_valid"].astype(jnp.float32)
    count = jnp.maximum(valid.sum(), 1.0) if count is None else count
    loss, metrics = jnp.zeros(()), {"masks": valid.sum()}
    if config.loss.of_masks:
        losses = interaction_losses(model, variables, embedding, batch, prompt_key, config, stage)
        mean = jax.tree.map(lambda x: (x * valid).sum((1, 2)) / count, losses)
        metrics |= {name: x.mean() for name, x in mean.items() if name != "iou"}
        metrics |= {"iou_first": mean["iou"][0], "iou_last": mean["iou"][-1]}
        loss = mean["total"].sum()
        if config.loss.answers_weight:
            loss += config.loss.answers_weight * metrics["answers"]
    directions = {"grouping": None}
    if "text" in batch:
        directions["text"] = model.apply(variables, batch["text"], method="text_tokens")
    masks = batch["masks"]
    content = simulator.content_area(batch["image_hw"], stage.image_size, masks.shape[-1])
    for name, direction in directions.items():
        weight = getattr(config.loss, f"{name}_weight")
        if weight:
            found = grouping_loss(embedding, masks, content, direction)
            metrics[name] = (found * valid).sum() / count
            loss += weight * metrics[name]
    if config.loss.teacher_weight:
        missed = teacher_loss(embedding, batch["teacher"], content)
        metrics["teacher"] = missed / config.devices.accumulate
        loss += config.loss.teacher_weight * metrics["teacher"]
    if config.loss.matching_weight and "look" in batch:
        tokens = model.apply(variables, batch["look"], method="text_tokens")
        found = matching_loss(embedding, masks, content, tokens, batch["mask_valid"])
        metrics["matching"] = found.sum() / count
        loss += config.loss.matching_weight * metrics["matching"]
    return loss, metrics


def gradients(params, buffers, batch, key, model: SamModel, config: TrainConfig, stage: Stage):
    """Metrics and gradients of a batch, computed in `config.devices.accumulate` parts."""
    parts = config.devices.accumulate
    gradient = jax.value_and_grad(batch_loss, has_aux=True)
    if parts == 1:
        (loss, metrics), grads = gradient(params, buffers, batch, key, model, config, stage)
        return metrics | {"loss": loss}, grads
    count = jnp.maximum(batch["mask_valid"].sum().astype(jnp.float32), 1.0)
    # Part i takes images i, i + parts, ...: every device keeps the images that it has.
    batch = {name: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}

    def of_part(part):
        batch, key = part
        (loss, metrics), grads = gradient(params, buffers, batch, key, model, config, stage, count)
        return metrics | {"loss": loss}, grads

    xs = (batch, jax.random.split(key, parts))
    shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda sum, x: (jax.tree.map(jnp.add, sum, of_part(x)), None), zeros, xs)[0]


def make_step(
    config: TrainConfig,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
):
    """The step of a stage, jitted, with the state's buffers donated.

    Args:
      config: the run's.
      stage: of it.
      optimizer: see `sam_jax.training.optim.make_optimizer`.
      shardings: where the state lies (`sharding.state_shardings` of it); None: on one device.

    Returns:
      (state, batch, key) -> (state, metrics). A batch has "image" uint8 [B, S, S, 3] or, in its
      place, "embedding" float [B, h, w, D]; "image_hw" int32 [B, 2], "masks" uint8 [B, N, M, M]
      (255 times the coverage), "boxes_xyxy" float32 [B, N, 4], "mask_valid" bool [B, N], and for
      text prompts "text" and "look" float32 [B, N, T], and "teacher" float32 [B, h, w, D] for
      `loss.teacher_weight`, and for `loss.answers_weight` "points" float32 [B, N, 2, 2] and
      "labels" int32 [B, N, 2], the first prompts, "answers" [B, N, 4, 4h, 4w], the teacher's logits
      for them, and "answers_iou" float32 [B, N, 4]. Frozen parameters and their averages keep
      every bit.

    Raises:
      ValueError: the batch does not divide into the parts of `config.devices.accumulate`.
    """
    parts = config.devices.accumulate
    if parts < 1 or stage.batch_size % parts:
        raise ValueError(
            f"devices.accumulate: expected a divisor of batch_size={stage.batch_size}, got {parts}"
        )
    model = SamModel(config.model)

    def keep_frozen(old, new):
        frozen = path_tree(old, lambda path, leaf: is_frozen(path, config.optim))
        return jax.tree.map(lambda f, a, b: a if f else b, frozen, old, new)

    def step(state: TrainState, batch: dict, key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        with images_over(shardings and shardings.step.mesh):
            metrics, grads = gradients(
                state.params, state.buffers, batch, key, model, config, stage
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = keep_frozen(state.params, optax.apply_updates(state.params, updates))
        ema = {}
        if config.optim.ema:
            ema = average(state.ema, params, config.optim.ema, state.step)
            ema = keep_frozen(state.ema, ema)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, state.buffers, opt_state, ema), metrics

    placed, on_cpu = {}, jax.default_backend() == "cpu"
    if shardings is not None:
        mesh = shardings.step.mesh
        everywhere, on_cpu = replicated(mesh), mesh.devices.flat[0].platform == "cpu"
        placed = {
            "in_shardings": (shardings, batch_sharding(mesh), everywhere),
            "out_shardings": (shardings, everywhere),
        }
    # XLA:CPU drops the encoder's barriers before it fuses, and then computes the chain of residual
    # gradients anew for each of its readers.
    keep = {"xla_disable_hlo_passes": "cse_barrier_expander"} if on_cpu else None
    return jax.jit(step, donate_argnums=0, compiler_options=keep, **placed)


def init_state(variables: dict, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step."""
    params = variables["params"]
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        variables["buffers"],
        optimizer.init(params),
        jax.tree.map(jnp.copy, params) if ema else {},
    )
