"""BSDS500: photographs with the boundaries that several people drew on each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.data.images import ImageError, read_image
from sam_jax.data.sources import RecordError

LAYOUT = (
    "images/{split}/NAME.jpg with groundTruth/{split}/NAME.mat, as in BSR/BSDS500/data; or without "
    "the folder of the split"
)


class Bsds500:
    """A split of BSDS500, in the order of the names.

    A record is {"image": uint8 [H, W, 3], "boundaries": list of bool [H, W], one an annotator,
    "name": str}.
    """

    def __init__(self, path: str | os.PathLike, split: str = "test") -> None:
        """Lists the records.

        Args:
          path: the folder of `images` and `groundTruth`, or a folder above it (BSR, BSDS500).
          split: "test", "val" or "train".

        Raises:
          ValueError: no such layout.
        """
        self.path, self.split = Path(path), split
        found = [
            (root / "images" / part, root / "groundTruth" / part)
            for root in (
                self.path / below for below in ("", "data", "BSDS500/data", "BSR/BSDS500/data")
            )
            for part in (split, "")
            if any((root / "groundTruth" / part).glob("*.mat"))
        ]
        if not found:
            layout = LAYOUT.format(split=split)
            raise ValueError(f"path: expected BSDS500 ({layout}), {path} has no such files")
        self._images, truth = found[0]
        self._truth = sorted(truth.glob("*.mat"))

    def __len__(self) -> int:
        return len(self._truth)

    def __repr__(self) -> str:
        return f"Bsds500({str(self.path)!r}, {self.split!r})"

    def name(self, index: int) -> str:
        """The name of a record, without reading it."""
        return self._truth[index].stem

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`.

        Raises:
          RecordError: a file is missing or damaged, or they differ in size.
        """
        name = self.name(index)
        boundaries = read_truth(self._truth[index])
        try:
            image = read_image(self._images / f"{name}.jpg")
        except ImageError as error:
            raise RecordError(f"{name}: {error}", "image") from error
        for one in boundaries:
            if one.shape != image.shape[:2]:
                raise RecordError(
                    f"{name}: boundaries of {list(one.shape)} on a picture of "
                    f"{list(image.shape[:2])} (height, width)",
                    "size",
                )
        return {"image": image, "boundaries": boundaries, "name": name}


def read_truth(path: Path) -> list[np.ndarray]:
    """bool [H, W], one an annotator, of a groundTruth/NAME.mat.

    Raises:
      RecordError: another form.
    """
    cells = _matlab(path).get("groundTruth")
    try:
        every = [np.ascontiguousarray(cell[0, 0]["Boundaries"] > 0) for cell in cells[0]]
    except (TypeError, IndexError, ValueError, KeyError) as error:
        raise RecordError(
            f"{path.stem}: {path.name} is no groundTruth of BSDS500", "mask"
        ) from error
    if not every:
        raise RecordError(f"{path.stem}: {path.name} has no annotator", "mask")
    return every


def read_boundary_map(path: Path) -> np.ndarray:
    """A boundary map float [H, W] in 0..1: a grey picture, or a .mat with `ucm2` or `pb`.

    `ucm2` is an ultrametric contour map of twice the size, of which every other row and column
    counts, as in the official benchmark.

    Raises:
      RecordError: another form.
    """
    if path.suffix != ".mat":
        from PIL import Image

        try:
            with Image.open(path) as file:
                values = np.asarray(file if file.mode in ("L", "I;16", "I") else file.convert("L"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{path.stem}: {path.name}: {error}", "image") from error
        return values / (255 if values.dtype == np.uint8 else 65535)
    document = _matlab(path)
    if "ucm2" in document:
        return np.ascontiguousarray(document["ucm2"][2::2, 2::2], np.float64)
    for key in ("pb", "ucm"):
        if key in document:
            return np.ascontiguousarray(document[key], np.float64)
    raise RecordError(f"{path.stem}: {path.name} has neither ucm2 nor pb", "mask")


def _matlab(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except Exception as error:  # scipy raises whatever damaged bytes lead to
        raise RecordError(f"{path.stem}: {path.name} is not readable: {error}", "mask") from error
