"""Attention with decomposed relative positions (the image encoder's), in several exact forms."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from sam_jax.models import (
    attention_cpu,
    attention_gpu,
    attention_tpu,
    attention_windows_gpu,
)
from sam_jax.models.platforms import is_portable
from sam_jax.ops.resize import resize_axis

FOLD_LIMIT = 1024
"""Up to so many tokens `WINDOWS` says which form is taken, beyond it `WHOLE_MAPS`."""

_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def offset_table(table: jax.Array, size: int) -> jax.Array:
    """float32 [2 * size - 1, D] out of a table [L, D]: offsets from -(size-1) to size-1.

    A table of another length is resized linearly (image_encoder.py get_rel_pos of the released
    code).
    """
    return resize_axis(table, 0, 2 * size - 1, "linear")


def relative_table(table: jax.Array, size: int) -> jax.Array:
    """float32 [size, size, D] (query, key) out of a table [L, D] of offsets."""
    offset = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
    return offset_table(table, size)[offset]


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
    forms = WINDOWS if q.shape[1] * q.shape[2] <= FOLD_LIMIT else WHOLE_MAPS
    forms = {name: functools.partial(form, precision=precision) for name, form in forms.items()}
    if not attention_gpu.serves(q):
        forms.pop("cuda")
    if is_portable():
        return forms.get("cpu", forms["default"])(q, k, v, rel_h, rel_w)
    return jax.lax.platform_dependent(q, k, v, rel_h, rel_w, **forms)


@contextlib.contextmanager
def images_over(mesh: Mesh | None) -> Iterator[None]:
    """While tracing a program whose images are split over all axes of a mesh; None: they are not.

    XLA cannot split a kernel: inside, each device runs it on its own images.
    """
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def _biases(q, rel_h, rel_w, precision, axes: str):
    """Each query's for the h rows and the w columns: float32, axes of b images, h w, n heads, k."""
    for axis, table, size in (("h", rel_h, q.shape[1]), ("w", rel_w, q.shape[2])):
        yield jnp.einsum(
            f"bhwnd,{axis}kd->{axes}",
            q,
            relative_table(table, size).astype(q.dtype),
            precision=precision,
            preferred_element_type=jnp.float32,
        )


def _heads_first(q, k, v, rel_h, rel_w, precision):
    """q, k, v as [B, N, h * w, D], and the biases float32 [B, N, h * w, h] and [..., w]."""
    b, h, w, n, d = q.shape
    biases = _biases(q, rel_h, rel_w, precision, "bnhwk")
    biases = [bias.reshape(b, n, h * w, -1) for bias in biases]
    q, k, v = (x.transpose(0, 3, 1, 2, 4).reshape(b, n, h * w, d) for x in (q, k, v))
    return q, k, v, *biases


def _folded(q, k, v, rel_h, rel_w, precision):
    """The bias as part of the product: [q s, q.Rh, q.Rw] times [k, row one-hot, column one-hot]."""
    b, h, w, n, d = q.shape
    q, k, v, bias_h, bias_w = _heads_first(q, k, v, rel_h, rel_w, precision)
    place = jnp.broadcast_to(jnp.asarray(_place(h, w), k.dtype), (*k.shape[:-1], h + w))
    left = jnp.concatenate(
        [q * q.shape[-1] ** -0.5, bias_h.astype(q.dtype), bias_w.astype(q.dtype)], -1
    )
    right = jnp.concatenate([k, place], -1)
    scores = jnp.einsum(
        "bnqd,bnkd->bnqk", left, right, precision=precision, preferred_element_type=jnp.float32
    )
    out = _softmax_values(scores, v, precision)
    return out.reshape(b, n, h, w, d).transpose(0, 2, 3, 1, 4)


def _kernel_tpu(q, k, v, rel_h, rel_w, precision, interpret: bool = False):
    """The folded form in one kernel, which never writes scores to memory."""
    _, h, w, _, d = q.shape
    if not attention_tpu.fits(q):
        return _by_rows(q, k, v, rel_h, rel_w, precision)

    def heads(q, k, v, rel_h, rel_w):
        b, n = q.shape[0], q.shape[3]
        *qkv, bias_h, bias_w = _heads_first(q, k, v, rel_h, rel_w, precision)
        bias = jnp.concatenate([bias_h, bias_w], -1).astype(q.dtype)
        qkv_bias = [x.reshape(b * n, h * w, -1) for x in (*qkv, bias)]
        place = jnp.asarray(_place(h, w), q.dtype)
        out = attention_tpu.attend(*qkv_bias, place, precision, interpret)
        return out.reshape(b, n, h, w, d).transpose(0, 2, 3, 1, 4)

    return _each_device(heads)(q, k, v, rel_h, rel_w)


def _kernel_gpu(q, k, v, rel_h, rel_w, precision, interpret: bool = False):
    """Rows of keys at a time with an online softmax, in kernels."""
    _, h, w, _, d = q.shape
    if not attention_gpu.fits((h, w)):
        return _by_rows(q, k, v, rel_h, rel_w, precision)

    def heads(q, k, v, rel_h, rel_w):
        b, n = q.shape[0], q.shape[3]
        parts = _heads_first(q, k, v, rel_h, rel_w, precision)
        out = attention_gpu.attend(
            *(x.reshape(b * n, h * w, -1) for x in parts), precision, interpret
        )
        return out.reshape(b, n, h, w, d).transpose(0, 2, 3, 1, 4)

    return _each_device(heads)(q, k, v, rel_h, rel_w)


def _windows_gpu(q, k, v, rel_h, rel_w, precision, interpret: bool = False):
    """Whole windows in kernels, which never write scores to memory."""
    _, h, w, n, _ = q.shape

    def windows(q, k, v, rel_h, rel_w):
        biases = _biases(q, rel_h, rel_w, precision, "bhwnk")
        bias = jnp.concatenate(list(biases), -1).astype(q.dtype)
        tokens = [x.reshape(-1, h * w, n, x.shape[-1]) for x in (q, k, v, bias)]
        out = attention_windows_gpu.attend(*tokens, (h, w), precision, interpret)
        return out.reshape(q.shape)

    return _each_device(windows)(q, k, v, rel_h, rel_w)


def _each_device(form):
    """The form on each device's own images, where `images_over` says that they are split."""
    mesh = _mesh.get()
    if mesh is None:
        return form
    images, tables = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = (images, images, images, tables, tables)
    return jax.shard_map(form, mesh=mesh, in_specs=specs, out_specs=images, check_vma=False)


def _place(h: int, w: int) -> np.ndarray:
    """[h * w, h + w]: ones at a key's row, and at h plus its column."""
    return np.concatenate([np.repeat(np.eye(h), w, axis=0), np.tile(np.eye(w), (h, 1))], 1)


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


def _by_heads_and_rows(q, k, v, rel_h, rel_w, precision, rows: int = 4):
    """A few image rows of queries of one head of one image at a time (`attention_cpu`)."""
    b, h, w, n, d = q.shape
    while h % rows:
        rows -= 1
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    by_row = relative_table(rel_h, h).astype(q.dtype)
    by_column = offset_table(rel_w, w)[::-1].astype(q.dtype)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def head(args):
        q, k, v = args
        bias_h = product("hwd,hkd->hwk", q, by_row)
        bias_w = _shifted(product("hwd,od->hwo", q, by_column))
        k, v = (x.reshape(h * w, d) for x in (k, v))
        q, bias_h, bias_w = (
            x.reshape(h // rows, rows * w, -1) for x in (q * d**-0.5, bias_h, bias_w)
        )
        out = attention_cpu.attend(q, k, v, bias_h, bias_w, precision)
        return out.reshape(h, w, d)

    heads = [x.transpose(0, 3, 1, 2, 4).reshape(b * n, h, w, d) for x in (q, k, v)]
    return jax.lax.map(head, heads).reshape(b, n, h, w, d).transpose(0, 2, 3, 1, 4)


def _shifted(x):
    """[..., w, 2w-1] -> [..., w, w]: row i from column w-1-i on, by slices and reshapes alone."""
    *lead, w, _ = x.shape
    x = x.reshape(*lead, -1)[..., w - 1 : w - 1 + w * (2 * w - 2)]
    return x.reshape(*lead, w, 2 * w - 2)[..., :w]


def _by_rows(q, k, v, rel_h, rel_w, precision, rows: int = 4):
    """A few image rows of queries of one head at a time, for all images together.

    No loop runs over images: were they split over devices, every device would fetch and compute
    all of them. The backward pass computes the scores again and never holds them all.
    """
    b, h, w, n, d = q.shape
    length = h * w
    q, k, v, bias_h, bias_w = _heads_first(q, k, v, rel_h, rel_w, precision)
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
    return out.transpose(2, 0, 1, 3, 4).reshape(b, n, h, w, d).transpose(0, 2, 3, 1, 4)


WINDOWS = {"tpu": _kernel_tpu, "cuda": _windows_gpu, "default": _folded}
"""The form for at most FOLD_LIMIT tokens, by platform."""
WHOLE_MAPS = {
    "tpu": _kernel_tpu,
    "cpu": _by_heads_and_rows,
    "cuda": _kernel_gpu,
    "default": _by_rows,
}
"""Likewise for more of them."""
