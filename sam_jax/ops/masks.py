"""From the decoder's low-resolution logits to masks at the photo's size, on the host.

The released code enlarges the logits to the padded frame, cuts the padding off and resizes the
rest to the photo, both times bilinearly with half-pixel centres and no antialiasing
(`modeling/sam.py` postprocess_masks). Both steps are linear and work on each axis alone, so one
matrix an axis does them: [H, h] @ logits @ [w, W]. At most four numbers of a row of these are not
zero, so they are sparse. Rows are computed a stripe at a time: memory stays small whatever the
photo's size. (scipy's sparse product runs on one core; with dense matrices a threaded BLAS took
100 times as long wherever the cores were busy.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from sam_jax.ops.resize import weights

STRIPE = 128
"""Rows of the photo that are computed at a time."""


@functools.lru_cache(maxsize=64)
def upscale_matrix(low: int, frame: int, crop: int, size: int) -> sparse.csr_array:
    """float32 [size, low]: `low` samples -> `frame`, the first `crop` of them -> `size`."""
    to_frame = weights(low, frame, "linear").astype(np.float64)
    # PyTorch computes these positions in float32; on a large photo that moves them by 1e-4 pixels.
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(crop / size)
    at = np.maximum(at - np.float32(0.5), 0.0).astype(np.float64)
    first = np.minimum(np.floor(at).astype(np.int64), crop - 1)
    second = np.minimum(first + 1, crop - 1)
    t = (at - first)[:, None]
    matrix = to_frame[first] * (1 - t) + to_frame[second] * t
    return sparse.csr_array(matrix.astype(np.float32))


def stripes(
    logits: np.ndarray, input_hw: tuple[int, int], image_hw: tuple[int, int], frame: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """One mask's logits at the photo's size, a stripe at a time: rows and float32 [rows, W].

    Arguments as `upscale_logits`, but `logits` is one mask, [h, w].
    """
    low_h, low_w = logits.shape
    rows = upscale_matrix(low_h, frame, input_hw[0], image_hw[0])
    columns = upscale_matrix(low_w, frame, input_hw[1], image_hw[1])
    wide = columns @ np.ascontiguousarray(logits.T, np.float32)
    wide = np.ascontiguousarray(wide.T)
    for start in range(0, image_hw[0], STRIPE):
        stop = min(start + STRIPE, image_hw[0])
        yield slice(start, stop), rows[start:stop] @ wide


def upscale_logits(
    logits: np.ndarray, input_hw: tuple[int, int], image_hw: tuple[int, int], frame: int
) -> np.ndarray:
    """Low-resolution logits -> logits at the photo's size.

    Args:
      logits: float [..., h, w] over the padded frame.
      input_hw: the resized photo's height and width within the frame, in frame pixels.
      image_hw: the photo's height and width in pixels.
      frame: side of the padded frame in pixels (1024 for the released models).

    Returns:
      float32 [..., H, W].

    Raises:
      ValueError: `input_hw` does not fit into the frame.
    """
    if not (1 <= input_hw[0] <= frame and 1 <= input_hw[1] <= frame):
        raise ValueError(f"input_hw: expected sides of 1 to frame={frame}, got {input_hw}")
    logits = np.asarray(logits)
    out = np.empty((*logits.shape[:-2], *image_hw), np.float32)
    for index in np.ndindex(logits.shape[:-2]):
        for rows, stripe in stripes(logits[index], input_hw, image_hw, frame):
            out[index][rows] = stripe
    return out


def upscale_masks(
    logits: np.ndarray,
    input_hw: tuple[int, int],
    image_hw: tuple[int, int],
    frame: int,
    threshold: float = 0.0,
) -> np.ndarray:
    """bool [..., H, W]: where `upscale_logits` is strictly above the threshold."""
    logits = np.asarray(logits)
    out = np.empty((*logits.shape[:-2], *image_hw), bool)
    for index in np.ndindex(logits.shape[:-2]):
        for rows, stripe in stripes(logits[index], input_hw, image_hw, frame):
            np.greater(stripe, threshold, out=out[index][rows])
    return out


def mask_and_stability(
    logits: np.ndarray,
    input_hw: tuple[int, int],
    image_hw: tuple[int, int],
    frame: int,
    threshold: float = 0.0,
    offset: float = 1.0,
) -> tuple[np.ndarray, np.float32]:
    """One mask at the photo's size, and how little it depends on the threshold.

    The stability score is the IoU of the masks at thresholds `offset` above and below, counted at
    the photo's size (`utils/amg.py` calculate_stability_score); NaN where even the larger of the
    two is empty.

    Returns:
      bool [H, W], and the score as float32.
    """
    mask = np.empty(image_hw, bool)
    inner = outer = 0
    for rows, stripe in stripes(logits, input_hw, image_hw, frame):
        np.greater(stripe, threshold, out=mask[rows])
        inner += np.count_nonzero(stripe > threshold + offset)
        outer += np.count_nonzero(stripe > threshold - offset)
    return mask, np.float32(inner) / np.float32(outer) if outer else np.float32(np.nan)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The tight boxes of masks.

    Args:
      masks: bool [..., H, W].

    Returns:
      int64 [..., 4]: the first and last pixel index (inclusive) in x and y, as x0, y0, x1, y1; an
      empty mask gives zeros.
    """
    masks = np.asarray(masks, bool)
    boxes = np.zeros((*masks.shape[:-2], 4), np.int64)
    for index in np.ndindex(masks.shape[:-2]):
        columns = np.flatnonzero(masks[index].any(0))
        if len(columns):
            rows = np.flatnonzero(masks[index].any(1))
            boxes[index] = columns[0], rows[0], columns[-1], rows[-1]
    return boxes
