"""Learning another model's embeddings, and beginning with its decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.checkpoint.load import load, save
from sam_jax.checkpoint.pth import write_pth
from sam_jax.models.config import MOBILE_SAM
from sam_jax.models.sam import SamModel, init, normalise
from sam_jax.training.config import (
    DevicesConfig,
    LossConfig,
    OptimConfig,
    TextConfig,
    TrainConfig,
)
from sam_jax.training.losses import teacher_loss
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import batch_sharding, global_batch, make_mesh
from sam_jax.training.step import batch_loss, init_state, make_step
from tests.mobile_sam import embed, tensors
from tests.small import small_sam
from tests.training.test_step import CONFIG, SMALL, STAGE, make_batch
from train.advice import check, warnings
from train.compile_check import batch_shapes, resolved
from train.data import stage_batches
from train.start import narrowed, starting_point
from train.teacher import Teacher, with_neck_like

KEY = jax.random.key(4)
ANSWERED = LossConfig(answers_weight=1.0)
ALONE = LossConfig(0.0, 0.0, 0.0, teacher_weight=1.0)
STILL = ("prompt_encoder/*", "mask_decoder/*")
TAUGHT = dataclasses.replace(
    CONFIG, teacher="x", loss=ALONE, optim=dataclasses.replace(CONFIG.optim, frozen=STILL)
)


def taught_by(name, model=SMALL, devices=1, parts=1, **changes):
    """A Teacher of a file, for a model that learns, on so many devices."""
    config = dataclasses.replace(
        TAUGHT, teacher=str(name), model=model, devices=DevicesConfig(accumulate=parts)
    )
    config = dataclasses.replace(config, **changes)
    return Teacher(config, make_mesh(devices=jax.devices()[:devices]))


@pytest.fixture(scope="module")
def variables():
    return init(SMALL, jax.random.key(0))


@pytest.fixture(scope="module")
def mobile_sam(tmp_path_factory):
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    write_pth(path, tensors())
    return path


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """Another model of SMALL's sizes."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save(small_sam(SMALL, seed=3), path)
    return path


def test_the_loss_is_the_share_of_the_variance_that_is_missed():
    rng = np.random.default_rng(0)
    teacher = rng.normal(2, 3, (2, 4, 4, 5)).astype(np.float32)
    content = np.ones((2, 1, 8, 8), bool)
    content[1, :, 4:] = False  # of the second picture the upper half is photo
    inside = np.ones((2, 4, 4), bool)
    inside[1, 2:] = False
    mean = teacher[inside].mean(0)
    assert float(teacher_loss(teacher, teacher, content)) == 0
    assert float(teacher_loss(jnp.broadcast_to(mean, teacher.shape), teacher, content)) == (
        pytest.approx(1, rel=1e-5)
    )
    wild = np.where(inside[..., None], teacher, 99)
    assert float(teacher_loss(wild, teacher, content)) == 0
    off = teacher + rng.normal(size=teacher.shape).astype(np.float32)
    want = ((off - teacher)[inside] ** 2).sum() / ((teacher[inside] - mean) ** 2).sum()
    assert float(teacher_loss(off, teacher, content)) == pytest.approx(want, rel=1e-4)


def test_a_model_learns_a_teachers_embeddings_and_nothing_else(variables, teacher_file):
    check(TAUGHT, variables["params"])
    assert warnings(TAUGHT, variables["params"]) == []
    blurred = dataclasses.replace(TAUGHT, blur=0.5, augment=False)
    assert "without augment" in warnings(blurred, variables["params"])[0]
    teacher = taught_by(teacher_file, SMALL)
    batch = teacher(make_batch(), KEY)
    optimizer = make_optimizer(TAUGHT.optim, SMALL, 100)
    state = init_state(jax.tree.map(jnp.copy, variables), optimizer, True)
    step, missed = make_step(TAUGHT, STAGE, optimizer), []
    for _ in range(40):
        state, metrics = step(state, batch, jax.random.key(1))
        missed.append(float(metrics["teacher"]))
    assert set(metrics) == {"masks", "teacher", "loss", "grad_norm"}
    assert missed[-1] < 0.6 * missed[0], missed
    for part in ("mask_decoder", "prompt_encoder"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], variables["params"][part])


def test_the_teacher_counts_beside_the_masks(variables, teacher_file):
    batch = taught_by(teacher_file, SMALL)(make_batch(), KEY)
    both = dataclasses.replace(CONFIG, loss=LossConfig(teacher_weight=0.5))

    def loss(config):
        arguments = variables["params"], variables["buffers"], batch, jax.random.key(2)
        return jax.jit(lambda *a: batch_loss(*a, SamModel(SMALL), config, STAGE))(*arguments)

    (whole, metrics), (masks, _) = loss(both), loss(dataclasses.replace(both, loss=LossConfig()))
    assert "iou_first" in metrics and metrics["teacher"] > 0
    assert float(whole) == pytest.approx(float(masks + 0.5 * metrics["teacher"]), rel=1e-5)


def test_devices_share_the_images_and_parts_come_one_by_one(teacher_file):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8),
        "image_hw": np.full((16, 2), 32, np.int32),
    }
    want = np.asarray(taught_by(teacher_file)(batch, KEY)["teacher"])
    for devices, parts in ((8, 1), (4, 2), (1, 4)):
        mesh = make_mesh(devices=jax.devices()[:devices])
        placed = global_batch(mesh, batch)
        got = taught_by(teacher_file, devices=devices, parts=parts)(placed, KEY)["teacher"]
        assert got.sharding.is_equivalent_to(batch_sharding(mesh), 4)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_parts_of_a_batch_add_up(variables, teacher_file):
    batch = taught_by(teacher_file, SMALL)(make_batch(), KEY)
    devices = dataclasses.replace(CONFIG.devices, accumulate=2)
    optimizer = make_optimizer(TAUGHT.optim, SMALL, 100)
    missed = []
    for config in (TAUGHT, dataclasses.replace(TAUGHT, devices=devices)):
        state = init_state(jax.tree.map(jnp.copy, variables), optimizer, True)
        _, metrics = make_step(config, STAGE, optimizer)(state, batch, jax.random.key(1))
        missed.append(float(metrics["teacher"]))
    # Not equal: each part is measured by the variance of its own pictures.
    assert missed[1] == pytest.approx(missed[0], rel=0.2)


def test_teachers_are_models_of_this_project_or_mobile_sam(teacher_file, mobile_sam):
    batch = make_batch()
    got = taught_by(teacher_file, SMALL)(batch, KEY)
    assert set(got) == set(batch) | {"teacher"}
    sam = load(teacher_file)
    images = normalise(jnp.asarray(batch["image"]), batch["image_hw"])
    want = sam.model.apply(sam.params, images, method="encode")
    np.testing.assert_allclose(got["teacher"], want, atol=1e-5)
    wide = SMALL.replace(embed_dim=256, patch_size=16, image_size=64)
    frame = {"image": np.zeros((1, 64, 64, 3), np.uint8), "image_hw": np.array([[64, 48]])}
    frame["image"][0, :, :48] = np.random.default_rng(0).integers(0, 256, (64, 48, 3))
    assert taught_by(mobile_sam, wide)(frame, KEY)["teacher"].shape == (1, 4, 4, 256)
    with pytest.raises(ValueError, match=r"teacher: .*\(4, 4, 256\).*\(4, 4, 16\).*embed_dim"):
        taught_by(mobile_sam, wide.replace(embed_dim=16))
    with pytest.raises(ValueError, match="teacher: name_or_path"):
        taught_by("nowhere.pt", wide)


def test_a_teacher_can_look_closer(teacher_file):
    """Pictures twice as large, which it is made for, its embedding averaged down; padding stays."""
    small = SMALL.replace(image_size=SMALL.image_size // 2)
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (1, 4, 4, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    batch = {"image": image, "image_hw": np.array([[16, 10]])}
    config = dataclasses.replace(TAUGHT, teacher=str(teacher_file), model=small, teacher_enlarge=2)
    got = Teacher(config, make_mesh(devices=jax.devices()[:1]))(batch, KEY)["teacher"]
    sam = load(teacher_file)
    large = np.stack([twice(image[0, ..., c]) for c in range(3)], -1)[None]
    normal = np.array(normalise(jnp.asarray(large), np.array([[32, 20]])))
    assert (normal[:, :, 20:] == 0).all()
    want = sam.model.apply(sam.params, normal, method="encode")
    want = np.asarray(want).reshape(1, 2, 2, 2, 2, -1).mean((2, 4))
    np.testing.assert_allclose(got, want, atol=1e-4)


def twice(channel):
    """Twice as large, between the middles of pixels, as the outermost ones beyond them."""
    for axis in (0, 1):
        n = channel.shape[axis]
        at = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        channel = channel.take(low, axis) * (1 - share) + channel.take(high, axis) * share
    return channel.astype(np.float32)


@pytest.mark.torch
def test_mobile_sam_sees_the_photo_as_pytorch_does(mobile_sam):
    wide = SMALL.replace(embed_dim=256, patch_size=16, image_size=64)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    frame = {"image": image, "image_hw": np.array([[64, 48]])}
    got = taught_by(mobile_sam, wide)(frame, KEY)
    normal = (image - [123.675, 116.28, 103.53]) / np.array([58.395, 57.12, 57.375])
    normal[:, :, 48:] = 0
    want = embed(tensors(), normal.astype(np.float32))
    assert np.abs(got["teacher"] - want).max() < 1e-4 * np.abs(want).max()


def test_a_mobile_sam_can_learn_too(teacher_file):
    """Its fresh neck begins with the teacher's mean and deviation as a ViT's does."""
    learner = MOBILE_SAM.replace(embed_dim=16, image_size=64)
    wide = small_sam(SMALL.replace(patch_size=16, window_size=2, image_size=64))
    path = teacher_file.with_name("sixteen.safetensors")
    save(wide, path)
    stage = dataclasses.replace(STAGE, image_size=64)
    config = dataclasses.replace(
        TAUGHT, teacher=str(path), model=learner, scenes=1.0, data_root="none", stages=(stage,)
    )
    found = with_neck_like(config, init(learner, jax.random.key(0)), taught_by(path, learner))
    norm = found["params"]["image_encoder"]["neck_norm2"]
    assert (norm["scale"] != 1).all() and (norm["bias"] != 0).all()


def test_a_run_begins_with_mobile_sams_decoder(mobile_sam):
    small = SMALL.replace(patch_size=16, image_size=64)
    config = TrainConfig(
        model=small, init_decoder=str(mobile_sam), narrow_decoder=512, stages=(STAGE,)
    )
    found, variables, _ = starting_point(config)
    assert (found.model.embed_dim, found.model.decoder_mlp_width) == (256, 512)
    whole, _, _ = starting_point(dataclasses.replace(config, narrow_decoder=0))
    assert whole.model.decoder_mlp_width == 2048
    assert found.model.encoder_width == small.encoder_width
    decoder = load(mobile_sam).params
    taken, given = variables["params"], decoder["params"]
    for part in given["mask_decoder"].keys() - {"transformer"}:
        jax.tree.map(
            np.testing.assert_array_equal, taken["mask_decoder"][part], given["mask_decoder"][part]
        )
    jax.tree.map(np.testing.assert_array_equal, taken["prompt_encoder"], given["prompt_encoder"])
    jax.tree.map(np.testing.assert_array_equal, variables["buffers"], decoder["buffers"])
    shapes = jax.eval_shape(lambda: init(found.model, jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(np.shape(a), b.shape), variables, shapes)
    # What the encoder had before its neck stays.
    before = init(small, jax.random.key(0))["params"]["image_encoder"]
    for part in ("block_1", "pos_embed", "patch_embed"):
        jax.tree.map(
            np.testing.assert_array_equal, variables["params"]["image_encoder"][part], before[part]
        )
    with pytest.raises(ValueError, match="init_decoder: name_or_path"):
        starting_point(dataclasses.replace(config, init_decoder="nowhere"))
    text = dataclasses.replace(config, model=small.replace(text_width=8))
    with pytest.raises(ValueError, match="init_decoder: a text head"):
        starting_point(text)
    assert resolved(config).model == found.model
    shapes = batch_shapes(dataclasses.replace(found, loss=ALONE), STAGE)
    assert shapes["teacher"].shape == (2, 2, 2, 256)


def test_a_model_of_this_project_lends_its_decoder(teacher_file):
    """One of the same width, whose neck then stays; boxes are drawn if anybody asks for it."""
    own = TrainConfig(model=SMALL, init_decoder=str(teacher_file), stages=(STAGE,))
    found, variables, _ = starting_point(own)
    assert found.model == SMALL and resolved(own).model == SMALL
    lent, before = load(teacher_file).params, init(SMALL, jax.random.key(0))
    for tree, part in ((lent, "mask_decoder"), (lent, "prompt_encoder"), (before, "image_encoder")):
        jax.tree.map(np.testing.assert_array_equal, variables["params"][part], tree["params"][part])
    drawing = dataclasses.replace(own, model=SMALL.replace(draw_boxes=True))
    assert starting_point(drawing)[0].model.draw_boxes


def test_a_narrowed_mlp_keeps_its_weightiest_units():
    rng = np.random.default_rng(0)
    layer = {
        "lin1": {"kernel": rng.normal(size=(4, 6)), "bias": rng.normal(size=6)},
        "lin2": {"kernel": rng.normal(size=(6, 4)), "bias": rng.normal(size=4)},
    }
    layer["lin2"]["kernel"][[1, 4]] = 0  # two units without effect

    def run(layer, x):
        hidden = np.maximum(x @ layer["lin1"]["kernel"] + layer["lin1"]["bias"], 0)
        return hidden @ layer["lin2"]["kernel"] + layer["lin2"]["bias"]

    x = rng.normal(size=(7, 4))
    np.testing.assert_allclose(run(narrowed(layer, 4), x), run(layer, x))
    assert (
        narrowed(layer, 4)["lin1"]["bias"].tolist() == layer["lin1"]["bias"][[0, 2, 3, 5]].tolist()
    )


def test_a_fresh_neck_begins_as_large_as_the_teachers_embeddings(variables, teacher_file):
    stage = dataclasses.replace(STAGE, image_size=64)
    config = dataclasses.replace(TAUGHT, data_root="none", scenes=1.0, stages=(stage,))
    teacher = taught_by(teacher_file, SMALL)
    found = with_neck_like(config, variables, taught_by(teacher_file, SMALL, devices=2))
    norm = found["params"]["image_encoder"]["neck_norm2"]
    batches = stage_batches(config, 0, 0)
    batch = next(batches)
    batches.close()
    height, width = (batch["image_hw"][:, i, None, None] for i in (0, 1))
    y, x = 8 * np.arange(8)[:, None], 8 * np.arange(8)
    pixels = np.asarray(teacher(batch, KEY)["teacher"])[(y < height) & (x < width)]
    np.testing.assert_allclose(norm["bias"], pixels.mean(0), atol=1e-5)
    np.testing.assert_allclose(norm["scale"], pixels.std(0), atol=1e-5)
    assert with_neck_like(config, found, teacher) is found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ""}, "teacher: goes together with loss.teacher_weight"),
        ({"teacher": "", "loss": ANSWERED}, "teacher: goes together with .* loss.answers_weight"),
        ({"loss": LossConfig(0.0, 0.0, 0.0, answers_weight=1.0)}, "answers_weight: goes with"),
        (
            {"loss": ANSWERED, "cache_embeddings": True},
            "loss.answers_weight: .* cache_embeddings keeps",
        ),
        ({"loss": ANSWERED, "text": TextConfig(clip="x")}, "does not answer texts"),
        ({"loss": LossConfig()}, "teacher: goes together with loss.teacher_weight"),
        ({"optim": OptimConfig()}, "optim.frozen: no mask is learned"),
        ({"teacher": "", "loss": LossConfig(0.0, 0.0, 0.0)}, "so that nothing is learned"),
        (
            {"optim": OptimConfig(frozen=("image_encoder/*",))},
            "teacher_weight: teaches the encoder",
        ),
        ({"teacher_enlarge": 0}, "teacher_enlarge: expected .* from 1 on.*, got 0"),
        (
            {"teacher": "", "loss": LossConfig(), "teacher_enlarge": 2},
            "teacher_enlarge: expected .* together with teacher, got 2",
        ),
        ({"narrow_decoder": 8}, "narrow_decoder: expected .* together with init_decoder, got 8"),
    ],
)
def test_what_contradicts_a_teacher(variables, changes, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(TAUGHT, **changes), variables["params"])
