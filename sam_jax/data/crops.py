"""Crops around a mask, as an image encoder for text prompts sees an object (paper, section 7.5).

The mask's box grows about its middle by a random factor of 1 to 2 and becomes a square, which is
resized; half of the time everything outside the mask is blanked; and the encoder's last layer
attends to the patches inside the mask only. The paper does not say

  - what becomes of a square that reaches beyond the photo, and what "zero" is: here both beyond
    the photo and outside the mask there is `FILL`, CLIP's mean colour, which is zero (to within
    half a grey level) once the crop is normalised, and which no dark object blends into;
  - when a patch counts as inside: here when the mask covers at least half as much of it as of
    the patch that it covers most. For a body that is most of a patch, and a thin or tiny one still
    has its patches: there is always at least one;
  - how crops are resized: here by Pillow's antialiased bicubic filter, as CLIP's own preprocessing
    does; what shrinks more than sixfold is averaged to a whole fraction of its size first.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from sam_jax.data.sources import Record, RecordError
from sam_jax.ops import rle as rle_ops

MIN_AREA = 100**2
"""Least pixels of a mask in photos of about 1500 x 2250 (paper, section 7.5 and appendix D)."""
GROWTH = (1.0, 2.0)
"""The square's side over the longer side of the mask's box (paper, section 7.5 and appendix D)."""
CENTRED_GROWTH = 1.5
"""The same where nothing is random."""
BLANK_PROBABILITY = 0.5
"""How often the surroundings are blanked (paper, section 7.5 and appendix D)."""
FILL = (123, 117, 104)
"""RGB of what is blank: CLIP's mean colour."""


def crop_object(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    grid: int,
    rng: np.random.Generator | None = None,
    *,
    growth: tuple[float, float] = GROWTH,
    blank_probability: float = BLANK_PROBABILITY,
) -> tuple[np.ndarray, np.ndarray]:
    """A square crop around a mask, and which of its patches lie inside the mask.

    Args:
      image: uint8 [H, W, 3].
      mask: bool [H, W], not empty.
      size: side of the crop, pixels.
      grid: patches along a side; divides `size`.
      rng: decides growth and blanking; None gives the crop of growth 1.5 with its surroundings,
        always the same (see `crop_rng`).
      growth: least and largest side of the square over the longer side of the mask's box.
      blank_probability: how often what lies outside the mask is blanked.

    Returns:
      crop: uint8 [size, size, 3].
      inside: bool [grid, grid], with at least one patch set.

    Raises:
      ValueError: shapes or types other than these, an empty mask, a grid that does not divide the
        size, a growth below 1 (which would cut the object) or out of order.
    """
    _check(image, mask, size, grid, growth)
    if rng is None:
        factor, blank = CENTRED_GROWTH, False
    else:
        factor, blank = float(rng.uniform(*growth)), bool(rng.random() < blank_probability)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(bottom - top, right - left) * factor
    y0, x0 = (top + bottom - side) / 2, (left + right - side) / 2  # the square, in pixel corners
    crop = _cut(image, mask if blank else None, (x0, y0), side, size)
    shares_y = _overlaps(y0, side, grid, top, bottom)
    shares_x = _overlaps(x0, side, grid, left, right)
    covered = shares_y @ mask[top:bottom, left:right].astype(np.float32) @ shares_x.T
    return crop, covered >= 0.5 * covered.max()


def crop_rng(seed: int, record: int, mask: int, variant: int) -> np.random.Generator | None:
    """The generator of one of a mask's crops, so that their embeddings can be kept.

    Args:
      seed: of the run.
      record: the record's index.
      mask: the mask's number in it.
      variant: 0 for the crop in which nothing is random (None is returned), 1 and so on for others.

    Raises:
      ValueError: a negative number.
    """
    if min(seed, record, mask, variant) < 0:
        raise ValueError(
            "seed, record, mask and variant must not be negative, got "
            f"{seed}, {record}, {mask} and {variant}"
        )
    return np.random.default_rng([seed, record, mask, variant]) if variant else None


def large_enough(record: Record, min_area: int = MIN_AREA) -> list[int]:
    """The numbers of a record's masks of at least `min_area` pixels, none of them decoded.

    Args:
      record: as sources give it.
      min_area: pixels of the mask as stored. The paper's 100**2 are meant for photos of SA-1B's
        size; pass less for smaller pictures. No mask without pixels is ever large enough.

    Raises:
      RecordError: a damaged mask.
    """
    numbers = []
    for number, rle in enumerate(record["rles"]):
        try:
            area = rle_ops.area(rle)
        except ValueError as error:
            name = record.get("name", "?")
            raise RecordError(f"{name}: mask {number}: {error}", "mask") from error
        if area >= max(1, min_area):
            numbers.append(number)
    return numbers


def _check(image: np.ndarray, mask: np.ndarray, size: int, grid: int, growth: tuple) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}")
    if mask.shape != image.shape[:2] or mask.dtype != bool:
        raise ValueError(
            f"mask must be bool {image.shape[:2]}, the image's height and width, got "
            f"{mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise ValueError("mask must have at least one pixel, got an empty one")
    if grid < 1 or size < grid or size % grid:
        raise ValueError(f"grid must divide size, got size={size} and grid={grid}")
    if not 1 <= growth[0] <= growth[1]:
        raise ValueError(f"growth must be 1 <= least <= largest, got {growth}")


def _cut(
    image: np.ndarray,
    mask: np.ndarray | None,
    corner_xy: tuple[float, float],
    side: float,
    size: int,
) -> np.ndarray:
    """The square at `corner_xy`, resized to size x size; blank beyond the image and the mask."""
    x0, y0 = (math.floor(at) for at in corner_xy)
    x1, y1 = (math.ceil(at + side) for at in corner_xy)
    window = Image.new("RGB", (x1 - x0, y1 - y0), FILL)
    height, width = image.shape[:2]
    left, top = max(0, x0), max(0, y0)
    seen = (slice(top, min(height, y1)), slice(left, min(width, x1)))
    shown = None if mask is None else Image.fromarray(255 * mask[seen].astype(np.uint8))
    window.paste(Image.fromarray(image[seen]), (left - x0, top - y0), shown)
    x, y = corner_xy[0] - x0, corner_xy[1] - y0
    box = (x, y, min(x + side, x1 - x0), min(y + side, y1 - y0))  # rounding
    resized = window.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.array(resized)


def _overlaps(start: float, side: float, grid: int, first: int, stop: int) -> np.ndarray:
    """float32 [grid, stop - first]: how much of pixel k lies in each cell, as parts of a cell."""
    edges = start + side * np.arange(grid + 1)[:, None] / grid
    pixels = np.arange(first, stop)[None]
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (np.maximum(shared, 0) * (grid / side)).astype(np.float32)
