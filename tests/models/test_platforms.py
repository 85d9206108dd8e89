"""Tokens in parts: the same function, in a loop where nothing is differentiated on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from sam_jax.models.platforms import in_parts, portable


def layer(x, weights, settled):
    return settled(jnp.tanh(x @ weights["a"])) @ weights["b"]


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    x, a, b = (rng.normal(size=s).astype(np.float32) for s in ((60, 8), (8, 16), (16, 8)))
    return x, {"a": a, "b": b}


def in_parts_of(most):
    return lambda x, weights: in_parts(layer, x, weights, most)


def loops(f, *args) -> int:
    return jax.jit(f).lower(*args).as_text().count("stablehlo.while")


@pytest.mark.parametrize("most", [20, 7, 59, 60, 100])
def test_parts_give_the_whole(inputs, most):
    expected = layer(*inputs, settled=lambda x: x)
    np.testing.assert_allclose(in_parts_of(most)(*inputs), expected, atol=2e-6)


@pytest.mark.parametrize(("most", "looped"), [(20, 1), (59, 1), (60, 0), (100, 0)])
def test_parts_are_taken_one_after_another(inputs, most, looped):
    assert loops(in_parts_of(most), *inputs) == looped


def test_a_length_without_divisors_is_whole():
    x = np.ones((122, 8), np.float32)  # two parts of 61 are too large, 61 of two too small
    weights = {"a": np.ones((8, 16), np.float32), "b": np.ones((16, 8), np.float32)}
    assert in_parts_of(20)(x, weights).shape == x.shape
    assert loops(in_parts_of(20), x, weights) == 0


def test_gradients_are_those_of_the_whole_and_need_no_loop(inputs):
    def loss(f):
        return jax.grad(lambda x, weights: jnp.sum(f(x, weights) ** 2), (0, 1))

    def whole(x, weights):
        return layer(x, weights, lambda x: x)

    got, expected = (jax.jit(loss(f))(*inputs) for f in (in_parts_of(20), whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, expected)
    assert loops(loss(in_parts_of(20)), *inputs) == 0


def test_a_program_for_several_platforms_has_no_parts(inputs):
    with portable():
        assert loops(in_parts_of(20), *inputs) == 0


def test_other_platforms_take_it_whole(inputs):
    text = jax.jit(in_parts_of(20)).trace(*inputs).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.while" not in text and "dot_general" in text


def test_a_length_that_is_not_known_yet_is_whole(inputs):
    x = jax.ShapeDtypeStruct(export.symbolic_shape("n, 8"), jnp.float32)
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs[1])
    program = export.export(jax.jit(in_parts_of(20)))(x, weights)
    expected = layer(*inputs, settled=lambda x: x)
    np.testing.assert_allclose(program.call(*inputs), expected, atol=2e-6)
    assert "stablehlo.while" not in program.mlir_module()
