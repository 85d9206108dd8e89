"""Masks of everything in a photo, from a grid of points (PROTOCOLS section 8).

The steps, their order, thresholds and records are those of `automatic_mask_generator.py` of the
released code. Between the decoder and the records a mask is a few low-resolution logits
(`sam_jax.ops.cutouts`); only what survives suppression is ever painted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from sam_jax.data.images import read_image
from sam_jax.inference.candidates import (
    Candidates,
    Counts,
    Limits,
    clean_regions,
    encode_masks,
    sift,
    suppress,
)
from sam_jax.inference.compiled import CompiledModel
from sam_jax.inference.predictor import Predictor
from sam_jax.inference.presets import PRESETS
from sam_jax.inference.views import View, decode_views, encode_views, together, views_of
from sam_jax.ops import rle
from sam_jax.ops.boxes import box_area, crop_boxes, point_grids, xyxy_to_xywh

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class MaskGenerator:
    """Finds masks for everything in a photo.

    Args:
      model: what `sam_jax.load` gives, or a `Predictor`.
      points_per_side: the grid has this many points on each side of the photo; None if
        `point_grids` are given.
      points_per_batch: points that the decoder takes at a time, at most (fewer on a CPU and never
        more than 64, which is faster).
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
        "coco_rle". A binary mask takes a byte for every pixel of the columns that it covers.
      max_area_ratio: masks stay that cover less than this part of the photo; 1 keeps all (ours;
        the paper made SA-1B with 0.95, before suppression here).

    Raises:
      ValueError: both or neither of `points_per_side` and `point_grids`, too few grids, a number
        out of range, or an unknown mode.
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
        max_area_ratio: float = 1.0,
    ) -> None:
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode: expected one of {OUTPUT_MODES}, got {output_mode!r}")
        for name, value, least in (
            ("points_per_side", points_per_side, 1),
            ("points_per_batch", points_per_batch, 1),
            ("crop_n_layers", crop_n_layers, 0),
            ("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1),
        ):
            if value is not None and (value != int(value) or value < least):
                raise ValueError(f"{name}: expected a whole number from {least} on, got {value}")
        for name, value in (
            ("pred_iou_thresh", pred_iou_thresh),
            ("stability_score_thresh", stability_score_thresh),
            ("stability_score_offset", stability_score_offset),
        ):
            if not np.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
        if not 0 < max_area_ratio <= 1:
            raise ValueError(f"max_area_ratio: expected above 0, at most 1, got {max_area_ratio}")
        self.point_grids = _grids(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor
        )
        self.predictor = model if isinstance(model, Predictor) else Predictor(model)
        self.points_per_batch = points_per_batch
        self.limits = Limits(
            float(pred_iou_thresh),  # scores are float32, and so is what is compared with them
            stability_score_thresh,
            stability_score_offset,
            getattr(model, "mask_threshold", 0.0),
            max_area_ratio,
        )
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self._spread: CompiledModel | None = None

    @classmethod
    def preset(cls, model: Any, name: str, **changes: Any) -> MaskGenerator:
        """A generator with the arguments of a preset, some of them changed.

        Args:
          model: as for the class.
          name: one of `PRESETS`.
          changes: arguments of the class.

        Raises:
          ValueError: no such preset, or as for the class.
        """
        if name not in PRESETS:
            raise ValueError(f"name: expected one of {', '.join(PRESETS)}, got {name!r}")
        return cls(model, **{**PRESETS[name], **changes})

    def generate(self, image: Any, *, progress: bool = False, with_counts: bool = False) -> Any:
        """Masks of everything in a photo, or in each of a list of photos.

        Photos of a list are shared out among all local devices; what is found does not depend on
        their number, nor on that of the photos (on a CPU to the bit; on an accelerator several
        are encoded in one call, which rounds differently from one).

        Args:
          image: uint8 [H, W, 3], a path or a PIL image, or a list of such.
          progress: whether to show a progress bar on stderr.
          with_counts: whether to say as well why the other masks were dropped.

        Returns:
          Records {"segmentation", "area" in pixels, "bbox" [x, y, w, h] with w = last - first
          pixel, "predicted_iou", "point_coords" [[x, y]], "stability_score", "crop_box"
          [x, y, w, h]}, by descending predicted IoU (with crops: smaller crops first); for a list
          of photos a list of these. With `with_counts` a pair: these, and `Counts` for each photo.

        Raises:
          ValueError: an image cannot be read, or the list is empty.
        """
        several = isinstance(image, list | tuple)
        images = list(image) if several else [image]
        if not images:
            raise ValueError("image: expected at least one photo, got an empty list")
        results = []
        with _progress_bar(len(images) * self._points(), progress) as bar:
            model = self._model(len(images))
            group = together(model, len(images))
            for start in range(0, len(images), group):
                photos = [read_image(source) for source in images[start : start + group]]
                results += self._photos(model, photos, bar)
        records = [one for one, _ in results]
        if not with_counts:
            return records if several else records[0]
        return (records, [c for _, c in results]) if several else results[0]

    def photos_at_once(self, photos: int) -> int:
        """How many of so many photos `generate` has in work at a time; more gain nothing."""
        return together(self._model(photos), photos)

    def _points(self) -> int:
        """Points of all crops of a photo."""
        _, layers = crop_boxes((100, 100), self.crop_n_layers, self.crop_overlap_ratio)
        return sum(len(self.point_grids[layer]) for layer in layers)

    def _model(self, photos: int) -> CompiledModel:
        """The model on one device, or on all for several photos or crops."""
        one = self.predictor.compiled
        home = next(iter(jax.tree.leaves(one.variables)[0].devices()))
        local = jax.local_devices(backend=home.platform)
        if len(local) < 2 or (photos < 2 and not self.crop_n_layers):
            return one
        if self._spread is None:
            self._spread = CompiledModel(one.config, one.variables, one.image_size, local)
        return self._spread

    def _photos(
        self, model: CompiledModel, photos: Sequence[np.ndarray], bar
    ) -> list[tuple[list[dict[str, Any]], Counts]]:
        """The records and counts of a few photos."""
        found: list[list[Candidates]] = [[] for _ in photos]
        counts = [Counts() for _ in photos]
        for layer, grid in enumerate(self.point_grids[: self.crop_n_layers + 1]):
            views = [
                view
                for i, photo in enumerate(photos)
                for view in views_of(i, photo.shape[:2], layer, self.crop_overlap_ratio, model)
            ]
            group = together(model, len(views))
            for start in range(0, len(views), group):
                part = views[start : start + group]
                tables = self._views(model, photos, part, grid, counts, bar)
                for view, table in zip(part, tables, strict=True):
                    found[view.photo].append(table)
        return [self._finish(*one) for one in zip(found, counts, strict=True)]

    def _views(
        self, model: CompiledModel, photos, views: Sequence[View], grid, counts, bar
    ) -> list[Candidates]:
        """The masks of some views with the same grid, duplicates within each removed."""
        features = encode_views(model, photos, views)
        points = np.stack([grid * np.array([view.hw[::-1]]) for view in views])
        tables: list[list[Candidates]] = [[] for _ in views]
        least = self.limits.pred_iou_thresh if self.limits.pred_iou_thresh > 0 else -np.inf
        decoding = decode_views(model, features, views, points, self.points_per_batch, least)
        for i, part, decoded in decoding:
            own = counts[views[i].photo]
            tables[i].append(sift(decoded, points[i, part], views[i], self.limits, own))
            bar.update(part.stop - part.start)
        results = []
        for view, parts in zip(views, tables, strict=True):
            table = Candidates.join(parts)
            own = counts[view.photo]
            table = suppress(table, table.scores, self.box_nms_thresh, own, "in_crop")
            results.append(encode_masks(table, view, self.limits.mask_threshold))
        return results

    def _finish(self, tables: list[Candidates], counts: Counts) -> tuple[list[dict], Counts]:
        """The records of one photo from the masks of its crops."""
        table = Candidates.join(tables)
        if self.crop_n_layers:
            areas = box_area(table.crop_boxes).astype(np.float32)
            scores = np.float32(1) / areas
            table = suppress(table, scores, self.crop_nms_thresh, counts, "between_crops")
        if self.min_mask_region_area > 0 and len(table):
            threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
            table = clean_regions(table, self.min_mask_region_area, threshold, counts)
        counts.kept = len(table)
        return [self._record(table, i) for i in range(len(table))], counts

    def _record(self, table: Candidates, i: int) -> dict[str, Any]:
        mask = table.masks[i]
        if self.output_mode == "binary_mask":
            segmentation: Any = rle.decode(mask)
        elif self.output_mode == "coco_rle":
            compressed = rle.compress_counts(np.asarray(mask["counts"]))
            segmentation = {"size": mask["size"], "counts": compressed}
        else:
            segmentation = mask
        return {
            "segmentation": segmentation,
            "area": sum(mask["counts"][1::2]),
            "bbox": xyxy_to_xywh(table.boxes_xyxy[i]).tolist(),
            "predicted_iou": float(table.scores[i]),
            "point_coords": [table.points_xy[i].tolist()],
            "stability_score": float(table.stability[i]),
            "crop_box": xyxy_to_xywh(table.crop_boxes[i]).tolist(),
        }


def _grids(points_per_side, grids, layers: int, downscale: int) -> list[np.ndarray]:
    """A grid [P, 2] for each layer, checked."""
    if (points_per_side is None) == (grids is None):
        raise ValueError("points_per_side and point_grids: give exactly one of them")
    if grids is None:
        if int(points_per_side / downscale**layers) < 1:
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
