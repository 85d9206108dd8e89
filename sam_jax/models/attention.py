"""Attention with decomposed relative positions (the image encoder's), in several exact forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.ops.resize import resize_axis

FOLD_LIMIT = 1024
"""Up to so many tokens the whole score matrix is held; beyond it, rows of queries at a time."""


def relative_table(table: jax.Array, size: int) -> jax.Array:
    """float32 [size, size, D] (query, key) out of a table [L, D] of offsets.

    Offsets run from -(size-1) to size-1; a table of another length is resized linearly
    (image_encoder.py get_rel_pos of the released code).
    """
    table = resize_axis(table, 0, 2 * size - 1, "linear")
    offset = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
    return table[offset]


def rel_pos_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, rel_h: jax.Array, rel_w: jax.Array, precision=None
) -> jax.Array:
    """Softmax attention over a map, with a bias of the *unscaled* query's products.

    Args:
      q, k, v: [B, h, w, N, D] with N heads.
      rel_h, rel_w: float32 tables [L, D] of row and column offsets.
      precision: of the matrix products.

    Returns:
      [B, h, w, N, D] in v's dtype.
    """
    b, h, w, n, d = q.shape
    bias_h = jnp.einsum(
        "bhwnd,hkd->bnhwk",
        q,
        relative_table(rel_h, h).astype(q.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(b, n, h * w, h)
    bias_w = jnp.einsum(
        "bhwnd,wkd->bnhwk",
        q,
        relative_table(rel_w, w).astype(q.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    ).reshape(b, n, h * w, w)
    q, k, v = (x.transpose(0, 3, 1, 2, 4).reshape(b, n, h * w, d) for x in (q, k, v))
    if h * w <= FOLD_LIMIT:
        out = _folded(q, k, v, bias_h, bias_w, precision)
    else:
        out = jax.lax.platform_dependent(
            *(q, k, v, bias_h, bias_w),
            cpu=functools.partial(_by_images_and_rows, precision=precision),
            tpu=functools.partial(_by_rows, precision=precision),
            default=functools.partial(_folded, precision=precision),
        )
    return out.reshape(b, n, h, w, d).transpose(0, 2, 3, 1, 4)


def _folded(q, k, v, bias_h, bias_w, precision):
    """The bias as part of the product: [q s, q.Rh, q.Rw] times [k, row one-hot, column one-hot]."""
    h, w = bias_h.shape[-1], bias_w.shape[-1]
    row = np.repeat(np.eye(h), w, axis=0)
    column = np.tile(np.eye(w), (h, 1))
    place = jnp.asarray(np.concatenate([row, column], 1), k.dtype)
    place = jnp.broadcast_to(place, (*k.shape[:-1], h + w))
    left = jnp.concatenate(
        [q * q.shape[-1] ** -0.5, bias_h.astype(q.dtype), bias_w.astype(q.dtype)], -1
    )
    right = jnp.concatenate([k, place], -1)
    scores = jnp.einsum(
        "bnqd,bnkd->bnqk", left, right, precision=precision, preferred_element_type=jnp.float32
    )
    return _softmax_values(scores, v, precision)


def _softmax_values(scores, v, precision):
    """softmax(scores) @ v, dividing the product instead of the probabilities."""
    scores = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = scores.sum(-1, keepdims=True)
    out = jnp.einsum(
        "...qk,...kd->...qd",
        scores.astype(v.dtype),
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(v.dtype)


def _by_images_and_rows(q, k, v, bias_h, bias_w, precision):
    """As `_by_rows`, one image after the other: the scores fit a CPU's cache."""
    if q.shape[0] == 1:
        return _by_rows(q, k, v, bias_h, bias_w, precision)

    def image(args):
        return _by_rows(*(x[None] for x in args), precision)[0]

    return jax.lax.map(image, (q, k, v, bias_h, bias_w))


def _by_rows(q, k, v, bias_h, bias_w, precision, rows: int = 4):
    """A few image rows of queries of one head at a time, for all images together.

    No loop runs over images: were they split over devices, every device would fetch and compute
    all of them. The backward pass computes the scores again and never holds them all.
    """
    b, n, length, d = q.shape
    h, w = bias_h.shape[-1], bias_w.shape[-1]
    while h % rows:
        rows -= 1

    def blocks(x):
        """[B, N, L, C] -> [N, blocks, B, rows * w, C]: heads and blocks are looped over."""
        return x.reshape(b, n, h // rows, rows * w, -1).transpose(1, 2, 0, 3, 4)

    def head(args):
        q, k, v, bias_h, bias_w = args

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def block(args):
            q, bias_h, bias_w = args
            scores = jnp.einsum(
                "bqd,bkd->bqk", q, k, precision=precision, preferred_element_type=jnp.float32
            )
            scores = scores.reshape(b, -1, h, w) + bias_h[..., None] + bias_w[:, :, None]
            return _softmax_values(scores.reshape(b, -1, length), v, precision)

        return jax.lax.map(block, (q, bias_h, bias_w))

    k, v = (x.transpose(1, 0, 2, 3) for x in (k, v))
    out = jax.lax.map(head, (blocks(q * d**-0.5), k, v, blocks(bias_h), blocks(bias_w)))
    return out.transpose(2, 0, 1, 3, 4).reshape(b, n, length, d)
