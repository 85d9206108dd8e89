"""Numbers as safetensors files hold them: float32, float16, or kernels in eight bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.models.quantise import rounded

SCALE = ":scale"
"""Behind the name of a kernel in eight bits: what its columns are to be multiplied by."""
INT8_FROM = 10_000
"""Kernels of fewer numbers are not worth rounding."""


def as_stored(
    flat: Mapping[str, np.ndarray], half: bool = False, int8: bool = False
) -> dict[str, np.ndarray]:
    """Arrays as a safetensors file takes them: contiguous, float32 or (`half`, `int8`) less.

    Raises:
      ValueError: a number is beyond float16.
    """
    dtype = np.float16 if half or int8 else np.float32
    kernels = {
        k: x for k, x in flat.items() if int8 and k.endswith("/kernel") and x.size >= INT8_FROM
    }
    with np.errstate(over="ignore"):
        stored = {k: np.asarray(x, dtype, order="C") for k, x in flat.items() if k not in kernels}
    lost = [k for k, x in stored.items() if np.isfinite(flat[k]).all() > np.isfinite(x).all()]
    if lost:
        raise ValueError(
            f"{'int8' if int8 else 'half'}: expected numbers up to 65504, float16's largest, "
            f"got larger ones in {lost}; save the model without it"
        )
    for name, kernel in kernels.items():
        columns, stored[name + SCALE] = rounded(kernel.reshape(-1, kernel.shape[-1]))
        stored[name] = columns.reshape(kernel.shape)
    return stored


def widened(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `as_stored` was given, but for its rounding; only kernels in eight bits are touched.

    Raises:
      CheckpointError: a kernel and its scales don't belong together.
    """
    scales = {k.removesuffix(SCALE): x for k, x in stored.items() if k.endswith(SCALE)}
    wide = {k: x for k, x in stored.items() if not k.endswith(SCALE)}
    for name in scales.keys() | {k for k, x in wide.items() if x.dtype == np.int8}:
        kernel, scale = wide.get(name), scales.get(name)
        if kernel is None or scale is None or scale.shape != kernel.shape[-1:]:
            raise CheckpointError(f"{name}: its eight bits and its scales don't belong together")
        wide[name] = kernel * np.asarray(scale, np.float32)
    return wide
