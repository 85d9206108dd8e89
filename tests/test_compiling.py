"""Compiler options: taken where XLA knows them, no reason to fail where it does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.compiling import compile_ahead
from sam_jax.inference.compiled import DECODER_ON_CPU


def test_an_option_that_xla_does_not_know_is_left_out():
    x = jnp.arange(16.0).reshape(4, 4)
    made = compile_ahead(jax.jit(jnp.matmul), x, x, options={"xla_of_another_day": "1"})
    np.testing.assert_allclose(made(x, x), np.asarray(x) @ np.asarray(x))


@pytest.mark.optimised
def test_this_xla_knows_the_decoders_options():
    def program(x, y):
        return jax.nn.softmax(x @ (y + 1))

    x = jnp.ones((64, 64))
    lowered = jax.jit(program).lower(x, x)
    assert lowered.compile(DECODER_ON_CPU).as_text() != lowered.compile().as_text()
