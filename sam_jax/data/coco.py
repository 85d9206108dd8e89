"""Instances in COCO's form: one JSON for all pictures (COCO, LVIS, most labelling tools)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.data.sources import (
    Record,
    RecordError,
    read_picture,
    segmentation_to_rle,
    what_is_stated,
)

CROWD = "a crowd region (iscrowd): many objects in one mask"
"""Why an annotation is in `left_out`; the other reasons there are of pictures."""


class CocoJson:
    """The pictures of a COCO instances file that have masks.

    Masks are polygons, compressed or uncompressed RLEs. `left_out` names crowd regions and
    pictures without annotations; `damage` annotations of no listed picture or without an outline.
    Objects of this class can be pickled and used by many threads.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        images: str | os.PathLike | None = None,
        *,
        at_least: int | None = None,
    ):
        """Reads the JSON.

        Args:
          path: the JSON: {"images": [{"id", "file_name", "height", "width"}],
            "annotations": [{"image_id", "segmentation", "iscrowd"?, "bbox"?, "area"?}]}.
          images: the folder that `file_name` is relative to. By default the first of these that
            holds one of the first pictures: the JSON's folder and the one above it; their
            sub-folders `images` and, for instances_NAME.json or NAME.json, `NAME`.
          at_least: as for `Sa1bFolder`.

        Raises:
          ValueError: not such a file, no folder with its pictures, or no mask.
        """
        self.path, self.at_least = Path(path), at_least
        document = load_document(self.path)
        self._images: dict[Any, dict] = {image["id"]: image for image in document["images"]}
        self.images = _find_images(self.path, images, list(self._images.values()))
        self.left_out: dict[str, str] = {}
        self.damage: dict[str, str] = {}
        self._annotations: dict[Any, list[dict]] = {}
        for annotation in document["annotations"]:
            self._add(annotation)
        self._ids = [key for key in self._images if key in self._annotations]
        for key, image in self._images.items():
            if key not in self._annotations:
                self.left_out[image["file_name"]] = "no masks"
        if not self._ids:
            raise ValueError(f"path: expected a COCO file with masks, {path} has none")

    def _add(self, annotation: dict) -> None:
        """Keeps an annotation with its picture, or notes why not."""
        annotation = annotation if isinstance(annotation, dict) else {}
        key, outline = annotation.get("image_id"), annotation.get("segmentation")
        image = self._images.get(key) if isinstance(key, int | str) else None
        name = f"annotation {annotation.get('id', '?')}"
        if image is None:
            self.damage[name] = f"its image_id {key!r} is none of the images"
            return
        name = f"{image['file_name']}: {name}"
        if annotation.get("iscrowd"):
            self.left_out[name] = CROWD
            return
        if isinstance(outline, list):  # boxes and lines come as polygons of too few corners
            outline = [p for p in outline if isinstance(p, list) and len(p) >= 6]
        if not outline:
            self.damage[name] = "no outline: neither an RLE nor a polygon of three corners"
            return
        kept = {k: annotation[k] for k in ("bbox", "area") if annotation.get(k) is not None}
        self._annotations.setdefault(key, []).append(kept | {"segmentation": outline})

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"CocoJson({str(self.path)!r}, {str(self.images)!r})"

    def files(self) -> list[Path]:
        """The JSON and the pictures, whether they are there or not."""
        names = (self._images[key]["file_name"] for key in self._ids)
        return [self.path, *(_place(self.images, name) for name in names)]

    def mask_count(self, index: int) -> int:
        """How many masks record `index` has, without reading them."""
        return len(self._annotations[self._ids[index]])

    def __getitem__(self, index: int) -> Record:
        """Record `index`, in the order of the file's images; its name is the `file_name`.

        Raises:
          IndexError: `index` is not in 0 .. len - 1.
          RecordError: the picture is missing or damaged, has another size than the JSON says, or
            a mask cannot be read.
        """
        key = self._ids[index]
        image, annotations = self._images[key], self._annotations[key]
        name = image["file_name"]
        rles, stated = [], []
        for number, annotation in enumerate(annotations):
            try:
                image_hw = (int(image["height"]), int(image["width"]))
                rle = segmentation_to_rle(annotation["segmentation"], image_hw)
                rles.append({"size": [int(v) for v in rle["size"]], "counts": rle["counts"]})
                stated.append(what_is_stated(annotation))
            except Exception as error:  # pycocotools raises bare Exceptions
                raise RecordError(f"{name}: mask {number}: {error!r}", "mask") from error
        pixels = read_picture(_place(self.images, name), rles, name, self.at_least)
        return {"image": pixels, "rles": rles, "name": name, "stated": stated}

    def read_image(self, about: dict[str, Any]) -> np.ndarray:
        """The picture of one of the file's "images": uint8 [H, W, 3] of the size stated there.

        Raises:
          RecordError: it is missing or damaged, or has another size or none stated.
        """
        name = about["file_name"]
        try:
            size = [int(about["height"]), int(about["width"])]
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{name}: no height and width: {error!r}") from error
        return read_picture(_place(self.images, name), [{"size": size}], name)


def is_coco_json(path: str | os.PathLike) -> bool:
    """Whether a JSON looks like COCO's form and not SA-1B's, from its first and last megabyte."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        text = file.read(1 << 20)
        file.seek(max(len(text), size - (1 << 20)))
        text = b"".join((text + file.read()).split())
    return b'"image":{' not in text and (b'"images":[' in text or b'"category_id":' in text)


def load_document(path: Path) -> dict[str, Any]:
    """A COCO file, every image of which has an "id" and a "file_name".

    Raises:
      ValueError: not such a file.
    """
    form = "a COCO file: a dict with the lists 'images' and 'annotations'"
    if not path.is_file():
        raise ValueError(f"path: expected {form}, no such file: {path}")
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"path: {path} is not readable as JSON: {error}") from error
    lists = (
        [document.get(k) for k in ("images", "annotations")] if isinstance(document, dict) else []
    )
    if len(lists) != 2 or not all(isinstance(part, list) for part in lists):
        raise ValueError(f"path: expected {form}, {path} is none")
    for number, image in enumerate(lists[0]):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise ValueError(f"path: {path}: images[{number}] has no 'id'")
        if not image.get("file_name"):  # LVIS has addresses instead
            image["file_name"] = "/".join(str(image.get("coco_url", "")).split("/")[-2:])
        if not image["file_name"]:
            raise ValueError(f"path: {path}: images[{number}] has no 'file_name'")
        image["file_name"] = str(image["file_name"]).replace("\\", "/")
    return document


def _find_images(path: Path, given: str | os.PathLike | None, images: list[dict]) -> Path:
    if given is not None:
        if not Path(given).is_dir():
            raise ValueError(f"images: expected a folder of pictures, got {given}")
        return Path(given)
    split = path.stem.removeprefix("instances_")
    places = [
        place
        for folder in (path.parent, path.parent.parent)
        for place in (folder, folder / "images", folder / split, folder / "images" / split)
    ]
    names = [image["file_name"] for image in images[:100]]
    for place in places:
        if any(_place(place, name).is_file() for name in names):
            return place
    looked = ", ".join(str(place) for place in places)
    raise ValueError(
        f"images: expected the folder of the pictures of {path}, none of them is in {looked}; "
        f"name it: {path.name}:FOLDER"
    )


def _place(folder: Path, name: str) -> Path:
    """Where a picture is: some tools write paths of the machine that they ran on."""
    full = folder / name
    return full if full.is_file() else folder / Path(name).name
