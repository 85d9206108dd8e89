"""Schedules, layer-wise decay, and AdamW number by number against an independent one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.config import VIT_B, VIT_H, SamConfig
from sam_jax.models.sam import init
from sam_jax.training.config import OptimConfig
from sam_jax.training.optim import (
    is_decayed,
    layer_scale,
    learning_rate,
    make_optimizer,
    path_tree,
)

SMALL = SamConfig(
    16,
    2,
    2,
    (1,),
    image_size=32,
    window_size=2,
    embed_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_width=16,
    iou_head_width=16,
)


def test_the_papers_schedule():
    rate = learning_rate(OptimConfig(), 90_000)
    steps = [0, 124, 249, 250, 59_999, 60_001, 86_665, 86_667]
    expected = np.array([1 / 250, 125 / 250, 1, 1, 1, 0.1, 0.1, 0.01]) * 8e-4
    np.testing.assert_allclose([float(rate(s)) for s in steps], expected, rtol=1e-4)


def test_layer_decay_of_vit_h_and_b():
    block = "image_encoder/block_{}/attn/qkv/kernel"
    assert layer_scale(block.format(31), VIT_H, 0.8) == pytest.approx(0.8)
    assert layer_scale(block.format(0), VIT_H, 0.8) == pytest.approx(0.8**32)
    assert layer_scale("image_encoder/pos_embed", VIT_B, 0.6) == pytest.approx(0.6**13)
    assert layer_scale("image_encoder/neck_conv1/kernel", VIT_B, 0.6) == 1
    assert layer_scale("mask_decoder/mask_tokens", VIT_B, 0.6) == 1


def test_what_is_decayed():
    params = jax.eval_shape(lambda key: init(SMALL, key), jax.random.key(0))["params"]
    decayed = {}
    path_tree(params, lambda path, p: decayed.__setitem__(path, is_decayed(path, p.shape)))
    yes = {path for path, value in decayed.items() if value}
    assert {
        "image_encoder/block_0/attn/qkv/kernel",
        "image_encoder/neck_conv2/kernel",
        "prompt_encoder/mask_conv1/kernel",
        "mask_decoder/iou_head/layer_0/kernel",
    } <= yes
    for part in ("norm", "bias", "pos", "token", "embeddings", "no_mask", "not_a_point"):
        assert not any(part in path.split("/")[-1] for path in yes), part
        assert any(part in path for path in decayed), part
    assert not any("norm" in path for path in yes)


def test_adamw_step_by_step():
    """Against AdamW (Loshchilov and Hutter 2019) written out for each tensor in float64."""
    config = OptimConfig(lr=1e-2, warmup=2, schedule="cosine", layer_decay=0.5, weight_decay=0.1)
    params = init(SMALL, jax.random.key(0))["params"]
    optimizer, total = make_optimizer(config, SMALL, 10), 10
    state, rate = optimizer.init(params), learning_rate(config, total)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    m = v = jax.tree.map(np.zeros_like, expected)
    scales = path_tree(params, lambda path, p: layer_scale(path, SMALL, 0.5))
    decays = path_tree(params, lambda path, p: 0.1 * is_decayed(path, p.shape))
    for step in range(4):
        keys = jax.random.split(jax.random.key(step), len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
        grads = jax.tree.map(lambda k, p: jax.random.normal(k, p.shape), keys, params)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = jax.tree.map(lambda x: np.asarray(x, np.float64), grads)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        lr, c1, c2 = float(rate(step)), 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        expected = jax.tree.map(
            lambda p, m, v, s, d, lr=lr, c1=c1, c2=c2: (
                p - lr * s * (m / c1 / (np.sqrt(v / c2) + 1e-8) + d * p)
            ),
            expected,
            m,
            v,
            scales,
            decays,
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), params, expected
    )


@pytest.mark.torch
def test_adamw_is_that_of_torch():
    """torch.optim.AdamW, a group for each tensor, over 12 steps with the same gradients."""
    import torch

    config = OptimConfig(lr=1e-2, warmup=4, milestones=(0.6, 0.8), layer_decay=0.8)
    params = init(SMALL, jax.random.key(0))["params"]
    optimizer, total = make_optimizer(config, SMALL, 12), 12
    state, rate = optimizer.init(params), learning_rate(config, total)
    update = jax.jit(optimizer.update)
    theirs = [torch.nn.Parameter(torch.tensor(np.array(x))) for x in jax.tree.leaves(params)]
    scales = jax.tree.leaves(path_tree(params, lambda path, p: layer_scale(path, SMALL, 0.8)))
    decays = jax.tree.leaves(path_tree(params, lambda path, p: 0.1 * is_decayed(path, p.shape)))
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(theirs, decays, strict=True)]
    reference = torch.optim.AdamW(groups, betas=config.betas, eps=1e-8)
    rng = np.random.default_rng(0)
    for step in range(total):
        grads = [rng.normal(0, 0.1, p.shape).astype(np.float32) for p in theirs]
        for p, g, group, scale in zip(theirs, grads, reference.param_groups, scales, strict=True):
            p.grad, group["lr"] = torch.tensor(g), float(rate(step)) * scale
        reference.step()
        grads = jax.tree.unflatten(jax.tree.structure(params), grads)
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for ours, p in zip(jax.tree.leaves(params), theirs, strict=True):
            np.testing.assert_allclose(ours, p.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_muon_steps_along_orthogonal_matrices_and_adam_takes_the_rest():
    config = OptimConfig(
        name="muon", lr=1e-3, muon_lr=4e-3, warmup=1, layer_decay=1.0, weight_decay=0.0
    )
    params = init(SMALL, jax.random.key(0))["params"]
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    optimizer = make_optimizer(config, SMALL, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    kernel = updates["mask_decoder"]["iou_head"]["layer_0"]["kernel"]
    # consistent RMS: 0.2 sqrt(16) times an orthogonal 16 x 16 matrix, times muon_lr, downhill
    singular = np.linalg.svd(np.asarray(kernel) / (4e-3 * 0.2 * 4), compute_uv=False)
    assert 0.6 < singular.min() and singular.max() < 1.3  # five Newton-Schulz steps come near 1
    gradient = grads["mask_decoder"]["iou_head"]["layer_0"]["kernel"]
    assert np.vdot(kernel, gradient) < 0
    bias, bias_grad = (
        updates["mask_decoder"]["upscale_bias1"],
        grads["mask_decoder"]["upscale_bias1"],
    )
    assert np.all(np.sign(bias) == -np.sign(bias_grad))
    np.testing.assert_allclose(np.abs(bias), 1.47e-3, rtol=0.01)  # Adam's first, with Nesterov


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parts_stay(name):
    config = OptimConfig(name=name, frozen=("image_encoder/patch_embed/*", "*/iou_token"), warmup=1)
    params = init(SMALL, jax.random.key(0))["params"]
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = make_optimizer(config, SMALL, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)

    def check(path, u):
        frozen = "patch_embed" in path or "iou_token" in path
        assert bool((np.asarray(u) == 0).all()) == frozen, path

    path_tree(updates, check)


def test_a_pattern_that_matches_nothing_is_an_error():
    params = init(SMALL, jax.random.key(0))["params"]
    with pytest.raises(ValueError, match=r"optim.frozen: .*'image_encodr/\*'"):
        make_optimizer(OptimConfig(frozen=("image_encodr/*",)), SMALL, 10).init(params)
