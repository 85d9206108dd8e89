"""What people do with automatic masks: remove overlaps, make a label map, make polygons.

Records are those of `MaskGenerator`, with any of its forms of "segmentation", or of SA-1B's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from sam_jax.ops import rle
from sam_jax.ops.outlines import outlines, simplify


def mask_of(record: dict[str, Any]) -> np.ndarray:
    """bool [H, W]: the mask of a record, whatever its form.

    Raises:
      ValueError: "segmentation" is neither a mask nor an RLE.
    """
    segmentation = record["segmentation"]
    if isinstance(segmentation, dict):
        return rle.decode(segmentation)
    mask = np.asarray(segmentation)
    if mask.ndim != 2:
        raise ValueError(f"segmentation: expected bool [H, W] or an RLE, got shape {mask.shape}")
    return mask.astype(bool)


def remove_overlaps(
    records: Sequence[dict[str, Any]],
    *,
    max_iou: float = 0.8,
    max_contained: float = 1.0,
    by: str = "predicted_iou",
) -> list[dict[str, Any]]:
    """Records without those that repeat a better one, compared by their masks.

    Box NMS, which the generator does, lets two masks pass whose boxes differ and drops two whose
    boxes agree by chance; here the masks themselves are compared.

    Args:
      records: any number.
      max_iou: of two masks with an IoU above it the lower scored goes.
      max_contained: a mask also goes of which more than this part lies in a better one; 1: never.
      by: the field that says which is better.

    Returns:
      Those that stay, best first.

    Raises:
      ValueError: masks of different sizes.
    """
    from pycocotools import mask as coco

    order = np.argsort([-record[by] for record in records], kind="stable")
    best = [records[i] for i in order]
    rles = [_compressed(record) for record in best]
    if len({tuple(one["size"]) for one in rles}) > 1:
        raise ValueError("records: expected masks of one photo, got several sizes")
    kept: list[int] = []
    for i, one in enumerate(rles):
        others = [rles[j] for j in kept]
        if others:
            iou = coco.iou([one], others, [False] * len(others))
            inside = coco.iou([one], others, [True] * len(others))  # shared / area of the first
            if (iou > max_iou).any() or (max_contained < 1 and (inside > max_contained).any()):
                continue
        kept.append(i)
    return [best[i] for i in kept]


def to_label_map(
    records: Sequence[dict[str, Any]],
    policy: Literal["small", "large", "confident"] = "small",
    image_hw: tuple[int, int] | None = None,
) -> np.ndarray:
    """One integer a pixel: i + 1 where record i is on top, 0 where no mask is.

    Args:
      records: any number.
      policy: whose mask is on top where several meet: the smaller one, the larger one, or that
        with the higher predicted IoU.
      image_hw: the photo's height and width; needed where there are no records.

    Returns:
      uint8 [H, W] for up to 255 records, uint16 beyond.

    Raises:
      ValueError: an unknown policy, more than 65535 records, masks of different sizes, or neither
        records nor a size.
    """
    if policy not in ("small", "large", "confident"):
        raise ValueError(f"policy: expected 'small', 'large' or 'confident', got {policy!r}")
    if len(records) > 65535:
        raise ValueError(f"records: a label map holds at most 65535, got {len(records)}")
    if image_hw is None:
        if not records:
            raise ValueError("image_hw: needed where there are no records")
        image_hw = mask_of(records[0]).shape
    key = {"small": "area", "large": "area", "confident": "predicted_iou"}[policy]
    sign = -1 if policy == "small" else 1
    labels = np.zeros(image_hw, np.uint8 if len(records) < 256 else np.uint16)
    for i in sorted(range(len(records)), key=lambda i: sign * records[i][key]):
        mask = mask_of(records[i])
        if mask.shape != tuple(image_hw):
            raise ValueError(
                f"records: expected masks of {tuple(image_hw)}, got one of {mask.shape}"
            )
        labels[mask] = i + 1
    return labels


def to_polygons(record: dict[str, Any], tolerance: float = 0.0) -> list[list[np.ndarray]]:
    """The mask of a record as polygons along the edges of its pixels.

    Args:
      record: with any form of "segmentation".
      tolerance: how far a corner may lie from the simplified outline, in pixels; with 0 the
        polygons cover exactly the mask's pixels.

    Returns:
      For each connected part (pixels that share a side) a list of rings float64 [P, 2] of (x, y):
      first the outline, then its holes. A pixel in column x covers x to x + 1. Outlines are
      clockwise on the screen, holes anticlockwise.
    """
    polygons = [
        [simplify(ring, tolerance) for ring in rings] for rings in outlines(mask_of(record))
    ]
    return [[ring for ring in rings if len(ring) > 2] for rings in polygons if len(rings[0]) > 2]


def _compressed(record: dict[str, Any]) -> dict[str, Any]:
    """The mask in the form that pycocotools takes."""
    segmentation = record["segmentation"]
    if not isinstance(segmentation, dict):
        return rle.encode(mask_of(record))
    if isinstance(segmentation["counts"], str | bytes):
        return segmentation
    return {
        "size": segmentation["size"],
        "counts": rle.compress_counts(np.asarray(segmentation["counts"])),
    }
