"""Masks that no person draws: confident ones to begin with, or everything (paper section 4).

Semi-automatic: on each photo the generator's most confident and stable masks are put into the
store; annotators see them locked, reject or correct them, and add what is missing. Automatic: the
settings of SA-1B, straight into the store, on photos that nobody has said are done. In both, what
overlaps a mask that is there, or one of the model's that a person has rejected, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sam_jax.data.images import ImageError, read_image
from sam_jax.data.store import MODEL, Mask, Store, photo_path

SETTINGS: dict[str, dict[str, Any]] = {
    "semi-automatic": dict(
        points_per_side=16, pred_iou_thresh=0.92, stability_score_thresh=0.96, max_area_ratio=0.95
    ),
    "automatic": {},
}
"""The generator's arguments by stage; "automatic" has those of a preset."""
OVERLAP = 0.5
"""IoU from which on a mask counts as there already."""


def open_generator(model: Any, stage: str, preset: str = "sa1b", **changes: Any) -> Any:
    """The generator of a stage.

    Args:
      model: what `sam_jax.load` gives, or a Predictor.
      stage: "semi-automatic" or "automatic".
      preset: of the automatic stage.
      **changes: arguments of `MaskGenerator` that replace the stage's.
    """
    from sam_jax.inference.generator import MaskGenerator

    if stage == "automatic":
        return MaskGenerator.preset(model, preset, output_mode="coco_rle", **changes)
    return MaskGenerator(model, **{**SETTINGS[stage], **changes}, output_mode="coco_rle")


def unfilled(store: Store, stage: str) -> list[str]:
    """The photos that are not done and on which a stage has not been run to its end."""
    filled = {
        event["photo"]
        for event in store.events()
        if event["event"] == "filled" and event.get("stage") == stage
    }
    done = {name for name, is_done in store.done().items() if is_done}
    return [name for name in store.names() if name not in filled | done]


def fill(store: Store, generator: Any, photo: str, stage: str, model_hash: str) -> int:
    """Puts a generator's masks of one photo into the store.

    Args:
      store: that gets them.
      generator: of `open_generator`.
      photo: its name.
      stage: "semi-automatic" or "automatic".
      model_hash: of the generator's weights.

    Returns:
      How many masks were added.

    Raises:
      ValueError: the photo cannot be read, or the store not be written.
    """
    path = photo_path(store.photos, photo)
    if path is None:
        raise ImageError(f"{photo}: no such picture")
    for key, mask in store.alive(photo).items():  # what a run that was killed has left
        if mask.event["who"] == MODEL and mask.event.get("stage") == stage:
            store.add("remove", photo, MODEL, mask=key)
    records = generator.generate(read_image(path))
    there = [m.rle for m in store.masks(photo).values() if m.alive or _rejected(m)]
    added = 0
    for record, overlap in zip(records, _overlaps(records, there), strict=True):
        if overlap <= OVERLAP:
            added += 1
            about = {k: record[k] for k in ("predicted_iou", "stability_score", "crop_box")}
            prompts = {"points": record["point_coords"], "labels": [1]}
            store.add(
                "mask",
                photo,
                MODEL,
                **record["segmentation"],
                stage=stage,
                model=model_hash,
                prompts=prompts,
                **about,
            )
    store.add("filled", photo, MODEL, stage=stage, model=model_hash, masks=added)
    return added


def _rejected(mask: Mask) -> bool:
    """Whether a person has taken away a mask that no person drew."""
    return mask.event["who"] == MODEL and mask.removed_by not in (None, MODEL)


def _overlaps(records: list[dict[str, Any]], there: list[dict[str, Any]]) -> Iterable[float]:
    """The largest IoU of each record with a mask that is there."""
    from pycocotools import mask as coco_mask

    if not there or not records:
        return [0.0] * len(records)
    found = [_bytes(record["segmentation"]) for record in records]
    old = [_bytes(mask) for mask in there]
    return np.asarray(coco_mask.iou(found, old, [0] * len(old))).max(1).tolist()


def _bytes(mask: dict[str, Any]) -> dict[str, Any]:
    return {"size": mask["size"], "counts": mask["counts"].encode()}
