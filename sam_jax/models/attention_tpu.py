"""The encoder's attention as one kernel for TPUs, forward and backward (Pallas).

A program takes some queries of one head and all of the keys: their scores stay in the chip's fast
memory, a softmax needs no second pass over them, and the backward pass computes them again.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SCORES_FORWARD, SCORES_BACKWARD = 1 << 20, 1 << 18
"""Scores that a program holds at most: 4 MB, and four times 1 MB backward (a v4 has 16 MB)."""
ROW_BYTES = 8192
"""Most bytes of a row of keys, one number each: 4096 bfloat16 keys still fit into a v4."""


def fits(q: jax.Array) -> bool:
    """Whether the kernels take maps [B, h, w, N, D] of that size: their keys stay on the chip."""
    return q.shape[1] * q.shape[2] * q.dtype.itemsize <= ROW_BYTES


@functools.partial(jax.jit, static_argnums=(5, 6))  # traced once for all blocks
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(q, k, v, bias, place, precision=None, interpret=False):
    """softmax(q k' / sqrt(D) + bias place') v, of G heads at once.

    Args:
      q, k, v: [G, L, D].
      bias: [G, L, C].
      place: [L, C], a constant in the dtype of `bias`: which of a query's biases a key gets.
      precision: of the products.
      interpret: runs the kernel's steps as plain JAX, on any device.

    Returns:
      [G, L, D] in v's dtype.
    """
    return _forward(q, k, v, bias, place, precision, interpret)[0]


def _forward(q, k, v, bias, place, precision, interpret):
    queries, keys, constant = _blocks(q.shape[1], SCORES_FORWARD)
    out = pl.pallas_call(
        functools.partial(_forward_kernel, precision=precision),
        grid=(q.shape[0], q.shape[1] // queries(q).block_shape[1]),
        in_specs=[queries(q), keys(k), keys(v), queries(bias), constant(place)],
        out_specs=queries(v),
        out_shape=jax.ShapeDtypeStruct(v.shape, v.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=_cost(q, bias, 2, 1, (q, k, v, v, bias, place)),
        interpret=interpret,
    )(q, k, v, bias, place)
    return out, (q, k, v, bias, place)


def _backward(precision, interpret, saved, g):
    q, k, v, bias, place = saved
    queries, keys, constant = _blocks(q.shape[1], SCORES_BACKWARD)
    sums = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (k, v)]
    dq, dk, dv, dbias = pl.pallas_call(
        functools.partial(_backward_kernel, precision=precision),
        grid=(q.shape[0], q.shape[1] // queries(q).block_shape[1]),
        in_specs=[queries(q), keys(k), keys(v), queries(bias), constant(place), queries(v)],
        out_specs=[queries(q), keys(k), keys(v), queries(bias)],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            *sums,
            jax.ShapeDtypeStruct(bias.shape, bias.dtype),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(q, bias, 5, 2, (q, k, v, g, bias, place, q, *sums, bias)),
        interpret=interpret,
    )(q, k, v, bias, place, g)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dbias, jnp.zeros_like(place)


attend.__wrapped__.defvjp(_forward, _backward)


def _blocks(length: int, scores: int):
    """BlockSpecs, over a grid of heads and blocks of queries, of queries, keys and constants."""
    count = 1
    while length // count * length > scores and length % (32 * count) == 0:
        count *= 2

    def queries(x):
        return pl.BlockSpec((1, length // count, x.shape[2]), lambda head, i: (head, i, 0))

    def keys(x):
        return pl.BlockSpec((1, length, x.shape[2]), lambda head, i: (head, 0, 0))

    def constant(x):
        return pl.BlockSpec(x.shape, lambda head, i: (0, 0))

    return queries, keys, constant


def _cost(q, bias, wide: int, narrow: int, moved) -> pl.CostEstimate:
    """Of products of queries and keys, `wide` ones with D and `narrow` ones with C channels."""
    heads, length, width = q.shape
    return pl.CostEstimate(
        flops=2 * heads * length**2 * (wide * width + narrow * bias.shape[2]),
        transcendentals=heads * length**2,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
    )


def _product(a, b, axes, precision):
    """Contracts axis axes[0] of a with axes[1] of b; float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), precision, jnp.float32)


def _weights(q, k, bias, place, precision):
    scores = _product(q, k, (1, 1), precision) * q.shape[1] ** -0.5
    scores += _product(bias, place, (1, 1), precision)
    weights = jnp.exp(scores - scores.max(1, keepdims=True))
    return weights, weights.sum(1, keepdims=True)


def _forward_kernel(q, k, v, bias, place, out, *, precision):
    weights, total = _weights(q[0], k[0], bias[0], place[...], precision)
    result = _product(weights.astype(v.dtype), v[0], (1, 0), precision) / total
    out[0] = result.astype(out.dtype)


def _backward_kernel(q, k, v, bias, place, g, dq, dk, dv, dbias, *, precision):
    @pl.when(pl.program_id(1) == 0)
    def _():
        dk[0] = jnp.zeros_like(dk[0])
        dv[0] = jnp.zeros_like(dv[0])

    product = functools.partial(_product, precision=precision)
    weights, total = _weights(q[0], k[0], bias[0], place[...], precision)
    weights = weights / total
    dv[0] += product(weights.astype(g.dtype), g[0], (0, 0))
    dweights = product(g[0], v[0], (1, 1))
    dscores = weights * (dweights - (weights * dweights).sum(1, keepdims=True))
    dscores = dscores.astype(q.dtype)
    scale = q.shape[2] ** -0.5
    dq[0] = (product(dscores, k[0], (1, 0)) * scale).astype(dq.dtype)
    dk[0] += product(dscores, q[0], (0, 0)) * scale
    dbias[0] = product(dscores, place[...], (1, 0)).astype(dbias.dtype)
