"""Settings of the automatic mask generator by name; imports nothing, for a quick --help."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "dense": dict(
        pred_iou_thresh=0.86,
        stability_score_thresh=0.92,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
    ),
    "sa1b": dict(
        crop_n_layers=2,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
        max_area_ratio=0.95,
    ),
    "edges": dict(points_per_side=16, pred_iou_thresh=0.0, stability_score_thresh=0.0),
    "proposals": dict(
        points_per_side=64, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9
    ),
}
"""Arguments of `MaskGenerator` by name: the released defaults; the denser setting of the released
notebook; how SA-1B was made; and the settings of the paper's edge and proposal tables."""
