"""CLIP's towers: sizes, parity with transformers, object masks, ends of texts."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.clip import (
    CLIP_VIT_B_16,
    CLIP_VIT_B_32,
    CLIP_VIT_L_14_336,
    Block,
    ClipModel,
    Scale,
    TowerConfig,
    clip_normalise,
    end_positions,
    init_clip,
    object_attention,
)
from tests.clips import SMALL, images, random_params, reference
from tests.models.stages import difference

pytestmark = pytest.mark.optimised

TOLERANCE = 1e-4  # relative, float32
OLD = SMALL.replace(
    image=TowerConfig(24, 2, 3, 40, "gelu", norm_eps=1e-3),
    text=TowerConfig(20, 2, 2, 36),
    eos_id=2,
)
"""The other activation in either tower, and the end at the highest id."""
IDS = np.array(
    [
        [30, 4, 27, 27, 27, 27, 27, 27, 27],
        [30, 31, 2, 9, 31, 3, 7, 27, 1],
        [27, 29, 28, 28, 31, 5, 6, 8, 31],
        [30, 2, 1, 0, 3, 4, 5, 6, 7],
    ]
)
"""Ends at 2, 7, 0 and (there is none) 0 by the first rule, at 0, 1, 4 and 0 by the old one."""
LIVE = np.array(
    [[1, 1, 1, 0, 0, 0, 0, 0, 0], [1] * 9, [1, 1, 0, 1, 1, 0, 1, 1, 1], [1] * 8 + [0]], bool
)
SIZES = {
    "b_32": (CLIP_VIT_B_32, 151_277_313, 63_428_096),
    "b_16": (CLIP_VIT_B_16, 149_620_737, 63_428_096),
    "l_14_336": (CLIP_VIT_L_14_336, 427_944_193, 123_650_304),
}


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@functools.cache
def params(config=SMALL):
    return random_params(config)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(config, method, variables, *args):
    """The result, and what every module of the towers gave."""
    return ClipModel(config).apply(
        variables, *args, method=method, mutable="intermediates", capture_intermediates=True
    )


def encode(config, *args, method="encode_image"):
    return np.asarray(run(config, method, params(config), *args)[0])


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_are_the_released_ones(name):
    config, whole, text = SIZES[name]
    assert count(jax.eval_shape(lambda k: init_clip(config, k), jax.random.key(0))) == whole
    only = jax.eval_shape(lambda k: init_clip(config, k, text_tower_only=True), jax.random.key(0))
    assert list(only["params"]) == ["text"] and count(only) == text


@pytest.mark.torch
@pytest.mark.parametrize("name", SIZES)
def test_transformers_count_the_same(name):
    transformers = pytest.importorskip("transformers", reason="compares with Hugging Face's port")
    import torch

    from sam_jax.checkpoint.clip import config_to_huggingface

    config, whole, _ = SIZES[name]
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(**config_to_huggingface(config)))
    assert sum(x.numel() for x in model.parameters()) == whole


@pytest.fixture(scope="module", params=[SMALL, OLD], ids=["first end, quick", "highest id, erf"])
def pair(request):
    pytest.importorskip("transformers", reason="compares with Hugging Face's port")
    return request.param, reference(request.param, params(request.param))


def differences(ours, kept, states, out, pooled):
    """Relative differences of every layer, the pooled state and the embedding."""
    found = {
        f"block_{i}": difference(kept[f"block_{i}"]["__call__"][0], state)
        for i, state in enumerate(states)
    }
    found["pooled"] = difference(kept[pooled]["__call__"][0], out[0])
    return found | {"embedding": difference(ours, out[1])}


@pytest.mark.torch
def test_every_layer_of_the_image_tower(pair):
    import torch

    config, model = pair
    x = images(config=config)
    ours, kept = run(config, "encode_image", params(config), x)
    kept = kept["intermediates"]["image"]
    with torch.no_grad():
        out = model.vision_model(
            torch.from_numpy(x).permute(0, 3, 1, 2), output_hidden_states=True, return_dict=True
        )
        pooled = out.pooler_output
        both = pooled, model.visual_projection(pooled)
    found = differences(ours, kept, out.hidden_states[1:], both, "norm_post")
    found["norm_pre"] = difference(kept["norm_pre"]["__call__"][0], out.hidden_states[0])
    assert len(found) == config.image.depth + 3
    assert {k: v for k, v in found.items() if not v < TOLERANCE} == {}


@pytest.mark.torch
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_every_layer_of_the_text_tower(pair, masked):
    import torch

    config, model = pair
    args = (IDS, LIVE) if masked else (IDS,)
    ours, kept = run(config, "encode_text", params(config), *args)
    with torch.no_grad():
        out = model.text_model(
            torch.from_numpy(IDS),
            torch.from_numpy(LIVE).long() if masked else None,
            output_hidden_states=True,
            return_dict=True,
        )
        pooled = out.pooler_output
        both = pooled, model.text_projection(pooled)
    kept = kept["intermediates"]["text"]
    found = differences(ours, kept, out.hidden_states[1:], both, "norm_final")
    assert len(found) == config.text.depth + 2
    assert {k: v for k, v in found.items() if not v < TOLERANCE} == {}


@pytest.mark.torch
def test_logits(pair):
    import torch

    config, model = pair
    x = images(config=config)
    embeddings = encode(config, x), encode(config, IDS, method="encode_text")
    ours = encode(config, *embeddings, method="similarity")
    with torch.no_grad():
        out = model(torch.from_numpy(IDS), torch.from_numpy(x).permute(0, 3, 1, 2))
    assert ours.shape == (3, 4)
    assert difference(ours, out.logits_per_image) < TOLERANCE


@pytest.mark.parametrize("eos_id, ends", [(27, [2, 7, 0, 0]), (2, [0, 1, 4, 0])])
def test_both_rules_for_the_end_of_a_text(eos_id, ends):
    assert end_positions(jnp.asarray(IDS), eos_id).tolist() == ends


def test_what_follows_the_end_changes_nothing():
    ids = IDS.copy()
    ids[0, 3:], ids[1, 4] = 5, 8
    long, other = (encode(SMALL, x, method="encode_text") for x in (IDS, ids))
    assert difference(other[0], long[0]) < 1e-6 and difference(other[1], long[1]) > 0.01
    short = encode(SMALL, IDS[:, :5], method="encode_text")
    assert difference(short[0], long[0]) < 1e-5 and difference(short[1], long[1]) > 0.01


def test_both_at_once_and_a_tower_alone_by_its_own_params():
    x, only = images(), {"params": {"text": params()["params"]["text"]}}
    text = jax.jit(lambda p: ClipModel(SMALL).apply(p, IDS, normalise=True, method="encode_text"))
    text, image = np.asarray(text(only)), encode(SMALL, x)
    length = np.linalg.norm(image, axis=1, keepdims=True)
    assert (abs(length - 1) > 0.1).all()
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-6)
    logits = np.asarray(run(SMALL, None, params(), x, IDS)[0])
    scale = np.exp(params()["params"]["logit_scale"]["log"])
    np.testing.assert_allclose(logits, scale * (image / length) @ text.T, rtol=1e-4, atol=1e-5)


def object_mask():
    """Two patches of the first image, none of the second, all of the third."""
    mask = np.zeros((3, SMALL.grid, SMALL.grid), bool)
    mask[0, 1, 2] = mask[0, 3, 4] = True
    mask[2] = True
    return mask


def last_layer_gradient(config, x, mask):
    """Of the embeddings' sum by the last block's input: its size at each token, [B, 1 + L]."""
    shape = (len(x), 1 + config.grid**2, config.image.width)

    def total(change):
        def moved(call, args, kwargs, context):
            if isinstance(context.module, Block) and context.module.name.endswith(
                f"_{config.image.depth - 1}"
            ):
                args = (args[0] + change, *args[1:])
            return call(*args, **kwargs)

        with nn.intercept_methods(moved):
            out = ClipModel(config).apply(params(config), x, mask, method="encode_image")
        return out.sum()

    return abs(np.asarray(jax.jit(jax.grad(total))(jnp.zeros(shape)))).sum(-1)


def test_in_the_last_layer_the_class_token_sees_the_object_alone():
    size = last_layer_gradient(SMALL, images(), object_mask())
    inside = np.concatenate([np.ones((3, 1), bool), object_mask().reshape(3, -1)], 1)
    inside[1] = True  # no patch is no restriction
    assert (size[~inside] == 0).all() and (size[inside] > 1e-6).all()
    assert (~inside).sum() == SMALL.grid**2 - 2


def test_the_last_layers_attention_by_hand():
    mask = jnp.array([[[True, False]], [[False, False]]])
    assert object_attention(mask)[:, 0].astype(int).tolist() == [
        [[1, 1, 0], [1, 1, 1], [1, 1, 1]],  # the class token itself, and the patch inside
        [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    ]


def test_with_one_layer_pixels_outside_the_object_do_not_count():
    config = SMALL.replace(image=dataclasses.replace(SMALL.image, depth=1))
    p, mask = config.patch_size, object_mask()[:1]
    x = images(1, config)
    inside = np.kron(mask[0], np.ones((p, p), bool))[None, :, :, None]
    other = images(1, config, seed=5)
    masked = encode(config, x, mask)
    assert difference(encode(config, np.where(inside, x, other), mask), masked) == 0
    assert difference(encode(config, np.where(inside, other, x), mask), masked) > 0.01


def test_full_and_empty_masks_are_no_restriction():
    x = images()
    (plain, before), (masked, after) = (
        run(SMALL, "encode_image", params(), x, *args) for args in ((), (object_mask(),))
    )
    np.testing.assert_allclose(masked[1:], plain[1:], atol=1e-5)
    assert difference(masked[0], plain[0]) > 0.01
    layers = [kept["intermediates"]["image"] for kept in (before, after)]
    first, last = ([x[f"block_{i}"]["__call__"][0] for x in layers] for i in (0, 1))
    assert difference(first[1], first[0]) < 1e-6
    assert difference(last[1][:, 1:], last[0][:, 1:]) < 1e-6  # the patches
    assert difference(last[1][0, 0], last[0][0, 0]) > 0.01


def test_bfloat16_stays_near_and_gives_float32():
    got, _ = run(SMALL.replace(dtype="bfloat16"), "encode_image", params(), images())
    assert got.dtype == jnp.float32
    assert 1e-5 < difference(got, encode(SMALL, images())) < 0.05


def test_clip_normalise():
    x = np.zeros((1, 2, 2, 3), np.uint8)
    x[0, 0, 1] = (255, 128, 0)
    got = np.asarray(clip_normalise(jnp.asarray(x)))
    want = [(1 - 0.48145466) / 0.26862954, (128 / 255 - 0.4578275) / 0.26130258]
    np.testing.assert_allclose(got[0, 0, 1], [*want, -0.40821073 / 0.27577711], rtol=1e-6)
    np.testing.assert_array_equal(got, clip_normalise(jnp.asarray(x, jnp.float32)))


def test_fresh_weights_are_of_the_paper():
    block = Block(TowerConfig(128, 1, 4, 512), "float32")
    made = jax.jit(lambda key: block.init(key, jnp.zeros((1, 1, 128))))(jax.random.key(0))["params"]
    for lin, std in (("lin1", 1 / 16), ("lin2", 1 / 16)):
        assert float(made[lin]["kernel"].std()) == pytest.approx(std, rel=0.02)
    for proj, std in (("k_proj", 128**-0.5), ("out_proj", 1 / 16)):
        assert float(made["attn"][proj]["kernel"].std()) == pytest.approx(std, rel=0.02)
    scale = Scale().init(jax.random.key(0))["params"]["log"]
    assert float(jnp.exp(scale)) == pytest.approx(1 / 0.07)


@pytest.mark.parametrize(
    "method, args, message",
    [
        ("encode_image", (np.zeros((1, 30, 36, 3)),), r"images: expected \[B, 30, 30, 3\]"),
        (
            "encode_image",
            (np.zeros((1, 30, 30, 3)), np.zeros((1, 5, 6), bool)),
            r"object_mask: expected bool \[1, 5, 5\].* got bool \(1, 5, 6\)",
        ),
        (
            "encode_image",
            (np.zeros((1, 30, 30, 3)), np.zeros((1, 5, 5), np.float32)),
            "object_mask: expected bool .* got float32",
        ),
        ("encode_text", (np.zeros((1, 10), int),), r"ids: expected \[B, T\] with T of 1 to 9"),
        ("encode_text", (IDS, LIVE[:, :5]), r"live: expected \(4, 9\)"),
    ],
)
def test_wrong_shapes_are_named(method, args, message):
    with pytest.raises(ValueError, match=message):
        ClipModel(SMALL).apply(params(), *args, method=method)


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="width: 24 does not divide into 5 heads"):
        TowerConfig(24, 1, 5, 40)
    with pytest.raises(ValueError, match="activation: expected one of quick_gelu, gelu, got 'relu"):
        TowerConfig(24, 1, 3, 40, "relu")
    with pytest.raises(ValueError, match="image_size: expected a multiple of patch_size=6, got 31"):
        SMALL.replace(image_size=31)
