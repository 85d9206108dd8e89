"""Learning to answer prompts as a teacher answers them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.checkpoint.load import load, save
from sam_jax.models.prompt_encoder import EMPTY, Prompts
from sam_jax.models.sam import SamModel, init, normalise
from sam_jax.training.config import LossConfig
from sam_jax.training.losses import answers_loss
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import batch_sharding, global_batch, make_mesh
from sam_jax.training.step import batch_loss, first_prompts, init_state, make_step
from tests.small import small_sam
from tests.training.test_step import CONFIG, SMALL, STAGE, make_batch
from tests.training.test_teacher import ANSWERED, KEY, taught_by, twice
from train.compile_check import batch_shapes

FIRST = dataclasses.replace(STAGE, corrective_clicks=0, mask_only_rounds=0)
"""Answers are to first prompts: what follows would only take longer to compile."""


@pytest.fixture(scope="module")
def variables():
    return init(SMALL, jax.random.key(0))


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save(small_sam(SMALL, seed=3), path)
    return path


def test_a_teacher_answers_the_first_prompts(teacher_file):
    """Its masks and predicted IoU for the very prompts that the step then begins with."""
    batch = make_batch()
    got = taught_by(teacher_file, loss=ANSWERED)(batch, KEY)
    added = "points", "labels", "answers", "answers_iou"
    assert set(got) == {*batch, *added}
    shapes = batch_shapes(dataclasses.replace(CONFIG, loss=ANSWERED), STAGE)
    for name in added:
        assert (got[name].shape, got[name].dtype) == (shapes[name].shape, shapes[name].dtype)
    sam = load(teacher_file)
    embedding = sam.model.apply(
        sam.params, normalise(jnp.asarray(batch["image"]), batch["image_hw"]), method="encode"
    )
    prompts = Prompts(got["points"], got["labels"])
    want, iou = sam.model.apply(sam.params, embedding, prompts, method="decode")
    np.testing.assert_allclose(got["answers"], want, atol=1e-4)
    np.testing.assert_allclose(got["answers_iou"], iou, atol=1e-5)
    taught_by(teacher_file, SMALL.replace(embed_dim=2 * SMALL.embed_dim), loss=ANSWERED)
    with pytest.raises(ValueError, match="teacher: .* 16 x 16 logits .* 32 of the model"):
        taught_by(teacher_file, SMALL.replace(patch_size=SMALL.patch_size // 2), loss=ANSWERED)
    # They are drawn anew with each key, and the step begins with them, later slots being empty.
    other = taught_by(teacher_file, loss=ANSWERED)(batch, jax.random.key(5))
    assert (np.asarray(other["points"]) != got["points"]).any()
    begun = first_prompts(KEY, got, dataclasses.replace(CONFIG, loss=ANSWERED), STAGE)
    np.testing.assert_array_equal(begun.points[:, :, :2], got["points"])
    np.testing.assert_array_equal(begun.labels[:, :, :2], got["labels"])
    assert (begun.labels[:, :, 2:] == EMPTY).all()


def test_a_teacher_that_looks_closer_answers_on_its_own_frame(teacher_file):
    """At 2 the points lie where they lay, on twice as many pixels; four logits become one."""
    small = SMALL.replace(image_size=SMALL.image_size // 2)
    batch = {name: x[:, :16, :16] if name == "image" else x for name, x in make_batch().items()}
    batch |= {"image_hw": np.full((2, 2), 16), "boxes_xyxy": batch["boxes_xyxy"] / 2}
    got = taught_by(teacher_file, small, loss=ANSWERED, teacher_enlarge=2)(batch, KEY)
    sam = load(teacher_file)
    large = np.stack([np.stack([twice(x[..., c]) for c in range(3)], -1) for x in batch["image"]])
    embedding = sam.model.apply(
        sam.params, normalise(large, batch["image_hw"] * 2), method="encode"
    )
    prompts = Prompts(2 * got["points"] + 0.5, got["labels"])
    want, _ = sam.model.apply(sam.params, embedding, prompts, method="decode")
    side = want.shape[-1] // 2
    want = want.reshape(2, 3, 4, side, 2, side, 2).mean((4, 6))
    np.testing.assert_allclose(got["answers"], want, atol=1e-3)


def test_answers_are_alike_on_devices_and_add_up_in_parts(variables, teacher_file):
    """Each part draws prompts of its own, so it is compared with what was drawn."""
    batch = {name: np.concatenate([x, x]) for name, x in make_batch().items()}
    mesh = make_mesh(devices=jax.devices()[:4])
    one = taught_by(teacher_file, loss=ANSWERED)(batch, KEY)
    spread = taught_by(teacher_file, devices=4, loss=ANSWERED)(global_batch(mesh, batch), KEY)
    for name in ("points", "labels", "answers", "answers_iou"):
        assert spread[name].sharding.is_equivalent_to(batch_sharding(mesh), spread[name].ndim)
        np.testing.assert_allclose(spread[name], one[name], atol=1e-4)
    parted = taught_by(teacher_file, parts=2, loss=ANSWERED)(batch, KEY)
    optimizer = make_optimizer(CONFIG.optim, SMALL, 100)
    stage, found = dataclasses.replace(FIRST, batch_size=4), []
    for parts in (1, 2):
        config = dataclasses.replace(
            CONFIG, loss=ANSWERED, devices=dataclasses.replace(CONFIG.devices, accumulate=parts)
        )
        state = init_state(jax.tree.map(jnp.copy, variables), optimizer, True)
        _, metrics = make_step(config, stage, optimizer)(state, parted, jax.random.key(1))
        found.append(float(metrics["answers"]))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_answers_count_beside_the_masks_and_are_learned(variables, teacher_file):
    batch = taught_by(teacher_file, loss=ANSWERED)(make_batch(), KEY)
    both = dataclasses.replace(CONFIG, loss=LossConfig(answers_weight=0.5))

    def loss(config):
        arguments = variables["params"], variables["buffers"], batch, jax.random.key(2)
        return jax.jit(lambda *a: batch_loss(*a, SamModel(SMALL), config, FIRST))(*arguments)

    (whole, metrics), (masks, _) = loss(both), loss(dataclasses.replace(both, loss=LossConfig()))
    assert float(whole) == pytest.approx(float(masks + 0.5 * metrics["answers"]), rel=1e-5)
    heavy = dataclasses.replace(CONFIG, loss=LossConfig(answers_weight=20.0))
    optimizer = make_optimizer(heavy.optim, SMALL, 100)
    step = make_step(heavy, FIRST, optimizer)
    state, missed = init_state(jax.tree.map(jnp.copy, variables), optimizer, True), []
    for _ in range(12):
        state, metrics = step(state, batch, jax.random.key(1))
        missed.append(float(metrics["answers"]))
    assert missed[-1] < 0.9 * missed[0]


def test_what_the_loss_of_answers_is():
    """Nothing where the teacher is sure and copied; padding does not count, poor masks less."""
    rng = np.random.default_rng(0)
    answers = np.where(rng.random((1, 2, 4, 8, 8)) < 0.5, 40.0, -40.0).astype(np.float32)
    worth = np.tile(np.array([0.9, 0.8, 0.2, 1.0], np.float32), (1, 2, 1))
    content = np.ones((1, 1, 8, 8), bool)
    same = answers_loss(answers, worth, answers, worth, content)
    np.testing.assert_allclose(same, 0, atol=1e-6)
    content[..., 6:] = False
    beyond = np.array(answers)
    beyond[..., 6:] *= -1
    np.testing.assert_allclose(answers_loss(beyond, worth, answers, worth, content), 0, atol=1e-6)
    lost = []
    for k in (2, 3):  # the third counts as 0.3, the fourth as 1, of 3
        wrong = np.array(answers)
        wrong[:, :, k] *= -1
        lost.append(answers_loss(wrong, worth, answers, worth, content, 0.0, 1.0, 0.0))
    whole = 1 - 1 / (48 + 1)  # Dice of a mask and what it is not
    np.testing.assert_allclose(lost[0], 0.3 / 3 * whole, rtol=1e-3)
    np.testing.assert_allclose(lost[1], 1.0 / 3 * whole, rtol=1e-3)
