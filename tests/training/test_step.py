"""The training step on a model small enough to run in seconds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.config import SamConfig
from sam_jax.models.sam import SamModel, init
from sam_jax.training.config import (
    LoraConfig,
    LossConfig,
    OptimConfig,
    PromptConfig,
    Stage,
    TrainConfig,
)
from sam_jax.training.lora import add_adapters
from sam_jax.training.optim import make_optimizer
from sam_jax.training.prompts import centre_point
from sam_jax.training.step import batch_loss, first_prompts, init_state, make_step

SMALL = SamConfig(
    16,
    2,
    2,
    (1,),
    image_size=32,
    patch_size=8,
    window_size=3,
    embed_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_width=16,
    iou_head_width=16,
)
STAGE = Stage(100, 32, 2, 3, corrective_clicks=1, mask_only_rounds=1)
CONFIG = TrainConfig(
    model=SMALL,
    stages=(STAGE,),
    loss=LossConfig(iou_on_all=True),
    prompts=PromptConfig(remat=False, unroll=False),
    optim=OptimConfig(lr=3e-3, warmup=5, schedule="cosine", layer_decay=1.0, clip=1.0, ema=0.9),
)


def make_batch(seed: int = 0) -> dict:
    """Bright rectangles on dark pictures; the last mask row of the second picture is empty."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (2, 32, 32, 3)).astype(np.uint8)
    masks, boxes = np.zeros((2, 3, 16, 16), np.uint8), np.zeros((2, 3, 4), np.float32)
    for b, n in np.ndindex(2, 3):
        x, y = 4 * rng.integers(0, 5, 2)
        image[b, y : y + 12, x : x + 12] = 120 + 50 * n
        masks[b, n, y // 2 : y // 2 + 6, x // 2 : x // 2 + 6] = 255
        boxes[b, n] = x, y, x + 11, y + 11
    valid = np.array([[True] * 3, [True, True, False]])
    hw = np.array([[32, 32], [32, 32]], np.int32)
    return {
        "image": image,
        "image_hw": hw,
        "masks": masks,
        "boxes_xyxy": boxes,
        "mask_valid": valid,
    }


@pytest.fixture(scope="module")
def variables():
    return init(SMALL, jax.random.key(0))


GRADIENT = jax.jit(jax.value_and_grad(batch_loss, has_aux=True), static_argnums=(4, 5, 6))


def loss_and_grads(variables, batch, config=CONFIG):
    return GRADIENT(
        variables["params"],
        variables["buffers"],
        batch,
        jax.random.key(2),
        SamModel(config.model),
        config,
        config.stages[0],
    )


def test_a_few_steps_learn_one_batch(variables):
    optimizer = make_optimizer(CONFIG.optim, SMALL, 100)
    state = init_state(jax.tree.map(jnp.copy, variables), optimizer, True)
    step, batch = make_step(CONFIG, STAGE, optimizer), make_batch()
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["total"]))
    assert int(state.step) == 60
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5]), losses
    different = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, state.ema)
    assert 0 < max(jax.tree.leaves(different)) < 0.2


def test_adapters_learn_while_the_rest_is_frozen(variables):
    lora = LoraConfig(rank=2)
    frozen = tuple(f"{part}/*" for part in variables["params"])
    config = dataclasses.replace(
        CONFIG, lora=lora, optim=dataclasses.replace(CONFIG.optim, frozen=frozen)
    )
    params = add_adapters(variables["params"], lora, jax.random.key(3))
    optimizer = make_optimizer(config.optim, SMALL, 100)
    start = jax.tree.map(jnp.copy, variables | {"params": params})
    state = init_state(start, optimizer, True)
    step, batch = make_step(config, STAGE, optimizer), make_batch()
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["total"]))
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5]), losses
    for part in variables["params"]:
        jax.tree.map(np.testing.assert_array_equal, state.params[part], params[part])


def test_the_buffer_is_not_trained(variables):
    optimizer = make_optimizer(CONFIG.optim, SMALL, 100)
    state = init_state(jax.tree.map(jnp.copy, variables), optimizer, True)
    state, _ = make_step(CONFIG, STAGE, optimizer)(state, make_batch(), jax.random.key(1))
    before = variables["buffers"]["prompt_encoder"]["gaussian"]
    np.testing.assert_array_equal(state.buffers["prompt_encoder"]["gaussian"], before)


def test_every_parameter_gets_a_gradient(variables):
    _, grads = loss_and_grads(variables, make_batch())
    still = [
        "/".join(k.key for k in path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if float(jnp.abs(g).max()) == 0 and not path[-1].key == "bias"
    ]
    # Of the three candidates only the best of each mask learns: some may have won nothing here.
    assert [path for path in still if "hyper_mlp" not in path] == []
    assert any(f"hyper_mlp_{k}/layer_0/kernel" not in still for k in (1, 2, 3))


def test_invalid_masks_do_not_count(variables):
    batch = make_batch()
    (loss, _), grads = loss_and_grads(variables, batch)
    batch["masks"][1, 2] = 255 - batch["masks"][1, 2]
    (changed, _), changed_grads = loss_and_grads(variables, batch)
    assert float(loss) == float(changed)
    jax.tree.map(np.testing.assert_array_equal, grads, changed_grads)


@pytest.mark.slow
def test_rematerialisation_changes_nothing_but_memory(variables):
    batch = make_batch()
    short = dataclasses.replace(CONFIG, stages=(Stage(1, 32, 2, 3, 1, 0),))
    with_remat = dataclasses.replace(
        short, prompts=PromptConfig(remat=True), model=SMALL.replace(remat=True)
    )
    without = dataclasses.replace(short, prompts=PromptConfig(remat=False))
    (a, _), grads_a = loss_and_grads(variables, batch, with_remat)
    (b, _), grads_b = loss_and_grads(variables, batch, without)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), grads_a, grads_b
    )


@pytest.mark.slow
def test_rounds_in_a_loop_are_the_rounds_one_by_one(variables):
    batch, stage = make_batch(), Stage(1, 32, 2, 3, 1, 1)
    results = []
    for unroll in (True, False):
        config = dataclasses.replace(
            CONFIG, stages=(stage,), prompts=PromptConfig(remat=False, unroll=unroll)
        )
        (loss, metrics), grads = loss_and_grads(variables, batch, config)
        results.append((loss, metrics, grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *results)


def test_first_prompts_are_half_boxes_half_points():
    batch = make_batch()
    batch = {k: np.repeat(v, 200, 0) for k, v in batch.items()}
    prompts = first_prompts(
        jax.random.key(0), dict(batch, masks=batch["masks"] / 255.0), CONFIG, STAGE
    )
    labels = np.asarray(prompts.labels)
    is_box = labels[..., 0] == 2
    assert 0.45 < is_box.mean() < 0.55
    assert (labels[is_box][:, :2] == [2, 3]).all()
    assert (labels[~is_box][:, :2] == [1, -1]).all()
    assert (labels[..., 2:] == -2).all() and labels.shape[-1] == 2 + 2


def test_four_of_five_first_boxes_are_drawn_where_the_model_draws():
    batch = {k: np.repeat(v, 200, 0) for k, v in make_batch().items()}
    batch["masks"] = batch["masks"] / 255.0
    drawing = dataclasses.replace(CONFIG, model=SMALL.replace(draw_boxes=True))
    plain, drawn = (
        first_prompts(jax.random.key(0), batch, config, STAGE) for config in (CONFIG, drawing)
    )
    np.testing.assert_array_equal(drawn.points, plain.points)
    is_box = np.asarray(drawn.labels)[..., 0] == 2
    assert not drawn.has_mask[~is_box].any() and 0.75 < drawn.has_mask[is_box].mean() < 0.85
    inside = np.asarray(drawn.masks)[is_box] > 0
    cells = (np.diff(np.asarray(drawn.points)[is_box][:, :2], axis=1)[:, 0] + 1) / 2
    np.testing.assert_allclose(inside.sum((1, 2)), cells.prod(1), atol=15)


def test_first_clicks_lie_in_the_centre_where_asked():
    batch = {k: jnp.asarray(v) for k, v in make_batch().items()}
    batch["masks"] = batch["masks"].astype(jnp.float32)
    centre = centre_point(batch["masks"], STAGE.image_size)

    def share(probability):
        prompts = PromptConfig(box_probability=0.0, centre_probability=probability)
        config = dataclasses.replace(CONFIG, prompts=prompts)
        found = [first_prompts(jax.random.key(i), batch, config, STAGE).points for i in range(60)]
        return np.mean([(f[:, :, 0] == centre).all(-1) for f in found])

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert 0.3 < share(0.5) < 0.7


def test_boxes_train_all_masks_on_a_finer_grid(variables):
    stage = dataclasses.replace(STAGE, corrective_clicks=0, mask_only_rounds=0, mask_size=32)
    batch = {k: jnp.asarray(v) for k, v in make_batch().items() if k != "image"}
    batch["masks"] = jnp.repeat(jnp.repeat(batch["masks"], 2, 2), 2, 3)
    batch["embedding"] = jax.random.normal(jax.random.key(2), (2, 4, 4, 16))

    def hypernetworks(box_on_all):
        config = dataclasses.replace(
            CONFIG,
            model=SMALL.replace(draw_boxes=True),
            loss=LossConfig(box_on_all=box_on_all),
            prompts=PromptConfig(box_probability=1.0),
        )

        def loss(params):
            model, key = SamModel(config.model), jax.random.key(1)
            return batch_loss(params, variables["buffers"], batch, key, model, config, stage)[0]

        decoder = jax.jit(jax.grad(loss))(variables["params"])["mask_decoder"]
        return [np.abs(decoder[f"hyper_mlp_{k}"]["layer_0"]["kernel"]).max() for k in range(4)]

    assert min(hypernetworks(True)) > 0
    assert hypernetworks(False)[0] == 0  # the single mask is for several prompts


def test_drop_path_and_dropout_change_training_only(variables):
    noisy = SamModel(SMALL.replace(drop_path=0.5, decoder_dropout=0.5))
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    still = noisy.apply(variables, x, method="encode")
    np.testing.assert_array_equal(still, SamModel(SMALL).apply(variables, x, method="encode"))
    a, b = (
        noisy.apply(variables, x, True, method="encode", rngs={"drop_path": jax.random.key(i)})
        for i in range(2)
    )
    assert float(jnp.abs(a - b).max()) > 0.01
