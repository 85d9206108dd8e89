"""Masks on their way from the decoder to records: a table, and the filters that make it shorter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam_jax.inference.views import Decoded, View
from sam_jax.ops import rle
from sam_jax.ops.boxes import near_crop_edge
from sam_jax.ops.cutouts import cut_out, measure, paint
from sam_jax.ops.masks import mask_boxes
from sam_jax.ops.nms import nms
from sam_jax.ops.regions import drop_small_islands, fill_small_holes


@dataclasses.dataclass
class Counts:
    """What became of the masks of one photo.

    Attributes:
      masks: that the decoder gave, three a point.
      low_predicted_iou, unstable, at_crop_edge, too_large: dropped by these filters, in this order.
      duplicates_in_crop, duplicates_between_crops, duplicates_after_cleaning: dropped by box NMS
        in each crop, between crops, and after the removal of small regions.
      kept: the records.
    """

    masks: int = 0
    low_predicted_iou: int = 0
    unstable: int = 0
    at_crop_edge: int = 0
    too_large: int = 0
    duplicates_in_crop: int = 0
    duplicates_between_crops: int = 0
    duplicates_after_cleaning: int = 0
    kept: int = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """The filters of single masks; see `MaskGenerator` for each."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    mask_threshold: float
    max_area_ratio: float


@dataclasses.dataclass
class Candidates:
    """M masks; boxes and points in pixels of the photo.

    Attributes:
      scores: float32 [M], predicted IoU.
      stability: float32 [M].
      boxes_xyxy: int64 [M, 4], inclusive.
      points_xy: float64 [M, 2], the point that each came from.
      crop_boxes: int64 [M, 4], the crop that each came from, with exclusive ends.
      masks: M of them, each a Cutout of its crop, or a {"size", "counts"} of the photo.
    """

    scores: np.ndarray
    stability: np.ndarray
    boxes_xyxy: np.ndarray
    points_xy: np.ndarray
    crop_boxes: np.ndarray
    masks: list[Any]

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, rows: np.ndarray) -> Candidates:
        """Some of them, in the order of `rows`."""
        arrays = (getattr(self, field.name)[rows] for field in dataclasses.fields(self)[:-1])
        return Candidates(*arrays, [self.masks[i] for i in rows])

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """All masks of some tables, in their order."""
        if not parts:
            return empty()
        fields = dataclasses.fields(cls)[:-1]
        arrays = (np.concatenate([getattr(part, field.name) for part in parts]) for field in fields)
        return cls(*arrays, [mask for part in parts for mask in part.masks])


def empty() -> Candidates:
    """A table without masks."""
    return Candidates(
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        np.zeros((0, 4), np.int64),
        np.zeros((0, 2)),
        np.zeros((0, 4), np.int64),
        [],
    )


def sift(
    decoded: Decoded, points_xy: np.ndarray, view: View, limits: Limits, counts: Counts
) -> Candidates:
    """The masks of some points that pass every filter of single masks, in the points' order.

    Args:
      decoded: of N points.
      points_xy: float64 [N, 2], pixels of the crop.
      view: where they were found.
      limits: the filters.
      counts: what they drop is added to it.
    """
    scores = decoded.scores[: len(points_xy)]
    likely = np.ones(scores.shape, bool)
    if limits.pred_iou_thresh > 0:
        likely = scores > limits.pred_iou_thresh
    rows = np.argwhere(likely)
    counts.masks += scores.size
    counts.low_predicted_iou += scores.size - len(rows)
    level = limits.mask_threshold - abs(limits.stability_score_offset)
    found, cutouts, kept = [], [], []
    for (i, k), logits in zip(rows, decoded.logits(rows), strict=True):
        cutout = cut_out(logits, level, view.axes)
        one = measure(cutout, view.axes, limits.mask_threshold, limits.stability_score_offset)
        if limits.stability_score_thresh > 0 and not one.stability >= limits.stability_score_thresh:
            continue
        found.append(one)
        cutouts.append(cutout)
        kept.append((i, k))
    counts.unstable += len(rows) - len(kept)
    if not kept:
        return empty()
    index = np.array(kept)
    offset = np.array([*view.crop_box[:2], *view.crop_box[:2]])
    table = Candidates(
        scores[index[:, 0], index[:, 1]],
        np.array([one.stability for one in found], np.float32),
        np.array([one.box_xyxy for one in found]) + offset,
        points_xy[index[:, 0]] + offset[:2],
        np.tile(np.array(view.crop_box), (len(index), 1)),
        cutouts,
    )
    inner = ~near_crop_edge(table.boxes_xyxy, view.crop_box, view.image_hw)
    largest = limits.max_area_ratio * np.prod(view.image_hw)
    small = np.array([limits.max_area_ratio >= 1 or one.area < largest for one in found])
    counts.at_crop_edge += int((~inner).sum())
    counts.too_large += int((inner & ~small).sum())
    return table.take(np.flatnonzero(inner & small))


def suppress(
    table: Candidates, scores: np.ndarray, iou_threshold: float, counts: Counts, when: str
) -> Candidates:
    """What box NMS keeps, by descending score; `when` is the ending of a field of `Counts`."""
    kept = nms(table.boxes_xyxy, scores, iou_threshold)
    name = f"duplicates_{when}"
    setattr(counts, name, getattr(counts, name) + len(table) - len(kept))
    return table.take(kept)


def encode_masks(table: Candidates, view: View, mask_threshold: float) -> Candidates:
    """The cutouts of one view as run lengths of the photo."""
    x0, y0 = view.crop_box[:2]
    masks = []
    for cutout in table.masks:
        if cutout is None:
            part, corner = np.zeros((1, 1), bool), (0, 0)
        else:
            part = paint(cutout, view.axes, mask_threshold)
            corner = (cutout.at[0].start + y0, cutout.at[1].start + x0)
        masks.append(rle.uncompressed_part(part, corner, view.image_hw))
    return dataclasses.replace(table, masks=masks)


def clean_regions(
    table: Candidates, min_area: float, iou_threshold: float, counts: Counts
) -> Candidates:
    """Masks without small holes and islands, new duplicates removed.

    Where two are duplicates now, one that needed no cleaning wins.

    Args:
      table: with run lengths.
      min_area: holes and islands of fewer pixels go.
      iou_threshold: of box NMS.
      counts: what NMS drops is added to it.
    """
    boxes, masks = table.boxes_xyxy.copy(), list(table.masks)
    unchanged = np.ones(len(table), np.float32)
    for i, mask in enumerate(masks):
        cleaned = clean_mask(mask, boxes[i], min_area)
        if cleaned is not None:
            masks[i], boxes[i] = cleaned
            unchanged[i] = 0
    table = dataclasses.replace(table, boxes_xyxy=boxes, masks=masks)
    return suppress(table, unchanged, iou_threshold, counts, "after_cleaning")


def clean_mask(mask: dict, box_xyxy: np.ndarray, min_area: float) -> tuple[dict, np.ndarray] | None:
    """A mask without small holes and islands and its new box, or None where nothing changed.

    Only the mask's surroundings are decoded: its box and one pixel more on each side.
    """
    height, width = mask["size"]
    x0, y0 = (max(0, int(v) - 1) for v in box_xyxy[:2])
    x1, y1 = (min(n, int(v) + 2) for n, v in zip((width, height), box_xyxy[2:], strict=True))
    beyond = (y0 * width, (height - y1) * width, x0 * (y1 - y0), (width - x1) * (y1 - y0))
    if any(0 < pixels < min_area for pixels in beyond):  # what is beyond might be a small hole
        x0, y0, x1, y1, beyond = 0, 0, width, height, (0, 0, 0, 0)
    part = rle.decode_part(mask, (y0, x0), (y1 - y0, x1 - x0))
    part, filled = fill_small_holes(part, min_area, beyond)
    part, dropped = drop_small_islands(part, min_area)
    if not (filled or dropped):
        return None
    box = mask_boxes(part) + np.array([x0, y0, x0, y0]) * part.any()
    return rle.uncompressed_part(part, (y0, x0), (height, width)), box
