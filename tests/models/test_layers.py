"""Layers' gradients against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.layers import ChannelNorm, low_product


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
