"""The part of a mask's logits that its pixels depend on, and what can be known from it.

A mask of a large photo is measured, compared and kept as a few low-resolution logits, and becomes
pixels a stripe at a time when those are asked for.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from sam_jax.ops.masks import Axis, stripes


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Logits of one mask where any are above some level.

    Attributes:
      logits: float32 [h', w'].
      at: the rows and the columns of the photo that depend on them.
    """

    logits: np.ndarray
    at: tuple[slice, slice]


class Measure(NamedTuple):
    """What is counted of one mask at the photo's size.

    Attributes:
      area: pixels above the threshold.
      stability: the IoU of the masks at thresholds an offset above and below, float32; NaN where
        even the larger of the two is empty (`utils/amg.py` calculate_stability_score).
      box_xyxy: first and last pixel index in x and y (inclusive); zeros for an empty mask.
    """

    area: int
    stability: np.float32
    box_xyxy: tuple[int, int, int, int]


def cut_out(logits: np.ndarray, level: float, axes: tuple[Axis, Axis]) -> Cutout | None:
    """The part of logits [h, w] that decides where the photo's are above a level; None: nowhere."""
    above = logits > level
    at = []
    for i in (0, 1):
        hit = np.flatnonzero(above.any(1 - i))
        pixels = axes[i].pixels(hit[0], hit[-1]) if len(hit) else slice(0, 0)
        if pixels.start >= pixels.stop:  # nothing, or only in the padding
            return None
        at.append(pixels)
    part = logits[axes[0].samples(at[0]), axes[1].samples(at[1])]
    return Cutout(np.array(part, np.float32), tuple(at))


def measure(
    cutout: Cutout | None, axes: tuple[Axis, Axis], threshold: float, offset: float
) -> Measure:
    """Area, stability and box of a mask whose cutout has all that is above threshold - offset."""
    if cutout is None:
        return Measure(0, np.float32(np.nan), (0, 0, 0, 0))
    area = inner = outer = 0
    columns = np.zeros(cutout.at[1].stop - cutout.at[1].start, bool)
    lines: list[np.ndarray] = []
    for rows, stripe in stripes(cutout.logits, *axes, cutout.at):
        inside = stripe > threshold
        area += int(np.count_nonzero(inside))
        inner += int(np.count_nonzero(stripe > threshold + offset))
        outer += int(np.count_nonzero(stripe > threshold - offset))
        columns |= inside.any(0)
        lines.append(rows.start + np.flatnonzero(inside.any(1)))
    stability = np.float32(inner) / np.float32(outer) if outer else np.float32(np.nan)
    if not area:
        return Measure(0, stability, (0, 0, 0, 0))
    x, y = np.flatnonzero(columns) + cutout.at[1].start, np.concatenate(lines) + cutout.at[0].start
    return Measure(area, stability, (int(x[0]), int(y[0]), int(x[-1]), int(y[-1])))


def paint(cutout: Cutout, axes: tuple[Axis, Axis], threshold: float) -> np.ndarray:
    """bool [rows, columns]: the mask at the cutout's place in the photo."""
    mask = np.empty([part.stop - part.start for part in cutout.at], bool)
    for rows, stripe in stripes(cutout.logits, *axes, cutout.at):
        np.greater(stripe, threshold, out=mask[rows])
    return mask
