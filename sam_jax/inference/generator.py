"""Masks of everything in a photo, from a grid of points (PROTOCOLS section 8).

The steps, their order, thresholds and records are those of `automatic_mask_generator.py` of the
released code. Masks are enlarged one at a time, and only those that the model thinks well of.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from sam_jax.data.images import read_image
from sam_jax.inference.compiled import prompt_slots_of
from sam_jax.inference.predictor import Embedding, Predictor
from sam_jax.models.prompt_encoder import NOT_A_POINT, POSITIVE, Prompts
from sam_jax.ops import rle
from sam_jax.ops.boxes import box_area, crop_boxes, near_crop_edge, nms, point_grids, xyxy_to_xywh
from sam_jax.ops.masks import mask_and_stability, mask_boxes
from sam_jax.ops.regions import drop_small_islands, fill_small_holes
from sam_jax.ops.transforms import scale_points

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


@dataclasses.dataclass
class Candidate:
    """One mask on its way to a record; boxes and points in pixels of the photo.

    Attributes:
      rle: {"size", "counts"} with a list of counts, at the photo's size.
      box_xyxy: int64 [4], inclusive.
      score: predicted IoU.
      stability: stability score.
      point_xy: float64 [2], the point it came from.
      crop_box: the crop it came from, x0, y0, x1, y1 with exclusive ends.
    """

    rle: dict[str, Any]
    box_xyxy: np.ndarray
    score: np.float32
    stability: np.float32
    point_xy: np.ndarray
    crop_box: tuple[int, int, int, int]


class MaskGenerator:
    """Finds masks for everything in a photo.

    Args:
      model: what `sam_jax.load` gives, or a `Predictor`.
      points_per_side: the grid has this many points on each side of the photo; None if
        `point_grids` are given.
      points_per_batch: points that the decoder takes in one call, at most (fewer on a CPU and
        never more than 64, which are faster).
      pred_iou_thresh: masks stay whose predicted IoU is above it; 0 or less keeps all.
      stability_score_thresh: masks stay whose stability score is at least this; 0 or less keeps
        all.
      stability_score_offset: how far the logits' threshold is moved to find that score.
      box_nms_thresh: of two boxes of a crop with an IoU above it the lower scored goes.
      crop_n_layers: layers of crops besides the photo; layer i has 2**i by 2**i of them.
      crop_nms_thresh: as `box_nms_thresh`, between crops; smaller crops win.
      crop_overlap_ratio: how far crops of layer 1 overlap, in short sides of the photo.
      crop_n_points_downscale_factor: layer i's grid has this**i times fewer points a side.
      point_grids: own grids, one [P, 2] in 0..1 for each layer from 0 on.
      min_mask_region_area: holes and islands of fewer pixels are removed; 0: none are.
      output_mode: the form of "segmentation": "binary_mask" (bool [H, W]), "uncompressed_rle" or
        "coco_rle".

    Raises:
      ValueError: both or neither of `points_per_side` and `point_grids`, too few grids, a number
        below 1, or an unknown mode.
    """

    def __init__(
        self,
        model: Any,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: Literal["binary_mask", "uncompressed_rle", "coco_rle"] = "binary_mask",
    ) -> None:
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode: expected one of {OUTPUT_MODES}, got {output_mode!r}")
        if points_per_batch < 1 or crop_n_layers < 0:
            raise ValueError(
                "points_per_batch and crop_n_layers: expected at least 1 and 0, "
                f"got {points_per_batch} and {crop_n_layers}"
            )
        self.point_grids = _grids(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor
        )
        self.predictor = model if isinstance(model, Predictor) else Predictor(model)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.mask_threshold = getattr(model, "mask_threshold", 0.0)

    def generate(self, image: Any, *, progress: bool = False) -> list[dict[str, Any]]:
        """Masks of everything in a photo.

        Args:
          image: uint8 [H, W, 3], a path or a PIL image.
          progress: whether to show a progress bar on stderr.

        Returns:
          Records {"segmentation", "area" in pixels, "bbox" [x, y, w, h] with w = last - first
          pixel, "predicted_iou", "point_coords" [[x, y]], "stability_score", "crop_box"
          [x, y, w, h]}, by descending predicted IoU (with crops: smaller crops first).

        Raises:
          ValueError: the image cannot be read.
        """
        photo = read_image(image)
        boxes, layers = crop_boxes(photo.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        total = sum(len(self.point_grids[layer]) for layer in layers)
        candidates: list[Candidate] = []
        with _progress_bar(total, progress) as bar:
            for crop_box, layer in zip(boxes, layers, strict=True):
                candidates += self._crop(photo, crop_box, self.point_grids[layer], bar)
        if len(boxes) > 1:
            areas = np.array([box_area(np.array(c.crop_box)) for c in candidates], np.float32)
            candidates = _suppress(candidates, np.float32(1) / areas, self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            candidates = clean_regions(
                candidates,
                self.min_mask_region_area,
                max(self.box_nms_thresh, self.crop_nms_thresh),
            )
        return [self._record(candidate) for candidate in candidates]

    def _crop(self, photo: np.ndarray, crop_box, grid: np.ndarray, bar) -> list[Candidate]:
        """The masks of one crop, duplicates removed."""
        x0, y0, x1, y1 = crop_box
        embedding = self.predictor.embed(photo[y0:y1, x0:x1])
        points = grid * np.array([[x1 - x0, y1 - y0]])
        found: list[Candidate] = []
        for start in range(0, len(points), self.points_per_batch):
            part = points[start : start + self.points_per_batch]
            found += self._batch(embedding, part, crop_box, photo.shape[:2])
            bar.update(len(part))
        return _suppress(found, np.array([c.score for c in found]), self.box_nms_thresh)

    def _batch(self, embedding: Embedding, points, crop_box, image_hw) -> list[Candidate]:
        """The three masks of each point that pass every threshold, in the points' order."""
        logits, scores = self._decode(embedding, points)
        side, offset = self.predictor.image_size, np.array([*crop_box[:2], *crop_box[:2]])
        found = []
        for i, k in np.ndindex(scores.shape):
            if self.pred_iou_thresh > 0 and not scores[i, k] > self.pred_iou_thresh:
                continue
            mask, stability = mask_and_stability(
                logits[i, k],
                embedding.input_hw[0],
                embedding.image_hw[0],
                side,
                self.mask_threshold,
                self.stability_score_offset,
            )
            if self.stability_score_thresh > 0 and not stability >= self.stability_score_thresh:
                continue
            box = mask_boxes(mask) + offset
            if near_crop_edge(box, crop_box, image_hw).any():
                continue
            if mask.shape != image_hw:
                whole = np.zeros(image_hw, bool)
                whole[crop_box[1] : crop_box[3], crop_box[0] : crop_box[2]] = mask
                mask = whole
            found.append(
                Candidate(
                    rle.uncompressed(mask),
                    box,
                    scores[i, k],
                    stability,
                    points[i] + offset[:2],
                    tuple(crop_box),
                )
            )
        return found

    def _decode(self, embedding: Embedding, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N, 3, h, w] and predicted IoU [N, 3] of N points, each a prompt of its own."""
        scaled = scale_points(points, embedding.image_hw[0], self.predictor.image_size)
        slots = np.zeros((1, len(points), 2, 2), np.float32)
        slots[0, :, 0] = scaled
        labels = np.tile(np.array([POSITIVE, NOT_A_POINT], np.int32), (1, len(points), 1))
        at_once = min(self.points_per_batch, prompt_slots_of(embedding.features)[-1])
        logits, scores = self.predictor.compiled.decode(
            embedding.features, Prompts(slots, labels), point_slots=(2,), prompt_slots=(at_once,)
        )
        return logits[:, 1:], scores[:, 1:]

    def _record(self, candidate: Candidate) -> dict[str, Any]:
        counts = candidate.rle["counts"]
        if self.output_mode == "binary_mask":
            segmentation: Any = rle.decode(candidate.rle)
        elif self.output_mode == "coco_rle":
            compressed = rle.compress_counts(np.asarray(counts))
            segmentation = {"size": candidate.rle["size"], "counts": compressed}
        else:
            segmentation = candidate.rle
        return {
            "segmentation": segmentation,
            "area": sum(counts[1::2]),
            "bbox": xyxy_to_xywh(candidate.box_xyxy).tolist(),
            "predicted_iou": float(candidate.score),
            "point_coords": [candidate.point_xy.tolist()],
            "stability_score": float(candidate.stability),
            "crop_box": xyxy_to_xywh(np.array(candidate.crop_box)).tolist(),
        }


def clean_regions(
    candidates: list[Candidate], min_area: float, iou_threshold: float
) -> list[Candidate]:
    """Candidates without small holes and islands, new duplicates removed.

    Where two are duplicates now, one that needed no cleaning wins.
    """
    if not candidates:
        return []
    cleaned, scores = [], []
    for candidate in candidates:
        mask, filled = fill_small_holes(rle.decode(candidate.rle), min_area)
        mask, dropped = drop_small_islands(mask, min_area)
        changed = filled or dropped
        scores.append(0.0 if changed else 1.0)
        if changed:
            candidate = dataclasses.replace(
                candidate, rle=rle.uncompressed(mask), box_xyxy=mask_boxes(mask)
            )
        cleaned.append(candidate)
    return _suppress(cleaned, np.array(scores), iou_threshold)


def _suppress(candidates: list[Candidate], scores: np.ndarray, threshold: float) -> list[Candidate]:
    """What box NMS keeps, by descending score."""
    boxes = np.array([candidate.box_xyxy for candidate in candidates]).reshape(-1, 4)
    return [candidates[i] for i in nms(boxes, scores, threshold)]


def _grids(points_per_side, grids, layers: int, downscale: int) -> list[np.ndarray]:
    """A grid [P, 2] for each layer, checked."""
    if (points_per_side is None) == (grids is None):
        raise ValueError("points_per_side and point_grids: give exactly one of them")
    if grids is None:
        if points_per_side < 1 or int(points_per_side / downscale**layers) < 1:
            raise ValueError(
                f"points_per_side: expected enough for {layers} layers of crops with a downscale "
                f"of {downscale}, got {points_per_side}"
            )
        return point_grids(points_per_side, layers, downscale)
    if len(grids) < layers + 1:
        raise ValueError(
            f"point_grids: expected one for each of {layers + 1} layers, got {len(grids)}"
        )
    grids = [np.asarray(grid, np.float64) for grid in grids]
    for grid in grids:
        if grid.ndim != 2 or grid.shape[1] != 2 or not np.isfinite(grid).all():
            raise ValueError(f"point_grids: expected [P, 2] in 0..1, got shape {grid.shape}")
    return grids


def _progress_bar(total: int, show: bool):
    from tqdm import tqdm

    return tqdm(total=total, unit="point", desc="segmenting", disable=not show, leave=False)
