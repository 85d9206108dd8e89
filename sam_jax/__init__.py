"""Segment Anything (2023) in JAX: the model, its training, its evaluation, its data engine.

The public names below are imported when they are first used, so that `import sam_jax` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "sam_jax.checkpoint.load",
    "save": "sam_jax.checkpoint.load",
    "Sam": "sam_jax.checkpoint.load",
    "load_clip": "sam_jax.checkpoint.clip",
    "CheckpointError": "sam_jax.checkpoint.strict",
    "Predictor": "sam_jax.inference.predictor",
    "Prediction": "sam_jax.inference.predictor",
    "Embedding": "sam_jax.inference.predictor",
    "MaskGenerator": "sam_jax.inference.generator",
    "PRESETS": "sam_jax.inference.presets",
    "remove_overlaps": "sam_jax.inference.records",
    "to_label_map": "sam_jax.inference.records",
    "to_polygons": "sam_jax.inference.records",
    "ImageError": "sam_jax.data.images",
    "SamModel": "sam_jax.models.sam",
    "init": "sam_jax.models.sam",
    "normalise": "sam_jax.models.sam",
    "Prompts": "sam_jax.models.prompt_encoder",
    "SamConfig": "sam_jax.models.config",
    "CONFIGS": "sam_jax.models.config",
}
"""Public name -> the module that it lives in."""

__all__ = [
    "CONFIGS",
    "CheckpointError",
    "Embedding",
    "ImageError",
    "MaskGenerator",
    "PRESETS",
    "Prediction",
    "Predictor",
    "Prompts",
    "Sam",
    "SamConfig",
    "SamModel",
    "__version__",
    "init",
    "load",
    "load_clip",
    "normalise",
    "remove_overlaps",
    "save",
    "to_label_map",
    "to_polygons",
]

if TYPE_CHECKING:
    from sam_jax.checkpoint.clip import load_clip
    from sam_jax.checkpoint.load import Sam, load, save
    from sam_jax.checkpoint.strict import CheckpointError
    from sam_jax.data.images import ImageError
    from sam_jax.inference.generator import MaskGenerator
    from sam_jax.inference.predictor import Embedding, Prediction, Predictor
    from sam_jax.inference.presets import PRESETS
    from sam_jax.inference.records import remove_overlaps, to_label_map, to_polygons
    from sam_jax.models.config import CONFIGS, SamConfig
    from sam_jax.models.prompt_encoder import Prompts
    from sam_jax.models.sam import SamModel, init, normalise


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sam_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
