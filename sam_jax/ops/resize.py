"""Resizing of arrays as PyTorch's `interpolate(align_corners=False)` does it: no antialiasing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=64)
def weights(old: int, new: int, kind: str, extent: float | None = None) -> np.ndarray:
    """float32 [new, old]: the matrix that resizes a line of `old` samples to `new` of them.

    Half-pixel centres, edges repeated. `kind` is "linear" or "cubic" (a = -0.75). `extent` is how
    many of the old samples the new line covers, from the start (default: all).
    """
    if kind not in ("linear", "cubic"):
        raise ValueError(f"kind: expected 'linear' or 'cubic', got {kind!r}")
    scale = (old if extent is None else extent) / new
    at = (np.arange(new, dtype=np.float64) + 0.5) * scale - 0.5
    if kind == "linear":
        at = np.maximum(at, 0.0)
    first = np.floor(at).astype(np.int64)
    t = at - first
    if kind == "linear":
        taps = {0: 1 - t, 1: t}
    else:
        taps = {i: _cubic(np.abs(t - i)) for i in (-1, 0, 1, 2)}
    matrix = np.zeros((new, old), np.float64)
    for offset, weight in taps.items():
        np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), weight)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_axis(x: jax.Array, axis: int, new: int, kind: str = "linear") -> jax.Array:
    """`x` with one axis resized to `new` samples; unchanged where it has that size."""
    if x.shape[axis] == new:
        return x
    matrix = jnp.asarray(weights(x.shape[axis], new, kind), x.dtype)
    moved = jnp.tensordot(x, matrix, axes=([axis], [1]), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(moved, -1, axis)


def resize_hw(x: jax.Array, hw: tuple[int, int], axes: tuple[int, int], kind: str) -> jax.Array:
    """`x` with the axes of height and width resized to `hw`."""
    return resize_axis(resize_axis(x, axes[0], hw[0], kind), axes[1], hw[1], kind)
