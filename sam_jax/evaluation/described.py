"""Text prompts on drawn scenes, where all is known: `sam-jax evaluate text --data drawn:NUMBER`.

Every object of a scene that a phrase can single out is asked for by one, and by the CLIP embedding
of its own crop as in training, where the image tower is at hand. The difference of the two is the
modality gap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sam_jax.checkpoint.clip import Clip
from sam_jax.data.crops import crop_object
from sam_jax.data.described import DescribedScenes
from sam_jax.data.descriptions import Attributes, unique_phrase, worded
from sam_jax.evaluation import intervals, report
from sam_jax.inference.text import crop_embedder
from sam_jax.ops.clicks import iou
from sam_jax.ops.rle import decode

SEED = 7_000_000
"""Of the scenes that are tested on; training uses others."""


def looks(attributes: Attributes) -> Attributes:
    """Colour, texture and shape: what a crop shows of an object, not its size nor its place."""
    return dataclasses.replace(attributes, size=None, place=frozenset(), perhaps=frozenset())


def measure(
    predictor: Any, count: int, clip: Clip | None = None, size: int = 256, seed: int = SEED
) -> list[dict[str, Any]]:
    """A row for every object, with the IoU of each kind of prompt.

    Args:
      predictor: of a model with a text tower.
      count: of scenes.
      clip: both towers, for the crops' IoU.
      size: of a scene, pixels.
      seed: of the scenes.

    Returns:
      Rows with "scene", "object", "phrase" (of looks alone; "" where none singles the object out),
      "iou", "oracle" (the best of three), "iou all" (of a phrase that tells all of its looks), "any
      phrase" (with sizes and places), "iou any", and "iou crop". What was not measured is missing.
    """
    scenes, rows = DescribedScenes(count, size, seed), []
    embed_crops = None if clip is None else crop_embedder(clip)
    for index in tqdm(range(count), "drawn scenes", leave=False, disable=None):
        record = scenes[index]
        rng = np.random.default_rng([seed, index])
        scene = record["attributes"]
        plain = [looks(one) for one in scene]
        masks = [decode(rle) for rle in record["rles"]]
        embedding = predictor.embed(record["image"])
        for number, true in enumerate(masks):
            row: dict[str, Any] = {"scene": index, "object": number}
            row["phrase"] = unique_phrase(plain, number, rng) or ""
            row["any phrase"] = unique_phrase(scene, number, rng) or ""
            asked = {"iou": row["phrase"], "iou any": row["any phrase"]}
            # What some of its words single out, all of them do.
            asked["iou all"] = worded(plain[number], rng) if row["phrase"] else ""
            for key, phrase in asked.items():
                if phrase:
                    row[key], best = _score(predictor, embedding, phrase, true)
                    row |= {"oracle": best} if key == "iou" else {}
            if embed_crops and row["phrase"]:
                crop = crop_object(record["image"], true, clip.config.image_size, clip.config.grid)
                row["iou crop"], _ = _score(predictor, embedding, embed_crops([crop])[0], true)
            rows.append(row)
    return rows


def _score(predictor, embedding, text, true) -> tuple[float, float]:
    """IoU of the most confident mask of three, and of the best of them."""
    out = predictor.predict(embedding, text=text, multimask=True)
    ious = [iou(mask, true) for mask in out.masks]
    return ious[int(np.argmax(out.scores))], max(ious)


FIGURES = {
    "iou": "phrases of colour, texture, shape",
    "oracle": "the same, best of three",
    "iou crop": "the object's own crop",
    "iou all": "phrases that tell all three",
    "iou any": "phrases with size and place too",
}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each of FIGURES that was measured: mean, interval over scenes and number of objects."""
    found = {}
    for key in FIGURES:
        own = [row for row in rows if key in row]
        if own:
            values, groups = np.array([row[key] for row in own]), [row["scene"] for row in own]
            low, high = intervals.bounds(intervals.resampled_means(values, groups))
            found[key] = {
                "mean": float(values.mean()),
                "interval": [float(low), float(high)],
                "objects": len(own),
            }
    return found


def table(name: str, figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        [
            f"{name}: {FIGURES[key]}",
            str(of["objects"]),
            f"{of['mean']:.3f} +- {(of['interval'][1] - of['interval'][0]) / 2:.3f}",
        ]
        for key, of in figures.items()
    ]
    return report.markdown(["prompt", "objects", "mean IoU"], rows)
