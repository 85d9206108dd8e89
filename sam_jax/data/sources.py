"""Map-style sources of photographs with masks.

A source has `__len__` and `__getitem__(i)`, which gives one record:

    {"image": uint8 [H, W, 3] RGB, "rles": list of COCO RLE dicts of size [H, W], "name": str}

or raises `RecordError` naming what is wrong with that record. Anything else with these two
methods is a source too: `sam_jax.data.scenes` has two more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sam_jax.data.images import ImageError, read_image

Record = dict[str, Any]


class RecordError(ValueError):
    """A record that cannot be used; the message names it. Pipelines skip, count and name these."""


class Source(Protocol):
    """Random access to records; indices run from 0 to len - 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Sa1bFolder:
    """A folder of NAME.jpg + NAME.json pairs in the form of SA-1B.

    The JSON is {"image": {...}, "annotations": [{"segmentation": RLE, ...}]} (released code,
    README.md, "Dataset"). Records are indexed by their JSON files, sub-folders included, in
    sorted order, and are read when asked for. The picture is the file that `image.file_name`
    names beside the JSON, or NAME.jpg, .jpeg or .png.
    """

    def __init__(self, path: str | os.PathLike, *, at_least: int | None = None):
        """Lists the records.

        Args:
          path: the folder.
          at_least: lets JPEGs be decoded at 1/2, 1/4 or 1/8 size as long as the longest side
            keeps this many pixels; the masks keep theirs. Useful for SA-1B's 1500 x 2250
            photographs, whose decoding costs more than all the rest. None decodes every pixel.

        Raises:
          ValueError: `path` is no folder, or holds no JSON file.
        """
        self.path = Path(path)
        self.at_least = at_least
        if not self.path.is_dir():
            raise ValueError(f"path must be a folder of NAME.jpg + NAME.json pairs, got {path}")
        self._files = sorted(
            os.path.join(parent, name)
            for parent, _, names in os.walk(self.path)
            for name in names
            if name.endswith(".json") and not name.startswith(".")
        )
        if not self._files:
            raise ValueError(f"path must hold NAME.jpg + NAME.json pairs, {path} has no .json file")

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"Sa1bFolder({str(self.path)!r})"

    def __getitem__(self, index: int) -> Record:
        """Record `index`; its image may be smaller than its masks where `at_least` allows it.

        Raises:
          RecordError: the JSON or the picture is missing, damaged or of another form, or a mask
            has another size than the picture.
        """
        path = Path(self._files[index])
        name = str(path.relative_to(self.path))
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RecordError(f"{name}: not readable as JSON: {error}") from error
        picture = _find_picture(document, path, name)
        rles = _read_rles(document, name)
        return {"image": self._read_image(picture, rles, name), "rles": rles, "name": name}

    def _read_image(self, picture: Path, rles: list[dict], name: str) -> np.ndarray:
        try:
            image = read_image(picture, at_least=self.at_least)
            if rles and not self._same_shape(image, rles[0]):
                # Masks drawn on the stored pixels of a photo whose EXIF turns it.
                image = read_image(picture, at_least=self.at_least, apply_orientation=False)
        except ImageError as error:
            raise RecordError(f"{name}: {error}") from error
        for number, rle in enumerate(rles):
            if not self._same_shape(image, rle):
                raise RecordError(
                    f"{name}: mask {number} has size {rle['size']} but {picture.name} is "
                    f"{list(image.shape[:2])} (height, width)"
                )
        return image

    def _same_shape(self, image: np.ndarray, rle: dict) -> bool:
        """Whether they agree, where the picture may be decoded at 1/2, 1/4 or 1/8, rounded up."""
        shrinks = (1,) if self.at_least is None else (1, 2, 4, 8)
        return any(
            image.shape[:2] == tuple(-(-side // shrink) for side in rle["size"])
            for shrink in shrinks
        )


def segmentation_to_rle(segmentation: Any, image_hw: tuple[int, int]) -> dict[str, Any]:
    """COCO's `segmentation` field as an RLE.

    Args:
      segmentation: an RLE dict (returned as it is) or a list of polygons [x0, y0, x1, y1, ...]
        in pixels, whose union is the mask.
      image_hw: (height, width) that polygons are drawn on.

    Returns:
      {"size": [H, W], "counts": str or list}.

    Raises:
      ValueError: neither form.
    """
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        return segmentation
    polygons = segmentation if isinstance(segmentation, list) else []
    if not polygons or any(not isinstance(p, list) or len(p) < 6 for p in polygons):
        raise ValueError(
            "segmentation must be an RLE {'size', 'counts'} or a list of polygons of at least "
            f"three points, got {str(segmentation)[:60]}"
        )
    from pycocotools import mask as coco_mask  # only polygons need it

    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, *image_hw))
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}


def _find_picture(document: Any, path: Path, name: str) -> Path:
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise RecordError(f"{name}: not in SA-1B form: a dict with a list 'annotations' is needed")
    image = document.get("image")
    stated = image.get("file_name") if isinstance(image, dict) else None
    names = [path.stem + suffix for suffix in (".jpg", ".jpeg", ".png")]
    if isinstance(stated, str) and stated:
        names.insert(0, Path(stated).name)
    for candidate in names:
        if (path.parent / candidate).is_file():
            return path.parent / candidate
    raise RecordError(f"{name}: no picture beside it; looked for {', '.join(names)}")


def _read_rles(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    image = document.get("image")
    image = image if isinstance(image, dict) else {}
    rles = []
    for number, annotation in enumerate(document["annotations"]):
        try:
            image_hw = (int(image.get("height", 0)), int(image.get("width", 0)))
            rle = segmentation_to_rle(annotation["segmentation"], image_hw)
            height, width = (int(side) for side in rle["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{name}: annotation {number}: {error!r}") from error
        rles.append({"size": [height, width], "counts": rle["counts"]})
    return rles
