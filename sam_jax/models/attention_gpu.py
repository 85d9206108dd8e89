"""The encoder's attention over a whole map as fused kernels for GPUs (Pallas through Triton).

Keys come a row of the image at a time: the row's bias then is one number a query, and the columns'
bias the same tile for every row, so no bias of queries by keys is ever made. Softmax is taken
online; the backward pass computes the scores again, once for queries and once for keys.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

QUERIES = 64
"""Queries of a program."""


def serves(q: jax.Array) -> bool:
    """Whether kernels serve such queries on this GPU.

    float32's products would run beside the tensor cores, and tiles of them be more than the fast
    memory of many GPUs.
    """
    return q.dtype.itemsize == 2 and not _is_old()


def fits(hw: tuple[int, int]) -> bool:
    """Whether these kernels take a map of that size: their tiles are powers of two."""
    h, w = hw
    return w & (w - 1) == 0 and 16 <= w <= 128 and h * w % QUERIES == 0


def _is_old() -> bool:
    """Whether the GPU at hand is older than Ampere, for which Triton does not compile."""
    if jax.default_backend() != "gpu":
        return False
    return float(getattr(jax.devices()[0], "compute_capability", "8.0")) < 8


@functools.partial(jax.jit, static_argnums=(5, 6))  # traced once for all blocks
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(q, k, v, bias_h, bias_w, precision=None, interpret=False):
    """softmax(q k' / sqrt(D) + bias_h[row of the key] + bias_w[its column]) v, of G heads.

    Args:
      q, k, v: [G, h * w, D].
      bias_h, bias_w: float32 [G, h * w, h] and [G, h * w, w], of each query.
      precision: of the products.
      interpret: runs the kernels' steps as plain JAX, on any device.

    Returns:
      [G, h * w, D] in v's dtype.
    """
    return _forward(q, k, v, bias_h, bias_w, precision, interpret)[0]


def _forward(q, k, v, bias_h, bias_w, precision, interpret):
    width = q.shape[2]
    dot = functools.partial(triton.dot, precision=precision)
    padded = [_wide(x) for x in (q, k, v)]
    blocks = q.shape[1] // QUERIES
    part, whole = _specs()
    out, total = pl.pallas_call(
        functools.partial(_forward_kernel, scale=width**-0.5, dot=dot),
        grid=(q.shape[0], blocks),
        in_specs=[part(padded[0]), whole(padded[1]), whole(padded[2]), part(bias_h), part(bias_w)],
        out_specs=[part(padded[2]), _line],
        out_shape=[
            jax.ShapeDtypeStruct(padded[2].shape, v.dtype),
            jax.ShapeDtypeStruct(q.shape[:2], jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(*padded, bias_h, bias_w)
    out = out[..., :width]
    return out, (q, k, v, bias_h, bias_w, out, total)


def _backward(precision, interpret, saved, g):
    q, k, v, bias_h, bias_w, out, total = saved
    width, (heads, length, w) = q.shape[2], bias_w.shape
    dot = functools.partial(triton.dot, precision=precision)
    delta = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    q, k, v, g = (_wide(x) for x in (q, k, v, g.astype(v.dtype)))
    part, whole = _specs()
    call = functools.partial(
        pl.pallas_call,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )
    inputs = (q, k, v, bias_h, bias_w, g, total, delta)
    dq, dbias_h, dbias_w = call(
        functools.partial(_queries_kernel, scale=width**-0.5, dot=dot),
        grid=(heads, length // QUERIES),
        in_specs=[part(q), whole(k), whole(v), part(bias_h), part(bias_w), part(g), _line, _line],
        out_specs=[part(q), part(bias_h), part(bias_w)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, bias_h, bias_w)],
    )(*inputs)
    keys = pl.BlockSpec((1, w, k.shape[2]), lambda head, row: (head, row, 0))
    lines = pl.BlockSpec((1, length), lambda head, row: (head, 0))
    dk, dv = call(
        functools.partial(_keys_kernel, scale=width**-0.5, dot=dot),
        grid=(heads, length // w),
        in_specs=[whole(q), keys, keys, whole(bias_h), whole(bias_w), whole(g), lines, lines],
        out_specs=[keys, keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    )(*inputs)
    return *(x[..., :width] for x in (dq, dk, dv)), dbias_h, dbias_w


attend.__wrapped__.defvjp(_forward, _backward)


def _wide(x):
    """Zeros up to a number of channels that is a power of two."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, (1 << (x.shape[2] - 1).bit_length()) - x.shape[2])))


_line = pl.BlockSpec((1, QUERIES), lambda head, i: (head, i))


def _specs():
    """BlockSpecs of a program's queries, and of a whole head."""

    def part(x):
        return pl.BlockSpec((1, QUERIES, x.shape[2]), lambda head, i: (head, i, 0))

    def whole(x):
        return pl.BlockSpec((1, *x.shape[1:]), lambda head, i: (head, 0, 0))

    return part, whole


def _scores(q, keys, bias_row, bias_w, scale, dot):
    """float32 [queries, w]: those of one row of keys."""
    return dot(q, keys, trans_b=True) * scale + bias_row[:, None] + bias_w


def _forward_kernel(q, k, v, bias_h, bias_w, out, total, *, scale, dot):
    queries, columns = q[0], bias_w[0]
    w = columns.shape[1]

    def step(row, carry):
        most, sum_, mixed = carry
        keys = pl.ds(row * w, w)
        scores = _scores(queries, k[0, keys], bias_h[0, :, row], columns, scale, dot)
        more = jnp.maximum(most, scores.max(1))
        weights, faded = jnp.exp(scores - more[:, None]), jnp.exp(most - more)
        mixed = mixed * faded[:, None] + dot(weights.astype(v.dtype), v[0, keys])
        return more, sum_ * faded + weights.sum(1), mixed

    start = (
        jnp.full(QUERIES, -jnp.inf, jnp.float32),
        jnp.zeros(QUERIES, jnp.float32),
        jnp.zeros((QUERIES, v.shape[2]), jnp.float32),
    )
    most, sum_, mixed = jax.lax.fori_loop(0, bias_h.shape[2], step, start)
    out[0] = (mixed / sum_[:, None]).astype(out.dtype)
    total[0] = most + jnp.log(sum_)


def _queries_kernel(q, k, v, bias_h, bias_w, g, total, delta, dq, dbias_h, dbias_w, *, scale, dot):
    queries, columns, change = q[0], bias_w[0], g[0]
    w = columns.shape[1]

    def step(row, carry):
        dqueries, dcolumns = carry
        keys = pl.ds(row * w, w)
        scores = _scores(queries, k[0, keys], bias_h[0, :, row], columns, scale, dot)
        weights = jnp.exp(scores - total[0][:, None])
        dscores = weights * (dot(change, v[0, keys], trans_b=True) - delta[0][:, None])
        dbias_h[0, :, row] = dscores.sum(1)
        dqueries += dot(dscores.astype(k.dtype), k[0, keys])
        return dqueries, dcolumns + dscores

    start = jnp.zeros(queries.shape, jnp.float32), jnp.zeros(columns.shape, jnp.float32)
    dqueries, dcolumns = jax.lax.fori_loop(0, bias_h.shape[2], step, start)
    dq[0] = (dqueries * scale).astype(dq.dtype)
    dbias_w[0] = dcolumns


def _keys_kernel(q, k, v, bias_h, bias_w, g, total, delta, dk, dv, *, scale, dot):
    keys, values, row = k[0], v[0], pl.program_id(1)

    def step(i, carry):
        dkeys, dvalues = carry
        part = pl.ds(i * QUERIES, QUERIES)
        queries, change = q[0, part], g[0, part]
        scores = _scores(queries, keys, bias_h[0, part, row], bias_w[0, part], scale, dot)
        weights = jnp.exp(scores - total[0, part][:, None])
        dscores = weights * (dot(change, values, trans_b=True) - delta[0, part][:, None])
        dkeys += dot(dscores.astype(q.dtype), queries, trans_a=True)
        dvalues += dot(weights.astype(g.dtype), change, trans_a=True)
        return dkeys, dvalues

    start = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    dkeys, dvalues = jax.lax.fori_loop(0, q.shape[1] // QUERIES, step, start)
    dk[0] = (dkeys * scale).astype(dk.dtype)
    dv[0] = dvalues.astype(dv.dtype)
