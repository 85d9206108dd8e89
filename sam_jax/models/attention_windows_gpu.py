"""The encoder's attention in windows and small maps as fused kernels for GPUs (Pallas, Triton).

A window's 14 rows and a head's 80 channels are no powers of two, as Triton's tiles must be: tokens
beyond the window are masked, channels taken in parts. The bias is one product more, of queries'
biases with ones at a key's row and column. No scores go through memory; the backward pass computes
them again, once for queries and once for keys.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

TILE = 64
"""Queries of a program, and keys that it takes at a time."""


@functools.partial(jax.jit, static_argnums=(4, 5, 6))  # traced once for all blocks
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attend(q, k, v, bias, hw, precision=None, interpret=False):
    """softmax(q k' / sqrt(D) + bias[row of the key] + bias[h + its column]) v in each window.

    Args:
      q, k, v: [B, h * w, N, D] with N heads.
      bias: [B, h * w, N, h + w] in q's dtype, of each query.
      hw: (h, w).
      precision: of the products.
      interpret: runs the kernels' steps as plain JAX, on any device.

    Returns:
      [B, h * w, N, D] in v's dtype.
    """
    return _forward(q, k, v, bias, hw, precision, interpret)[0]


def _forward(q, k, v, bias, hw, precision, interpret):
    total = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    out, total = _call(_forward_kernel, (q, k, v, bias), (v, total), hw, precision, interpret)
    return out, (q, k, v, bias, out, total)


def _backward(hw, precision, interpret, saved, g):
    q, k, v, bias, out, total = saved
    delta = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    inputs = (q, k, v, bias, g.astype(v.dtype), total, delta)
    dq, dbias = _call(_queries_kernel, inputs, (q, bias), hw, precision, interpret)
    dk, dv = _call(_keys_kernel, inputs, (k, v), hw, precision, interpret)
    return dq, dk, dv, dbias


attend.__wrapped__.defvjp(_forward, _backward)


def _call(kernel, inputs, outputs, hw, precision, interpret):
    """Runs a kernel for every tile of every head of every window; each sees its head's arrays."""
    q = inputs[0]

    def head(x):
        rest = x.shape[3:]
        return pl.BlockSpec((1, x.shape[1], 1, *rest), lambda b, n, i: (b, 0, n, *[0] * len(rest)))

    return pl.pallas_call(
        functools.partial(kernel, tiles=_Tiles(hw, q.shape[3], precision)),
        grid=(q.shape[0], q.shape[2], pl.cdiv(q.shape[1], TILE)),
        in_specs=[head(x) for x in inputs],
        out_specs=[head(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(*inputs)


class _Tiles:
    """Tiles of a head: a tile's channels come as a tuple of parts [TILE, a power of two]."""

    def __init__(self, hw: tuple[int, int], width: int, precision) -> None:
        self.hw, self.scale = hw, width**-0.5
        self.length, self.count = math.prod(hw), pl.cdiv(math.prod(hw), TILE)
        self.dot = functools.partial(triton.dot, precision=precision)

    def tokens(self, i):
        return i * TILE + jnp.arange(TILE)

    def _places(self, ref, i, sizes):
        """Where the parts of a tile lie in a ref, and which of them are there at all."""
        tokens, first = self.tokens(i)[:, None], 0
        for size in sizes:
            channels = first + jnp.arange(size)[None]
            there = (tokens < self.length) & (channels < ref.shape[3])
            yield ref.at[0, tokens, 0, channels], there
            first += size

    def load(self, ref, i):
        """The i-th tile, zeros where there is nothing."""
        places = self._places(ref, i, _parts(ref.shape[3]))
        return tuple(triton.load(place, mask=there, other=0.0) for place, there in places)

    def store(self, ref, i, parts, scale=1.0):
        places = self._places(ref, i, [part.shape[1] for part in parts])
        for part, (place, there) in zip(parts, places, strict=True):
            triton.store(place, (part * scale).astype(ref.dtype), mask=there)

    def line(self, ref, i):
        """float32 [TILE, 1] of an array with one number for each token."""
        tokens = self.tokens(i)
        return triton.load(ref.at[0, tokens, 0], mask=tokens < self.length, other=0.0)[:, None]

    def ones(self, i, dtype):
        """The tile of keys' rows and columns: ones at them, as the biases' channels are ordered."""
        (h, w), tokens = self.hw, self.tokens(i)[:, None]
        first, parts = 0, []
        for size in _parts(h + w):
            channels = first + jnp.arange(size)[None]
            parts.append(((channels == tokens // w) | (channels == h + tokens % w)).astype(dtype))
            first += size
        return tuple(parts)

    def product(self, a, b):
        """a b', over all channels: float32 [TILE, TILE]."""
        return sum(self.dot(x, y, trans_b=True) for x, y in zip(a, b, strict=True))

    def times(self, weights, parts, trans_a=False):
        """weights times each of the parts."""
        return tuple(self.dot(weights.astype(x.dtype), x, trans_a=trans_a) for x in parts)

    def scores(self, queries, biases, keys, i):
        """float32 [TILE, TILE]; keys are the window's i-th tile."""
        ones = self.ones(i, biases[0].dtype)
        scores = self.product(queries, keys) * self.scale + self.product(biases, ones)
        return jnp.where((self.tokens(i) < self.length)[None], scores, -1e30)


def _parts(width: int) -> list[int]:
    """Powers of two, largest first and none below 16, that cover so many channels."""
    sizes = []
    while width > 0:
        size = max(16, 1 << (width.bit_length() - 1))
        if 3 * size // 2 < width:  # as 28: one of 32, not 16 and 16
            size *= 2
        sizes.append(size)
        width -= size
    return sizes


def _zeros(ref):
    return tuple(jnp.zeros((TILE, size), jnp.float32) for size in _parts(ref.shape[3]))


def _sum(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _forward_kernel(q, k, v, bias, out, total, *, tiles):
    i = pl.program_id(2)
    queries, biases = tiles.load(q, i), tiles.load(bias, i)

    def step(j, carry):
        most, sum_, mixed = carry
        scores = tiles.scores(queries, biases, tiles.load(k, j), j)
        more = jnp.maximum(most, scores.max(1))
        weights, faded = jnp.exp(scores - more[:, None]), jnp.exp(most - more)
        mixed = tuple(x * faded[:, None] for x in mixed)
        mixed = _sum(mixed, tiles.times(weights, tiles.load(v, j)))
        return more, sum_ * faded + weights.sum(1), mixed

    start = jnp.full(TILE, -jnp.inf, jnp.float32), jnp.zeros(TILE, jnp.float32), _zeros(v)
    most, sum_, mixed = jax.lax.fori_loop(0, tiles.count, step, start)
    tiles.store(out, i, mixed, 1 / sum_[:, None])
    tokens = tiles.tokens(i)
    triton.store(total.at[0, tokens, 0], most + jnp.log(sum_), mask=tokens < tiles.length)


def _queries_kernel(q, k, v, bias, g, total, delta, dq, dbias, *, tiles):
    i = pl.program_id(2)
    queries, biases, change = tiles.load(q, i), tiles.load(bias, i), tiles.load(g, i)
    totals, deltas = tiles.line(total, i), tiles.line(delta, i)

    def step(j, carry):
        dqueries, dbiases = carry
        keys = tiles.load(k, j)
        weights = jnp.exp(tiles.scores(queries, biases, keys, j) - totals)
        dscores = weights * (tiles.product(change, tiles.load(v, j)) - deltas)
        dqueries = _sum(dqueries, tiles.times(dscores, keys))
        return dqueries, _sum(dbiases, tiles.times(dscores, tiles.ones(j, bias.dtype)))

    dqueries, dbiases = jax.lax.fori_loop(0, tiles.count, step, (_zeros(q), _zeros(bias)))
    tiles.store(dq, i, dqueries, tiles.scale)
    tiles.store(dbias, i, dbiases)


def _keys_kernel(q, k, v, bias, g, total, delta, dk, dv, *, tiles):
    i = pl.program_id(2)
    keys, values = tiles.load(k, i), tiles.load(v, i)

    def step(j, carry):
        dkeys, dvalues = carry
        queries, change = tiles.load(q, j), tiles.load(g, j)
        scores = tiles.scores(queries, tiles.load(bias, j), keys, i)
        weights = jnp.exp(scores - tiles.line(total, j))
        dscores = weights * (tiles.product(change, values) - tiles.line(delta, j))
        dkeys = _sum(dkeys, tiles.times(dscores, queries, trans_a=True))
        return dkeys, _sum(dvalues, tiles.times(weights, change, trans_a=True))

    dkeys, dvalues = jax.lax.fori_loop(0, tiles.count, step, (_zeros(k), _zeros(v)))
    tiles.store(dk, i, dkeys, tiles.scale)
    tiles.store(dv, i, dvalues)
