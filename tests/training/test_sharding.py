"""The same training on one device, on eight fake ones in several meshes, and in parts."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sam_jax.models.config import VIT_B, SamConfig
from sam_jax.models.sam import SamModel, init
from sam_jax.training.config import DevicesConfig, OptimConfig, PromptConfig, Stage, TrainConfig
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import batch_sharding, global_batch, make_mesh, state_shardings
from sam_jax.training.step import batch_loss, gradients, init_state, make_step
from train.checkpoints import Checkpoints
from train.start import initial_state, starting_point

MODEL = SamConfig(
    16,
    1,
    2,
    (0,),
    image_size=32,
    patch_size=8,
    embed_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_width=16,
    iou_head_width=16,
    drop_path=0.2,
    decoder_dropout=0.1,
)
STAGE = Stage(20, 32, 8, 2, corrective_clicks=1, mask_only_rounds=0)
CONFIG = TrainConfig(  # the paper's optimiser, in its warmup
    model=MODEL,
    stages=(STAGE,),
    prompts=PromptConfig(remat=False),
    optim=OptimConfig(clip=1.0, ema=0.9),
)


def make_batch(seed: int, images: int = 8) -> dict:
    """Bright rectangles on noise, as `make_step` describes; some rows have no mask."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 90, (images, 32, 32, 3)).astype(np.uint8)
    masks, boxes = np.zeros((images, 2, 8, 8), np.uint8), np.zeros((images, 2, 4), np.float32)
    for b, n in np.ndindex(images, 2):
        x, y = 4 * rng.integers(0, 5, 2)
        image[b, y : y + 12, x : x + 12] = 140 + 60 * n
        masks[b, n, y // 4 : y // 4 + 3, x // 4 : x // 4 + 3] = 255
        boxes[b, n] = x, y, x + 11, y + 11
    return {
        "image": image,
        "image_hw": np.tile(np.array([32, 28], np.int32), (images, 1)),
        "masks": masks,
        "boxes_xyxy": boxes,
        "mask_valid": rng.random((images, 2)) < 0.8,
    }


def first_state(config: TrainConfig, mesh):
    """The state before step 0, its shardings, and the optimiser."""
    config, variables, _ = starting_point(config)
    optimizer = make_optimizer(config.optim, config.model, config.total_steps)
    return *initial_state(config, variables, optimizer, mesh), optimizer


def train(devices: int, fsdp: int, steps: int = 20, config: TrainConfig = CONFIG):
    """Losses of some steps from the same start, and the state after them."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    state, shardings, optimizer = first_state(config, mesh)
    step, losses = make_step(config, config.stages[0], optimizer, shardings), []
    for number in range(steps):
        batch = global_batch(mesh, make_batch(number))
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses)), state


@pytest.fixture(scope="module")
def single():
    return train(1, 1)


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), (8, 4)])
def test_eight_devices_give_the_losses_of_one(single, devices, fsdp):
    losses, state = train(devices, fsdp)
    np.testing.assert_allclose(losses, single[0], rtol=0, atol=1e-5 * np.abs(single[0]).max())
    assert losses[0] != losses[1]
    moments = jax.tree.leaves(state.opt_state)
    assert any("fsdp" in str(x.sharding.spec) for x in moments) == (fsdp > 1)


def test_a_checkpoint_is_restored_on_other_devices(tmp_path):
    config = dataclasses.replace(CONFIG, name="elastic")
    _, state = train(8, 4, steps=2, config=config)
    writer = Checkpoints(tmp_path, config)
    writer.save(2, state)
    writer.wait()
    writer.close()
    for devices, fsdp in ((1, 1), (2, 2), (8, 1)):
        mesh = make_mesh(fsdp, jax.devices()[:devices])
        fresh, shardings, _ = first_state(config, mesh)
        reader = Checkpoints(tmp_path, config)
        assert reader.newest() == 2
        found = reader.restore(2, fresh, shardings)
        reader.close()
        jax.tree.map(np.testing.assert_array_equal, found, state)
        placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), found, shardings)
        assert all(jax.tree.leaves(placed))


def test_a_checkpoint_of_other_data_or_another_model_is_refused(tmp_path):
    state, shardings, _ = first_state(CONFIG, make_mesh(1, jax.devices()[:1]))
    writer = Checkpoints(tmp_path, CONFIG)
    writer.save(0, state)
    writer.wait()
    writer.close()
    reader = Checkpoints(tmp_path, dataclasses.replace(CONFIG, scenes=0.5))
    with pytest.raises(ValueError, match=r"scenes: .* started with 0.0, got 0.5"):
        reader.restore(0, state, shardings)
    reader.close()
    reader = Checkpoints(tmp_path, dataclasses.replace(CONFIG, stages=(_longer(40),)))
    jax.tree.map(np.testing.assert_array_equal, reader.restore(0, state, shardings), state)
    reader.close()
    smaller = dataclasses.replace(_longer(20), batch_size=4)
    reader = Checkpoints(tmp_path, dataclasses.replace(CONFIG, stages=(smaller,)))
    with pytest.raises(ValueError, match="stages: .* started with .*'batch_size': 8"):
        reader.restore(0, state, shardings)
    reader.close()
    other = dataclasses.replace(CONFIG, model=MODEL.replace(encoder_width=24))
    fresh, places, _ = first_state(other, make_mesh(1, jax.devices()[:1]))
    reader = Checkpoints(tmp_path, other)
    with pytest.raises(ValueError, match=r"of another model .* arrays differ: .* has shape \["):
        reader.restore(0, fresh, places)
    reader.close()


def test_a_checkpoint_from_before_a_field_was_there(tmp_path):
    saved = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    for part, name in ((saved, "repeat_masks"), (saved["text"], "blends")):
        del part[name]
    for stage in saved["stages"]:
        del stage["mask_size"]
    reader = Checkpoints(tmp_path, CONFIG)
    reader._check_data(saved)
    saved["stages"][0]["mask_size"] = 8
    saved["text"]["share"] = 0.5
    with pytest.raises(ValueError, match="was started with"):
        reader._check_data(saved)
    reader.close()


def _longer(steps: int) -> Stage:
    return dataclasses.replace(STAGE, steps=steps)


def test_a_batch_in_parts_gives_the_gradients_of_its_parts():
    variables = init(MODEL, jax.random.key(0))
    params, buffers, batch = variables["params"], variables["buffers"], make_batch(0)
    config = dataclasses.replace(CONFIG, devices=DevicesConfig(accumulate=2))
    model, key = SamModel(MODEL), jax.random.key(5)
    metrics, grads = jax.jit(gradients, static_argnums=(4, 5, 6))(
        params, buffers, batch, key, model, config, STAGE
    )
    count = float(batch["mask_valid"].sum())
    one = jax.jit(jax.value_and_grad(batch_loss, has_aux=True), static_argnums=(4, 5, 6))
    expected = [
        one(params, buffers, part, k, model, config, STAGE, count)
        for k, part in zip(
            jax.random.split(key, 2),
            ({n: x[i::2] for n, x in batch.items()} for i in range(2)),
            strict=True,
        )
    ]
    assert float(metrics["masks"]) == count
    np.testing.assert_allclose(metrics["loss"], sum(e[0][0] for e in expected), rtol=1e-5)
    total = jax.tree.map(jnp.add, expected[0][1], expected[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, total)


def test_the_rules_place_nearly_all_of_a_vit():
    optimizer = make_optimizer(OptimConfig(), VIT_B, 100)
    variables = jax.eval_shape(functools.partial(init, VIT_B), jax.random.key(0))
    shapes = jax.eval_shape(lambda v: init_state(v, optimizer, False), variables)
    shardings = state_shardings(make_mesh(8), shapes)
    pairs = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True))
    split = sum(x.size for x, sharding in pairs if sharding.spec != PartitionSpec())
    assert split / sum(x.size for x, _ in pairs) > 0.98
    block = shardings.params["image_encoder"]["block_0"]
    assert block["attn"]["qkv"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert block["lin2"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert block["norm1"]["scale"].spec == PartitionSpec()
    assert batch_sharding(make_mesh(2)).spec == PartitionSpec(("data", "fsdp"))


def test_wrong_numbers_are_said():
    with pytest.raises(ValueError, match=r"devices.fsdp: expected a divisor .* 8, got 3"):
        make_mesh(3)
    with pytest.raises(ValueError, match="multiple of 8 devices, got 6"):
        global_batch(make_mesh(), make_batch(0, 6))
    config = dataclasses.replace(CONFIG, devices=DevicesConfig(accumulate=3))
    with pytest.raises(ValueError, match="accumulate: expected a divisor of batch_size=8, got 3"):
        make_step(config, STAGE, make_optimizer(config.optim, MODEL, 20))
