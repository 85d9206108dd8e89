"""Measuring a model during its training: clicks, boxes, the automatic generator, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sam_jax.checkpoint.clip import Clip
from sam_jax.checkpoint.load import Sam
from sam_jax.data.open_source import open_source
from sam_jax.data.sources import RecordError, Source, read_checked
from sam_jax.evaluation import described
from sam_jax.evaluation.clicks import names_of
from sam_jax.evaluation.single_point import measure_source
from sam_jax.inference.generator import MaskGenerator
from sam_jax.inference.overlay import draw_masks, draw_prompt, tile
from sam_jax.inference.predictor import Predictor
from sam_jax.ops.clicks import centre_click, iou
from sam_jax.ops.masks import mask_boxes
from sam_jax.ops.rle import decode
from sam_jax.training.config import ValidationConfig

DRAWN_SEED = 8_000_000
"""Of drawn scenes: others than those of training, and of `sam-jax evaluate text`."""
LEFT_OUT = ("filled box",)  # a baseline that no training changes


def open_data(config: ValidationConfig, data_root: str) -> dict[str, Source]:
    """The validation data by name, each in any form that `open_source` reads.

    Raises:
      ValueError: one is not there or cannot be read, or two have the same name.
    """
    sources: dict[str, Source] = {}
    for path in config.data:
        name = Path(path).name
        if name in sources:
            raise ValueError(f"validation.data: two are called {name}: {', '.join(config.data)}")
        try:
            sources[name] = open_source(Path(data_root) / path)
        except ValueError as error:
            raise ValueError(f"validation.data: {error}") from error
    return sources


def validate(
    sam: Sam, sources: dict[str, Source], config: ValidationConfig, clip: Clip | None = None
) -> dict[str, float]:
    """Mean IoU over the masks of each source.

    Args:
      sam: the model.
      sources: the data by name.
      config: what to measure.
      clip: both towers, for drawn scenes.

    Returns:
      {"val/NAME/1": after the first click, "val/NAME/1 oracle", "val/NAME/2" ..., "val/NAME/box"},
      and where `config.automatic` asks for it "val/NAME/automatic" and "val/NAME/automatic masks"
      (see `automatic_recall`); of drawn scenes "val/drawn/" and the names of
      `sam_jax.evaluation.described.FIGURES`.
    """
    predictor, result = Predictor(sam, cache=False), {}
    if config.drawn and clip is not None:
        rows = described.measure(predictor, config.drawn, clip, seed=DRAWN_SEED)
        figures = described.summarise(rows)
        result |= {f"val/drawn/{name}": of["mean"] for name, of in figures.items()}
    for name, source in sources.items():
        rows = measure_source(predictor, source, config.clicks, config.images, name)
        result |= {
            f"val/{name}/{prompt}": float(np.mean([row[prompt] for row in rows]))
            for prompt in names_of(rows)
            if prompt not in LEFT_OUT
        }
        if config.automatic:
            found, masks = automatic_recall(
                predictor, source, config.automatic, config.points_per_side
            )
            result |= {f"val/{name}/automatic": found, f"val/{name}/automatic masks": masks}
    return result


def automatic_recall(
    predictor: Predictor, source: Source, images: int, points_per_side: int
) -> tuple[float, float]:
    """How well the automatic generator finds the true masks of the first images of a source.

    Args:
      predictor: of the model.
      source: of records.
      images: how many records are looked at, those that cannot be read left out.
      points_per_side: of the generator's grid; its thresholds are its defaults.

    Returns:
      The mean over all true masks of the largest IoU that any generated mask has with it, and the
      mean number of generated masks an image.
    """
    generator = MaskGenerator(predictor, points_per_side=points_per_side)
    best: list[float] = []
    counts: list[int] = []
    for record, trues in _records(source, images):
        found = [r["segmentation"] for r in generator.generate(record["image"])]
        counts.append(len(found))
        best += [max((float(iou(mask, true)) for mask in found), default=0.0) for true in trues]
    return (float(np.mean(best)), float(np.mean(counts))) if best else (0.0, 0.0)


def prediction_sheet(sam: Sam, source: Source, count: int, side: int = 256) -> np.ndarray:
    """The first photos of a source with their largest mask: true, from a click, from a box.

    Args:
      sam: the model.
      source: of records.
      count: rows at most.
      side: of each panel, pixels.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: no record with a mask.
    """
    predictor, rows = Predictor(sam, cache=False), []
    for record, trues in _records(source, count):
        true = max(trues, key=np.count_nonzero)
        embedding, photo = predictor.embed(record["image"]), record["image"]
        xy, box = centre_click(true), mask_boxes(true[None])[0] + np.array([0, 0, 1, 1])
        click = predictor.predict(embedding, [xy], [1], multimask=True)
        boxed = predictor.predict(embedding, boxes_xyxy=box, multimask=True)
        panels = [Image.fromarray(draw_masks(photo, [true]))]
        for out, points, corners in ((click, [xy], None), (boxed, [], box)):
            panel = Image.fromarray(draw_masks(photo, [out.masks[int(out.scores.argmax())]]))
            draw_prompt(panel, points, [1] * len(points), corners)
            panels.append(panel)
        rows.append([ImageOps.pad(panel, (side, side)) for panel in panels])
    if not rows:
        raise ValueError("source: expected at least one record with a mask, got none")
    return np.asarray(tile(rows).convert("RGB"))


def _records(source: Source, count: int) -> Iterator[tuple[dict[str, Any], list[np.ndarray]]]:
    """The first `count` records that can be read and have masks, with those bool [H, W]."""
    for index in range(len(source)):
        if count <= 0:
            return
        try:
            record = read_checked(source, index)
        except RecordError:
            continue
        masks = [mask.astype(bool) for mask in map(decode, record["rles"]) if mask.any()]
        if masks:
            count -= 1
            yield record, masks
