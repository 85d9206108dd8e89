"""Layers' gradients against their formulas in float64, and an MLP in parts against a whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models import image_encoder
from sam_jax.models.image_encoder import Block, _part, mlp
from sam_jax.models.layers import ChannelNorm, Weights, low_product
from tests.small import CONFIG


@pytest.mark.parametrize(
    ("shape", "axis", "centred"),
    [
        ((1, 8, 128, 1024), -2, False),  # at a batch of one XLA:CPU's own gradient is wrong here
        ((2, 3, 16, 64), -2, False),
        ((1, 2, 16, 4, 64), -3, True),
    ],
)
def test_gradient_of_channel_norm(shape, axis, centred):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, *shape)).astype(np.float32)
    if centred:
        x -= x.mean(axis, keepdims=True)
    width = shape[axis]
    scale, bias = rng.uniform(0.5, 1.5, width).astype(np.float32), np.zeros(width, np.float32)
    norm, params = ChannelNorm(1e-5, axis, centred), {"scale": scale, "bias": bias}

    @jax.jit
    def gradients(x, params, g):
        return jax.vjp(lambda x, p: norm.apply({"params": p}, x), x, params)[1](g)

    dx, dparams = gradients(x, params, g)
    x, g = x.astype(np.float64), g.astype(np.float64)
    other = tuple(i for i in range(x.ndim) if i != x.ndim + axis)
    along = np.expand_dims(scale.astype(np.float64), tuple(range(1, -axis)))
    mean = 0.0 if centred else x.mean(axis, keepdims=True)
    deviation = np.sqrt(((x - mean) ** 2).mean(axis, keepdims=True) + 1e-5)
    y, dy = (x - mean) / deviation, g * along
    expected = dy - y * (dy * y).mean(axis, keepdims=True)
    if not centred:
        expected -= dy.mean(axis, keepdims=True)
    np.testing.assert_allclose(dx, expected / deviation, atol=2e-5)
    np.testing.assert_allclose(dparams["scale"], (g * y).sum(other), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dparams["bias"], g.sum(other), rtol=1e-4, atol=1e-3)


def test_gradient_of_low_products():
    rng = np.random.default_rng(0)
    x, kernel, g = (rng.normal(size=s).astype(np.float32) for s in ((2, 18, 8), (8, 5), (2, 18, 5)))
    x, g = (jnp.asarray(a, jnp.bfloat16).astype(jnp.float32) for a in (x, g))  # exact in bfloat16
    kernel = jnp.asarray(kernel, jnp.bfloat16).astype(jnp.float32)

    @jax.jit
    def gradients(x, kernel, g):
        return jax.vjp(low_product, x.astype(jnp.bfloat16), kernel)[1](g)

    dx, dkernel = gradients(x, kernel, g)
    assert dx.dtype == jnp.bfloat16 and dkernel.dtype == jnp.float32
    np.testing.assert_allclose(dx.astype(jnp.float32), g @ kernel.T, rtol=1e-2, atol=1e-2)
    expected = x.reshape(-1, 8).T @ g.reshape(-1, 5)
    np.testing.assert_allclose(dkernel, expected, rtol=1e-4, atol=1e-3)


def layers(rng, stored=np.float32):
    """Weights from 24 channels to 64 and back."""
    for shape in ((24, 64), (64, 24)):
        kernel, scale = rng.normal(size=shape).astype(np.float32) / 5, None
        if stored == np.int8:
            scale = np.abs(kernel).max(0) / 127
            kernel = np.round(kernel / scale)
        yield Weights(kernel.astype(stored), rng.normal(size=shape[1]).astype(np.float32), scale)


@pytest.mark.parametrize("stored", [np.float32, np.int8])
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_an_mlp_in_parts_is_the_whole_one(monkeypatch, dtype, close, stored):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 16, 16, 24)), dtype)
    weights = tuple(layers(rng, stored))
    whole, whole_text = traced(x, weights, dtype)
    monkeypatch.setattr(image_encoder, "IN_CACHE", 128 * 64)
    parts, parts_text = traced(x, weights, dtype)
    assert "stablehlo.while" in parts_text and "stablehlo.while" not in whole_text
    assert whole.dtype == parts.dtype == dtype and whole.shape == x.shape
    np.testing.assert_allclose(parts.astype(float), whole.astype(float), atol=close, rtol=close)


def traced(x, weights, dtype):
    program = jax.jit(lambda x, weights: mlp(x, *weights, dtype)).lower(x, weights)
    return np.asarray(program.compile()(x, weights)), program.as_text()


def test_parts_of_an_mlp_divide_its_rows():
    assert _part(4096, 3072) == 512 and _part(4096, 5120) == 256  # ViT-B's and ViT-H's
    assert _part(40 * 60, 3072) == 480 and _part(100, 3072) == 100 and _part(1024, 768) == 1024
    assert _part(37 * 41, 3072) == 37 * 41  # nothing near divides it


def test_a_block_that_is_trained_computes_its_mlp_whole(monkeypatch):
    """In parts, the backward pass would keep what the policy of the blocks lets go."""
    monkeypatch.setattr(image_encoder, "IN_CACHE", 128 * 64)
    config = CONFIG.replace(encoder_width=16, encoder_heads=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 16)), jnp.float32)
    texts, results = [], []
    params = Block(config, 4).init(jax.random.key(0), x)
    for train in (False, True):
        program = jax.jit(Block(config, 4, train).apply).lower(params, x)
        texts.append(program.as_text())
        results.append(program.compile()(params, x))
    assert "stablehlo.while" in texts[0] and "stablehlo.while" not in texts[1]
    np.testing.assert_allclose(*results, atol=1e-5)
