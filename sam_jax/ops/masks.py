"""From the decoder's low-resolution logits to masks at the photo's size, on the host.

The released code enlarges the logits to the padded frame, cuts the padding off and resizes the
rest to the photo, both times bilinearly with half-pixel centres and no antialiasing
(`modeling/sam.py` postprocess_masks). Both steps are linear and work on each axis alone, so one
matrix an axis does them: [H, h] @ logits @ [w, W]. At most four numbers of a row of these are not
zero, so they are sparse. A few rows are computed at a time: memory stays small whatever the
photo's size. A pixel is a weighted mean of the samples that it depends on, so none is above a
level that all of these are below, and a small mask need not be enlarged beyond its own place.
(scipy's sparse product runs on one core; with dense matrices a threaded BLAS took 100 times as
long wherever the cores were busy.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from sam_jax.ops.resize import weights

TILE = 1 << 19
"""Pixels of the photo that are computed at a time, about; whole rows of them."""


class Axis:
    """How one axis is enlarged.

    Args:
      low: samples of the decoder's logits.
      frame: pixels of the padded frame.
      crop: of these what is photo.
      size: pixels of the photo.

    Attributes:
      matrix: float32 [size, low], sparse.
      first, last: int64 [size], the lowest and the highest sample that a pixel depends on.
    """

    def __init__(self, low: int, frame: int, crop: int, size: int) -> None:
        to_frame = weights(low, frame, "linear").astype(np.float64)
        # PyTorch computes these positions in float32; on a large photo that moves them by 1e-4.
        at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(crop / size)
        at = np.maximum(at - np.float32(0.5), 0.0).astype(np.float64)
        first = np.minimum(np.floor(at).astype(np.int64), crop - 1)
        second = np.minimum(first + 1, crop - 1)
        t = (at - first)[:, None]
        matrix = to_frame[first] * (1 - t) + to_frame[second] * t
        self.matrix = sparse.csr_array(matrix.astype(np.float32))
        starts = self.matrix.indptr[:-1]
        self.first = np.minimum.reduceat(self.matrix.indices, starts).astype(np.int64)
        self.last = np.maximum.reduceat(self.matrix.indices, starts).astype(np.int64)

    def pixels(self, first: int, last: int) -> slice:
        """The pixels that depend on any of the samples first..last (inclusive)."""
        start = np.searchsorted(self.last, first, "left")
        return slice(int(start), int(np.searchsorted(self.first, last, "right")))

    def samples(self, pixels: slice) -> slice:
        """The samples that those pixels depend on."""
        return slice(int(self.first[pixels.start]), int(self.last[pixels.stop - 1]) + 1)

    def part(self, pixels: slice, samples: slice) -> sparse.csr_array:
        """The matrix of some pixels, from samples that hold all that they depend on."""
        m = self.matrix
        pointers = m.indptr[pixels.start : pixels.stop + 1]
        inner = slice(pointers[0], pointers[-1])
        arrays = (m.data[inner], m.indices[inner] - samples.start, pointers - pointers[0])
        shape = (pixels.stop - pixels.start, samples.stop - samples.start)
        return sparse.csr_array(arrays, shape=shape)


_axis = functools.lru_cache(maxsize=64)(Axis)


def axes(
    low_hw: tuple[int, int], input_hw: tuple[int, int], image_hw: tuple[int, int], frame: int
) -> tuple[Axis, Axis]:
    """Rows and columns; arguments as `upscale_logits`, `low_hw` the size of its logits."""
    if not (1 <= input_hw[0] <= frame and 1 <= input_hw[1] <= frame):
        raise ValueError(f"input_hw: expected sides of 1 to frame={frame}, got {input_hw}")
    return tuple(_axis(low_hw[i], frame, input_hw[i], image_hw[i]) for i in (0, 1))


def stripes(
    logits: np.ndarray, rows: Axis, columns: Axis, at: tuple[slice, slice] | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """One mask's logits at the photo's size, a few rows at a time.

    Args:
      logits: float [h, w], or what the pixels `at` depend on of them.
      rows, columns: how each axis is enlarged.
      at: rows and columns of the photo; None: all.

    Yields:
      A slice of rows, counted from the first of `at`, and their float32 [rows, columns].
    """
    if at is None:
        at = slice(0, len(rows.first)), slice(0, len(columns.first))
        logits = logits[rows.samples(at[0]), columns.samples(at[1])]
    across = columns.part(at[1], columns.samples(at[1]))
    wide = np.ascontiguousarray((across @ np.ascontiguousarray(logits.T, np.float32)).T)
    down = rows.part(at[0], rows.samples(at[0]))
    step = max(1, TILE // wide.shape[1])
    for start in range(0, down.shape[0], step):
        stop = min(start + step, down.shape[0])
        part = down if (start, stop) == (0, down.shape[0]) else down[start:stop]
        yield slice(start, stop), part @ wide


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
    logits = np.asarray(logits)
    both = axes(logits.shape[-2:], input_hw, image_hw, frame)
    out = np.empty((*logits.shape[:-2], *image_hw), np.float32)
    for index in np.ndindex(logits.shape[:-2]):
        for rows, stripe in stripes(logits[index], *both):
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
    both = axes(logits.shape[-2:], input_hw, image_hw, frame)
    out = np.empty((*logits.shape[:-2], *image_hw), bool)
    for index in np.ndindex(logits.shape[:-2]):
        for rows, stripe in stripes(logits[index], *both):
            np.greater(stripe, threshold, out=out[index][rows])
    return out


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
