"""What a timed stage is, and the inputs that both sides get."""

from __future__ import annotations

import argparse
import dataclasses
from importlib import resources

import numpy as np


@dataclasses.dataclass(frozen=True)
class Options:
    """One timed stage of one model.

    Attributes:
      stage: encoder, prompt, prompts, generator or train.
      model, dtype, device: "vit_b", "float32", "cpu" and the like.
      compiled: whether the released side goes through torch.compile.
      batch: images at once (encoder, train).
      prompt: "point", "five" or "box" (prompt).
      count: points (prompts).
      photo_wh: of the photo (generator).
      keep_all: whether the generator's thresholds let every mask through.
      masks, rounds: of an image, and of a training step (train).
    """

    stage: str
    model: str = "vit_b"
    dtype: str = "float32"
    device: str = "cpu"
    compiled: bool = False
    batch: int = 1
    prompt: str = "point"
    count: int = 64
    photo_wh: tuple[int, int] = (1800, 1200)
    keep_all: bool = True
    masks: int = 8
    rounds: int = 1

    @property
    def limits(self) -> dict:
        """The generator's thresholds."""
        return {"pred_iou_thresh": 0.0} if self.keep_all else {}

    def arguments(self) -> list[str]:
        """As a command line that `stage_options` reads."""
        given = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                given += [f"--{field.name}"] if value else [f"--no-{field.name}"]
            elif isinstance(value, tuple):
                given += [f"--{field.name}", *map(str, value)]
            else:
                given += [f"--{field.name}", str(value)]
        return given


def stage_options(argv: list[str]) -> Options:
    """What `Options.arguments` wrote."""
    parser = argparse.ArgumentParser()
    for field in dataclasses.fields(Options):
        name = f"--{field.name}"
        if field.name == "stage":
            parser.add_argument(name, required=True)
        elif isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(name, action=action, default=field.default)
        elif isinstance(field.default, tuple):
            parser.add_argument(name, type=int, nargs=2, default=field.default)
        else:
            parser.add_argument(name, type=type(field.default), default=field.default)
    values = vars(parser.parse_args(argv))
    return Options(**values | {"photo_wh": tuple(values["photo_wh"])})


def photo_of(wh: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: the bundled photograph in another size."""
    from PIL import Image

    with Image.open(resources.files("sam_jax") / "assets" / "photo.jpg") as image:
        return np.asarray(image.convert("RGB").resize(wh, Image.Resampling.BICUBIC))


def points_of(kind: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [P, 2] in pixels of the frame and int32 [P]: a prompt with its closing token."""
    if kind == "box":
        return np.array([[0.2, 0.3], [0.7, 0.8]], np.float32) * side, np.array([2, 3], np.int32)
    count = {"point": 1, "five": 5}[kind]
    points = np.random.default_rng(0).uniform(0, side, (count + 1, 2)).astype(np.float32)
    return points, np.array([1, 0, 1, 1, 0][:count] + [-1], np.int32)


def masks_of(side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, side / 4, side / 4] of 0 and 1, and float32 [N, 4] XYXY in frame pixels: discs."""
    rng = np.random.default_rng(0)
    grid = side // 4
    y, x = np.mgrid[:grid, :grid]
    masks, boxes = [], []
    for _ in range(count):
        cx, cy, r = rng.uniform(grid / 4, 3 * grid / 4, 2).tolist() + [rng.uniform(4, grid / 5)]
        masks.append((x - cx) ** 2 + (y - cy) ** 2 < r * r)
        boxes.append([4 * (cx - r), 4 * (cy - r), 4 * (cx + r), 4 * (cy + r)])
    return np.stack(masks).astype(np.uint8), np.array(boxes, np.float32)
