"""Prompts from the command line, and from files of prompts and masks."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MASK_LOGIT = 10.0
"""What a mask file's object becomes as logits, and its background with a minus: a sure mask."""


@dataclasses.dataclass
class CommandPrompt:
    """One prompt as it was given, in pixels of the photo.

    Attributes:
      points: (x, y) each.
      labels: 1 foreground, 0 background; as many as points.
      box: x0, y0, x1, y1 or None.
      text: a phrase, or None.
      name: what messages call it.
    """

    points: list[list[float]] = dataclasses.field(default_factory=list)
    labels: list[int] | None = None
    box: list[float] | None = None
    text: str | None = None
    name: str = "the prompt"

    def describe(self) -> str:
        """In a few words: "2 points and a box"."""
        parts = []
        if len(self.points) == 1:
            parts.append("point ({:g}, {:g})".format(*self.points[0]))
        elif self.points:
            parts.append(f"{len(self.points)} points")
        if self.box is not None:
            parts.append("box ({:g}, {:g}, {:g}, {:g})".format(*self.box))
        if self.text is not None:
            parts.append(f'"{self.text}"')
        return " and ".join(parts) or "no points"


def prompts_from_arguments(args: argparse.Namespace) -> list[CommandPrompt]:
    """The prompts of `sam-jax segment`; none where nothing was given.

    Raises:
      ValueError: a combination that says nothing clear, or a file that cannot be read.
      OSError: there is no such file.
    """
    clicks, texts = args.point + args.not_point, args.text or []
    if args.prompts:
        if clicks or args.box or args.mask or args.text:
            raise ValueError("--prompts: give the points and boxes in the file, not beside it")
        return read_prompts(Path(args.prompts))
    for name, several, others in (("box", args.box, texts), ("text", texts, args.box)):
        if len(several) > 1 and (clicks or args.mask or others):
            plural = {"box": "boxes", "text": "phrases"}[name]
            raise ValueError(
                f"--{name}: {len(several)} {plural} are as many prompts, so it is unclear to which "
                "of them the rest belongs; put them into a file for --prompts"
            )
    if len(args.box) > 1:
        return [CommandPrompt(box=box, name=f"--box {i}") for i, box in enumerate(args.box, 1)]
    if len(texts) > 1:
        return [CommandPrompt(text=text, name=f"--text {i}") for i, text in enumerate(texts, 1)]
    labels = [1] * len(args.point) + [0] * len(args.not_point)
    box = args.box[0] if args.box else None
    if not clicks and box is None and not args.mask and not texts:
        return []
    name = "--point" if clicks else "--box" if args.box else "--text"
    return [CommandPrompt(clicks, labels, box, texts[0] if texts else None, name)]


def read_prompts(path: Path) -> list[CommandPrompt]:
    """A JSON file of prompts: a list, or what `sam-jax segment` writes.

    Raises:
      ValueError: it is no JSON, or holds something else.
      OSError: it cannot be opened.
    """
    try:
        value = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if isinstance(value, dict):
        value = value.get("prompts")
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'{path}: expected a list of prompts such as [{{"points": [[x, y]], "labels": [1]}}, '
            '{"box": [x0, y0, x1, y1]}]'
        )
    return [_from_entry(entry, f"{path}: prompt {i}") for i, entry in enumerate(value, 1)]


def _from_entry(entry: Any, name: str) -> CommandPrompt:
    written = ("points", "labels", "box", "text", "masks", "best")  # the last two: of a result
    if not isinstance(entry, dict) or not set(entry) <= set(written):
        found = sorted(set(entry) - set(written)) if isinstance(entry, dict) else entry
        keys = '"points", "labels", "box" and "text"'
        raise ValueError(f"{name}: expected the keys {keys}, got {found}")
    points, box, text = entry.get("points") or [], entry.get("box"), entry.get("text")
    if not points and box is None and text is None:
        raise ValueError(f'{name}: expected "points", a "box" or a "text"')
    if not isinstance(text, str | None):
        raise ValueError(f'{name}: expected "text" to be a phrase, got {text!r}')
    return CommandPrompt(points, entry.get("labels"), box, text, name)


def check(prompts: list[CommandPrompt], image_hw: tuple[int, int]) -> list[CommandPrompt]:
    """The same prompts with every number checked against the photo, labels filled in.

    Raises:
      ValueError: as `sam_jax.inference.prompts.checked_points` and `checked_box`.
    """
    from sam_jax.inference.prompts import checked_box, checked_points

    checked = []
    for prompt in prompts:
        name = prompt.name
        if not isinstance(prompt.points, list) or not isinstance(prompt.labels, list | None):
            raise ValueError(f'{name}: "points" and "labels" must be lists')
        points, labels = checked_points(
            prompt.points, prompt.labels, image_hw, name, f"{name}: labels"
        )
        box = None if prompt.box is None else checked_box(prompt.box, image_hw, name)
        checked.append(
            CommandPrompt(
                points.tolist(),
                labels.tolist(),
                None if box is None else box.tolist(),
                prompt.text,
                name,
            )
        )
    return checked


def read_mask(path: Path, image_hw: tuple[int, int], input_hw, low: int, side: int) -> np.ndarray:
    """A mask prompt, float32 logits [low, low], from a picture of a mask or a .npy of logits.

    Args:
      path: a picture of the photo's size, the object brighter than half, or a .npy [low, low].
      image_hw: the photo's height and width in pixels.
      input_hw: those of the resized photo in the model's frame.
      low: side of the model's low-resolution logits.
      side: of the model's frame.

    Raises:
      ValueError: it cannot be read or has another size.
    """
    if path.suffix.lower() == ".npy":
        try:
            logits = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a .npy file of numbers: {error}") from None
        return _only_mask(path, logits, low)
    from sam_jax.data.images import read_image

    mask = read_image(path).max(-1) > 127
    if mask.shape != tuple(image_hw):
        raise ValueError(
            f"{path}: expected a mask of the photo's size, {image_hw[1]} x {image_hw[0]} pixels, "
            f"got {mask.shape[1]} x {mask.shape[0]}"
        )
    height, width = (max(1, round(n * low / side)) for n in input_hw)
    picture = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    logits = np.full((low, low), -MASK_LOGIT, np.float32)
    logits[:height, :width] = (2 * np.asarray(picture) - 1) * MASK_LOGIT
    return logits


def _only_mask(path: Path, logits: np.ndarray, low: int) -> np.ndarray:
    if logits.dtype.kind not in "fiu" or logits.shape not in ((low, low), (1, low, low)):
        raise ValueError(
            f"{path}: expected logits [{low}, {low}] of this model, got {logits.dtype} with shape "
            f"{list(logits.shape)}"
        )
    return logits.reshape(low, low).astype(np.float32)
