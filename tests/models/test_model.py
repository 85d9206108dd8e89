"""What holds of the model whatever its weights: sizes, batches, empty slots, precision, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.config import SamConfig
from sam_jax.models.layers import low_product
from sam_jax.models.prompt_encoder import Prompts
from sam_jax.models.sam import SamModel, init, normalise
from tests.golden.make import SMALL
from tests.models.stages import KINDS, difference, to_prompts, user_prompt
from tests.weights import lively_variables


@functools.cache
def run(method, config=SMALL):
    return jax.jit(lambda v, *args: SamModel(config).apply(v, *args, method=method))


@pytest.fixture(scope="module")
def variables():
    return lively_variables(SMALL, seed=5)


def picture(height, width, batch=1, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (batch, height, width, 3)).astype(np.float32)


def random_prompts(b, n, p, seed=0) -> Prompts:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-2, 4, (b, n, p)).astype(np.int32)
    return Prompts(rng.uniform(0, 112, (b, n, p, 2)).astype(np.float32), labels)


def transposed(variables):
    """The weights under which a transposed picture gives the transposed embedding."""

    def swap(path, x):
        name = "/".join(k.key for k in path)
        p, d = SMALL.patch_size, SMALL.encoder_width
        if "patch_embed/kernel" in name:
            return x.reshape(p, p, 3, d).transpose(1, 0, 2, 3).reshape(-1, d)
        if "pos_embed" in name:
            return x.transpose(0, 2, 1, 3)
        return x.transpose(1, 0, 2, 3) if "neck_conv2" in name else x

    out = jax.tree_util.tree_map_with_path(swap, jax.tree.map(np.asarray, variables))
    for name, block in out["params"]["image_encoder"].items():
        if name.startswith("block"):
            tables = block["attn"]
            tables["rel_pos_h"], tables["rel_pos_w"] = tables["rel_pos_w"], tables["rel_pos_h"]
    return out


@pytest.mark.parametrize("hw", [(80, 144), (176, 64)])
def test_height_and_width_are_not_mixed_up(variables, hw):
    x = picture(*hw)
    z = run("encode")(variables, x)
    assert z.shape == (1, hw[0] // 16, hw[1] // 16, SMALL.embed_dim)
    turned = run("encode")(transposed(variables), x.transpose(0, 2, 1, 3))
    assert difference(turned.transpose(0, 2, 1, 3), z) < 1e-5


def test_logits_of_a_non_square_embedding(variables):
    z = run("encode")(variables, picture(80, 144))
    logits, iou = run("decode")(variables, z, random_prompts(1, 2, 3))
    assert logits.shape == (1, 2, 4, 20, 36) and iou.shape == (1, 2, 4)


def test_batches_and_prompts_do_not_see_each_other(variables):
    x, prompts = picture(112, 112, 3), random_prompts(3, 4, 5)
    z = run("encode")(variables, x)
    logits, iou = run("decode")(variables, z, prompts)
    for b in range(3):
        assert difference(run("encode")(variables, x[b : b + 1])[0], z[b]) < 1e-4
        for n in range(4):
            one = jax.tree.map(lambda a, b=b, n=n: a[b : b + 1, n : n + 1], prompts)
            alone, alone_iou = run("decode")(variables, z[b : b + 1], one)
            assert difference(alone[0, 0], logits[b, n]) < 1e-4
            assert difference(alone_iou[0, 0], iou[b, n]) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_empty_slots_change_nothing(kind):
    config = SMALL.replace(embed_dim=64)
    variables = lively_variables(config, seed=5)
    z = run("encode", config)(variables, picture(112, 112))
    prompt = user_prompt(config, kind)
    logits, iou = run("decode", config)(variables, z, to_prompts(prompt))
    for empty in (1, 4, 6, 60):
        more, more_iou = run("decode", config)(variables, z, to_prompts(prompt, empty))
        assert difference(more, logits) < 1e-5 and difference(more_iou, iou) < 1e-5


def test_not_a_point_is_no_padding(variables):
    z = run("encode")(variables, picture(112, 112))
    one, two = (np.array([[[1] + [-1] * n]], np.int32) for n in (1, 2))
    a, _ = run("decode")(variables, z, Prompts(np.full((1, 1, 2, 2), 50.0), one))
    b, _ = run("decode")(variables, z, Prompts(np.full((1, 1, 3, 2), 50.0), two))
    assert difference(a, b) > 1e-3


def test_prompts_with_and_without_masks_in_one_batch(variables):
    z = run("encode")(variables, picture(112, 112))
    prompts = random_prompts(1, 2, 3)
    masks = np.random.default_rng(1).normal(0, 5, (1, 2, 28, 28)).astype(np.float32)
    has = np.array([[True, False]])
    mixed, _ = run("decode")(variables, z, Prompts(prompts.points, prompts.labels, masks, has))
    with_all, _ = run("decode")(variables, z, Prompts(prompts.points, prompts.labels, masks))
    without, _ = run("decode")(variables, z, prompts)
    assert difference(mixed[:, 0], with_all[:, 0]) < 1e-4
    assert difference(mixed[:, 1], without[:, 1]) < 1e-4
    zeros, _ = run("decode")(
        variables, z, Prompts(prompts.points, prompts.labels, np.zeros_like(masks))
    )
    assert difference(zeros, without) > 1e-3  # a mask of zeros is not the same as no mask


def test_a_bfloat16_product_has_gradients_of_float32_sums():
    x = jax.random.normal(jax.random.key(0), (3, 40, 24)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (24, 16))
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    plain = x.astype(jnp.float32) @ rounded
    np.testing.assert_allclose(low_product(x, kernel), plain, rtol=1e-6, atol=1e-5)
    dx, dkernel = jax.grad(lambda *a: low_product(*a).sum(), (0, 1))(x, kernel)
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(
        dkernel[:, 0], x.astype(jnp.float32).sum((0, 1)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(dx[0, 0].astype(jnp.float32), rounded.sum(1), rtol=1e-2, atol=1e-2)


def test_rematerialisation_and_gradients(variables):
    x = picture(112, 112)

    def loss(v, remat):
        return (SamModel(SMALL.replace(remat=remat)).apply(v, x, method="encode") ** 3).sum()

    plain, saved = (jax.jit(jax.grad(loss), static_argnums=1)(variables, r) for r in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1e-6, np.abs(a).max()))


@pytest.mark.parametrize("depth, global_blocks", [(4, (1, 3)), (3, (1,))])
def test_a_loop_over_blocks_computes_the_same(depth, global_blocks):
    config = SMALL.replace(encoder_depth=depth, global_blocks=global_blocks, drop_path=0.5)
    variables, x = lively_variables(config, seed=5), picture(112, 80, 3)

    def loss(v, loop):
        model = SamModel(config.replace(scan_blocks=loop, remat=loop))
        rngs = {"drop_path": jax.random.key(0)}
        z = model.apply(v, x, True, method="encode", rngs=rngs)
        return (z**3).sum(), z

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (plain, z), (looped, z_looped) = (gradient(variables, loop) for loop in (False, True))
    assert difference(z_looped, z) < 1e-5
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1e-6, np.abs(a).max()))


def test_bfloat16_is_close_and_keeps_float32_outputs(variables):
    config = SMALL.replace(dtype="bfloat16")
    x = picture(112, 112)
    z = run("encode")(variables, x)
    low = run("encode", config)(variables, x)
    assert low.dtype == jnp.float32 and 1e-4 < difference(low, z) < 0.1
    logits, iou = run("decode", config)(variables, z, random_prompts(1, 2, 3))
    full, _ = run("decode")(variables, z, random_prompts(1, 2, 3))
    assert logits.dtype == iou.dtype == jnp.float32
    assert 1e-5 < difference(logits, full) < 0.3


def test_vmap_over_images(variables):
    x = picture(112, 112, 3)
    each = jax.vmap(lambda x: SamModel(SMALL).apply(variables, x[None], method="encode")[0])(x)
    assert difference(each, run("encode")(variables, x)) < 1e-5


def test_text_head():
    config = SMALL.replace(text_width=6)
    variables = init(config, jax.random.key(0))
    z, prompts = jnp.ones((1, 7, 7, 16)), random_prompts(1, 2, 3)
    text = jax.random.normal(jax.random.key(1), (1, 2, 6))
    decode = run("decode", config)
    a, _ = decode(variables, z, Prompts(prompts.points, prompts.labels, text=text))
    b, _ = decode(variables, z, prompts)
    assert difference(a, b) > 1e-4
    none = jnp.zeros((1, 2), bool)
    c, _ = decode(variables, z, Prompts(prompts.points, prompts.labels, text=text, has_text=none))
    assert difference(c, b) < 1e-4
    with pytest.raises(ValueError, match="text head"):
        plain = init(SMALL, jax.random.key(0))
        run("decode")(plain, z, Prompts(prompts.points, prompts.labels, text=text))


def test_padding_is_zero_after_normalising():
    image = np.full((1, 4, 6, 3), 200, np.uint8)
    x = normalise(image, np.array([[3, 5]]))
    np.testing.assert_allclose(
        x[0, 0, 0],
        (200 - 123.675) / 58.395 * np.array([1, 0, 0])
        + np.array([0, (200 - 116.28) / 57.12, (200 - 103.53) / 57.375]),
        rtol=1e-5,
    )
    assert float(jnp.abs(x[:, 3:]).max()) == float(jnp.abs(x[:, :, 5:]).max()) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: run("encode")(v, np.zeros((1, 100, 112, 3), np.float32)), "multiples of 16"),
        (
            lambda v: run("decode")(v, np.zeros((1, 7, 7, 8), np.float32), random_prompts(1, 1, 1)),
            r"\[B, h, w, 16\]",
        ),
        (
            lambda v: run("decode")(
                v, np.zeros((2, 7, 7, 16), np.float32), random_prompts(1, 1, 1)
            ),
            r"points \[2, N, P, 2\]",
        ),
        (
            lambda v: run("decode")(
                v,
                np.zeros((1, 7, 7, 16), np.float32),
                Prompts(np.zeros((1, 1, 1, 2)), np.ones((1, 1, 1), int), np.zeros((1, 1, 9, 9))),
            ),
            "28, 28",
        ),
        (lambda v: SamConfig(30, 1, 4, ()), "30 does not divide into 4"),
        (lambda v: SamConfig(32, 1, 4, (), image_size=100), "multiple of patch_size=16"),
    ],
)
def test_errors_name_what_is_wrong(variables, call, message):
    with pytest.raises(ValueError, match=message):
        call(variables)


@pytest.mark.parametrize("wanted, indices", [("several", slice(1, None)), ("one", slice(0, 1))])
def test_masks_that_are_not_wanted_change_nothing(wanted, indices):
    variables = lively_variables(SMALL)
    grid = SMALL.grid
    embedding = jax.random.normal(jax.random.key(0), (1, grid, grid, SMALL.embed_dim))
    prompts = Prompts(jnp.array([[[[5.0, 9.0], [0.0, 0.0]]]]), jnp.array([[[1, -1]]]))
    model = SamModel(SMALL)
    whole = model.apply(variables, embedding, prompts, method="decode")
    part = model.apply(variables, embedding, prompts, wanted=wanted, method="decode")
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_allclose(ours, theirs[:, :, indices], atol=1e-5)
