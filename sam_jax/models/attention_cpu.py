"""The encoder's attention over a whole map for CPUs: what their caches hold at a time.

A few image rows of queries of one head of one image are taken at once. The backward pass computes
the scores again and never holds them all; the sums over queries that become the gradients of keys
and values are written so that no product reads its first factor by columns, where XLA:CPU takes two
to five times as long.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from sam_jax.models.layers import turned


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(q, k, v, bias_h, bias_w, precision=None):
    """softmax(q k' + bias_h[row of the key] + bias_w[its column]) v of one head, by blocks.

    Args:
      q: [blocks, Q, D], scaled.
      k, v: [h * w, D].
      bias_h, bias_w: float32 [blocks, Q, h] and [blocks, Q, w], of each query.
      precision: of the products.

    Returns:
      [blocks, Q, D] in v's dtype.
    """
    # A column of ones sums the weights: a pass less over what is too large for the cache.
    v = jnp.concatenate([v, jnp.ones((len(v), 1), v.dtype)], -1)
    product = _product(precision)

    def block(args):
        weights = _weights(*args, k, product)
        out = product("qk,kd->qd", weights.astype(v.dtype), v)
        return (out[:, :-1] / out[:, -1:]).astype(v.dtype)

    return jax.lax.map(block, (q, bias_h, bias_w))


def _product(precision):
    return functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)


def _weights(q, bias_h, bias_w, k, product):
    """exp(scores - their maximum) float32 [Q, h * w] of a block."""
    scores = product("qd,kd->qk", q, k).reshape(len(q), bias_h.shape[1], -1)
    scores += bias_h[..., None] + bias_w[:, None]
    return jnp.exp(scores - scores.max((1, 2), keepdims=True)).reshape(len(q), -1)


def _forward(q, k, v, bias_h, bias_w, precision):
    return attend(q, k, v, bias_h, bias_w, precision), (q, k, v, bias_h, bias_w)


def _backward(precision, saved, g):
    q, k, v, bias_h, bias_w = saved
    product, dtype = _product(precision), v.dtype
    hw = (bias_h.shape[-1], bias_w.shape[-1])

    def block(sums, args):
        dk, dv = sums
        q, bias_h, bias_w, g = args
        weights = _weights(q, bias_h, bias_w, k, product)
        total = weights.sum(-1, keepdims=True)
        g = (g / total).astype(dtype)
        dscores = product("qd,kd->qk", g, v)
        mean = (dscores * weights).sum(-1, keepdims=True) / total
        dscores = weights * (dscores - mean)
        by_place = dscores.reshape(len(q), *hw)
        dbias_h, dbias_w = by_place.sum(2), by_place.sum(1)
        low = dscores.astype(dtype)
        dq = product("qk,kd->qd", low, k).astype(dtype)
        dk += product("dq,qk->dk", turned(q), low)
        dv += product("dq,qk->dk", turned(g), weights.astype(dtype))
        return (dk, dv), (dq, dbias_h, dbias_w)

    zeros = jnp.zeros(k.shape[::-1], jnp.float32)
    sums, (dq, dbias_h, dbias_w) = jax.lax.scan(block, (zeros, zeros), (q, bias_h, bias_w, g))
    dk, dv = (x.T.astype(dtype) for x in sums)
    return dq, dk, dv, dbias_h, dbias_w


attend.defvjp(_forward, _backward)
