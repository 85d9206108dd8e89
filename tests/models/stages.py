"""The prompts and the stages of the model that parity tests and golden values look at."""

from __future__ import annotations

import numpy as np

from sam_jax.models.config import SamConfig
from sam_jax.models.prompt_encoder import Prompts

KINDS = ("point", "points", "box", "box and points", "mask", "mask and points")


def image(config: SamConfig, seed: int = 0) -> np.ndarray:
    """A normalised image float32 [1, S, S, 3] with structure at several scales."""
    rng, size = np.random.default_rng(seed), config.image_size
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    waves = [np.sin(20 * x * (1 + i) + 9 * y + i) + np.cos(31 * y - 6 * x * i) for i in range(3)]
    noise = rng.standard_normal((size, size, 3), dtype=np.float32)
    return (np.stack(waves, -1) + 0.5 * noise).astype(np.float32)[None]


def user_prompt(config: SamConfig, kind: str) -> dict[str, np.ndarray | None]:
    """A prompt of a kind: points [P, 2], labels [P], box [4], mask [4h, 4w]; None where absent."""
    size, low = config.image_size, 4 * config.grid
    points = np.array([[0.31, 0.62], [0.83, 0.21], [0.05, 0.97]], np.float32) * size
    labels = np.array([1, 0, 1], np.int32)
    rng = np.random.default_rng(7)
    prompt = dict.fromkeys(("points", "labels", "box", "mask"))
    if "points" in kind:
        prompt |= {"points": points, "labels": labels}
    elif "point" in kind:
        prompt |= {"points": points[:1], "labels": labels[:1]}
    if "box" in kind:
        prompt["box"] = np.array([0.2, 0.33, 0.7, 0.81], np.float32) * size
    if "mask" in kind:
        y, x = np.mgrid[:low, :low] / low
        blob = 12 - 60 * np.hypot(x - 0.4, y - 0.6)
        prompt["mask"] = (blob + rng.normal(0, 1, (low, low))).astype(np.float32)
    return prompt


def to_prompts(prompt: dict, empty: int = 0) -> Prompts:
    """The prompt as B = N = 1 arrays, with some empty slots behind."""
    points, labels = np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
    if prompt["points"] is not None:
        points, labels = prompt["points"], prompt["labels"]
        if prompt["box"] is None:
            points = np.concatenate([points, np.zeros((1, 2), np.float32)])
            labels = np.append(labels, -1)
    if prompt["box"] is not None:
        points = np.concatenate([points, prompt["box"].reshape(2, 2)])
        labels = np.append(labels, [2, 3])
    points = np.concatenate([points, np.full((empty, 2), 3.0, np.float32)])
    labels = np.append(labels, np.full(empty, -2)).astype(np.int32)
    mask = None if prompt["mask"] is None else prompt["mask"][None, None]
    return Prompts(points[None, None], labels[None, None], mask)


def difference(ours, theirs) -> float:
    """Largest absolute difference, relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
