"""What a run trains on: the config's data as sources, and the batches of a stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.data.described import DescribedScenes
from sam_jax.data.open_source import open_source
from sam_jax.data.pipeline import PipelineConfig, batches
from sam_jax.data.scenes import CutPaste, ProceduralScenes
from sam_jax.data.sources import RecordError, Source
from sam_jax.training.config import TrainConfig

TEXTURES = 128
"""Photographs at most that lend their surfaces to the procedural scenes; they stay in memory."""

PASTINGS = 100
"""Composites on each photograph, each with other objects: one would soon be known by heart."""


_SAME_COLOURS = {"colour_jitter": 0.0, "grey_probability": 0.0, "invert_probability": 0.0}
_UNCHANGED = {"flip": False} | _SAME_COLOURS


def read_sources(
    config: TrainConfig, size: int, at_least: int | None = None, pastings: int = 1
) -> list[tuple[Source, float]]:
    """The (source, weight) pairs of a run. `data_root` "none" leaves the photographs out.

    Args:
      config: the run's.
      size: side of the composites and scenes, pixels.
      at_least: JPEGs are decoded smaller as long as their longest side keeps this many pixels;
        None: not.
      pastings: composites on each photograph, if the run has any.

    Raises:
      ValueError: `config.photos` names something that is not there or cannot be read.
    """
    sources: list[tuple[Source, float]] = []
    textures: list[np.ndarray] = []
    if config.data_root != "none":
        sources = _opened(config, "photos", at_least)
        if config.scenes and sources:
            textures = texture_photos(sources[0][0])
    if config.cut_paste and sources:
        photos, total = list(sources), sum(weight for _, weight in sources)
        cut_outs = _opened(config, "cut_outs", at_least)
        for i, (source, weight) in enumerate(photos):
            # Half of the photos' objects come from the same folder.
            donors = [(source, total), *photos, *cut_outs]
            pasted = CutPaste(source, size, config.seed + i, pastings * len(source), donors)
            sources.append((pasted, config.cut_paste * weight / total))
    if config.scenes:
        scenes = ProceduralScenes(size=size, seed=config.seed, texture_photos=textures)
        sources.append((scenes, config.scenes))
    if config.described:
        text = config.text
        drawn = DescribedScenes(text.scenes, text.scene_size, config.seed, places=False)
        sources.append((drawn, config.described))
    return sources


def _opened(config: TrainConfig, field: str, at_least: int | None) -> list[tuple[Source, float]]:
    """What a field of the config names, with its weights."""
    opened = []
    for name, weight in getattr(config, field):
        path = name if "://" in name else Path(config.data_root) / name
        try:
            opened.append((open_source(path, at_least=at_least), weight))
        except ValueError as error:
            raise ValueError(
                f"data_root, {field}: {error}\n(give --data-root DIR, or --data-root none "
                "to train without photographs)"
            ) from error
    return opened


def texture_photos(source: Source) -> list[np.ndarray]:
    """Up to TEXTURES photographs, uint8 [H, W, 3] each, from all over a source."""
    photos = []
    count = min(len(source), TEXTURES)
    for index in np.linspace(0, len(source) - 1, count).round().astype(int):
        try:
            photos.append(source[int(index)]["image"])
        except RecordError:  # it is named and counted where it is trained on
            continue
    return photos


def stage_batches(
    config: TrainConfig,
    number: int,
    start: int,
    cache: Any = None,
    crops: Any = None,
    **options: Any,
) -> Any:
    """The endless batches of a stage from its step `start` on; None where a cache was stopped.

    Args:
      config: the run's.
      number: of the stage, from 0.
      start: the first step within the stage.
      cache: a `train.embeddings.Cache`: batches have its embeddings in place of images.
      crops: a `train.crop_embeddings.CropCache`: batches have text prompts, and colours stay as
        the crops had them.
      **options: for `sam_jax.data.pipeline.batches`: process_index, process_count, threads,
        workers, prefetch, skipped.
    """
    stage = config.stages[number]
    changes: dict[str, Any] = {"stretch": config.stretch, "blur_probability": config.blur}
    if not config.augment:
        changes = _UNCHANGED
    elif crops:
        changes = _SAME_COLOURS | {"stretch": config.stretch}
    pipeline = PipelineConfig(
        image_size=stage.image_size,
        mask_size=stage.mask_size or stage.image_size // 4,
        max_masks=stage.max_masks,
        min_mask_pixels=stage.min_mask_pixels,
        area_power=config.mask_area_power,
        repeat=config.repeat_masks,
        scale_range=stage.scale_range,
        batch_size=stage.batch_size,
        **changes,
    )
    # No pixel of the frame is made from less than one of the photo's.
    most = max(1.0, stage.scale_range[1]) * math.exp(pipeline.stretch)
    at_least = math.ceil(stage.image_size * most)
    # What is computed once and kept is computed for one composite on each.
    pastings = PASTINGS if cache is None and crops is None else 1
    sources = read_sources(config, stage.image_size, at_least, pastings)
    files: list[Path | None] = [None] * len(sources)
    if config.data_root != "none":
        for i, (name, _) in enumerate(config.photos):
            files[i] = None if "://" in name else Path(config.data_root) / name
    # Crops are cut out of the photos as they are.
    whole = read_sources(config, stage.image_size) if crops is not None else []
    for i, (source, weight) in enumerate(sources):
        if crops is not None:
            source = crops(source, files[i], whole[i][0])
        if source is not None and cache is not None:
            source = cache(source, files[i], stage.image_size)
        if source is None:
            return None
        sources[i] = (source, weight)
    seed = config.seed + 1000 * number
    return batches(sources, pipeline, seed=seed, start_step=start, **options)
