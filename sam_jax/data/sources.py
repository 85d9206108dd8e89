"""Map-style sources of photographs with masks.

A source has `__len__` and `__getitem__(i)`, which gives one record:

    {"image": uint8 [H, W, 3] RGB, "rles": list of COCO RLE dicts of size [H, W], "name": str}

or raises `RecordError` naming what is wrong with that record. A record may have two keys more,
which training ignores and `python -m train.check_data` reads:

    "stated": a list of dicts, one a mask: what the file says of it besides its pixels, as far as
      it does: "bbox" ([x, y, width, height]), "area", and "extent" ([x0, y0, x1, y1], the
      outermost corners of its polygons), in pixels
    "notes": a list of str: what looks wrong and could be read all the same

A source may have `left_out` and `damage`, dicts {name: reason} of what its files hold and its
records do not: `left_out` by intention, `damage` because it is broken or incomplete.

Anything else with these two methods is a source too. The others are in `tars`, `tfds`, `coco`,
`mask_folders`, `cut_outs`, `scenes` and `described`, whose records have words for their masks;
`open_source` recognises which one a path needs.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sam_jax.data.images import ImageError, find_images, read_image
from sam_jax.ops import rle as rle_ops

Record = dict[str, Any]


class RecordError(ValueError):
    """A record that cannot be used; the message names it. Pipelines skip, count and name these.

    Attributes:
      kind: what is at fault: "record", "image", "mask" or "size" (mask and picture differ).
    """

    def __init__(self, message: str, kind: str = "record"):
        super().__init__(message)
        self.kind = kind


def read_checked(source: Source, index: int) -> Record:
    """Record `index` with masks that can all be decoded.

    Raises:
      RecordError: it cannot be read, or one of its masks cannot.
    """
    record = source[index]
    for number, mask in enumerate(record.get("rles", ())):
        try:
            rle_ops.read_counts(mask)
        except ValueError as error:
            name = record.get("name", index)
            raise RecordError(f"{name}: mask {number}: {error}", "mask") from error
    return record


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
        rles, stated = read_annotations(document, name)
        picture = _find_picture(document, path, name)
        image = read_picture(picture, rles, name, self.at_least)
        return {"image": image, "rles": rles, "name": name, "stated": stated}

    @functools.cached_property
    def damage(self) -> dict[str, str]:
        """{name: reason} of the pictures that belong to no JSON, so that nobody gets to see them.

        JSON files without a picture are records that raise an error.
        """
        pictures = find_images(self.path)
        stems = {os.path.splitext(file)[0] for file in self._files}
        lonely = {str(p) for p in pictures if str(p.with_suffix("")) not in stems}
        if lonely:  # some JSON may name them
            named = stems - {str(p.with_suffix("")) for p in pictures}
            for stem in named:
                try:
                    document = json.loads(Path(stem + ".json").read_bytes())
                    lonely.discard(str(_find_picture(document, Path(stem + ".json"), stem)))
                except (OSError, ValueError):
                    continue
        return {os.path.relpath(p, self.path): "no JSON with its name" for p in sorted(lonely)}


def read_picture(
    picture: Path | bytes,
    rles: list[dict],
    name: str,
    at_least: int | None = None,
    picture_name: str = "",
) -> np.ndarray:
    """A picture that its masks fit.

    Masks may have been drawn on the stored pixels of a photo whose EXIF turns it: where they fit
    only those, the photo stays unturned.

    Args:
      picture: a path, or the bytes of a file.
      rles: COCO RLEs of the masks.
      name: the record's, for errors.
      at_least: as for `read_image`; the masks keep their size.
      picture_name: the picture's, for errors; needed for bytes.

    Returns:
      uint8 [H, W, 3] RGB, at 1/2, 1/4 or 1/8 of the masks' size where `at_least` allows it.

    Raises:
      RecordError: the picture cannot be read, or a mask has another size.
    """
    called = picture_name or (picture.name if isinstance(picture, Path) else "the picture")
    try:
        image = read_image(picture, at_least=at_least, name=called)
        if rles and not _same_shape(image, rles[0], at_least):
            turned = read_image(picture, at_least=at_least, apply_orientation=False, name=called)
            image = turned if _same_shape(turned, rles[0], at_least) else image
    except ImageError as error:
        raise RecordError(f"{name}: {error}", "image") from error
    for number, rle in enumerate(rles):
        if not _same_shape(image, rle, at_least):
            raise RecordError(
                f"{name}: mask {number} has size {rle['size']} but {called} is "
                f"{list(image.shape[:2])} (height, width)",
                "size",
            )
    return image


def read_annotations(document: Any, name: str) -> tuple[list[dict], list[dict]]:
    """The masks of a document in SA-1B form, and what it states of each (see the module).

    Raises:
      RecordError: another form, or an annotation without a mask that can be read.
    """
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise RecordError(f"{name}: not in SA-1B form: a dict with a list 'annotations' is needed")
    image = document.get("image")
    image = image if isinstance(image, dict) else {}
    rles, stated = [], []
    for number, annotation in enumerate(document["annotations"]):
        try:
            image_hw = (int(image.get("height", 0)), int(image.get("width", 0)))
            rle = segmentation_to_rle(annotation["segmentation"], image_hw)
            height, width = (int(side) for side in rle["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{name}: annotation {number}: {error!r}", "mask") from error
        rles.append({"size": [height, width], "counts": rle["counts"]})
        stated.append(what_is_stated(annotation))
    return rles, stated


def what_is_stated(annotation: dict[str, Any]) -> dict[str, Any]:
    """ "bbox", "area" and "extent" of an annotation in COCO's form, those of them that it has."""
    stated = {key: annotation[key] for key in ("bbox", "area") if annotation.get(key) is not None}
    polygons = annotation["segmentation"]
    if isinstance(polygons, list) and polygons:
        xs = [x for polygon in polygons for x in polygon[0::2]]
        ys = [y for polygon in polygons for y in polygon[1::2]]
        stated["extent"] = [min(xs), min(ys), max(xs), max(ys)]
    return stated


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


def _same_shape(image: np.ndarray, rle: dict, at_least: int | None) -> bool:
    """Whether they agree, where the picture may be decoded at 1/2, 1/4 or 1/8, rounded up."""
    shrinks = (1,) if at_least is None else (1, 2, 4, 8)
    return any(
        image.shape[:2] == tuple(-(-side // shrink) for side in rle["size"]) for shrink in shrinks
    )


def _find_picture(document: Any, path: Path, name: str) -> Path:
    image = document.get("image") if isinstance(document, dict) else None
    stated = image.get("file_name") if isinstance(image, dict) else None
    names = [path.stem + suffix for suffix in (".jpg", ".jpeg", ".png")]
    if isinstance(stated, str) and stated:
        names.insert(0, Path(stated).name)
    for candidate in names:
        if (path.parent / candidate).is_file():
            return path.parent / candidate
    raise RecordError(f"{name}: no picture beside it; looked for {', '.join(names)}", "image")
