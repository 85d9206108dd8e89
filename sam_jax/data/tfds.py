"""SA-1B as TensorFlow Datasets prepares it (`segment_anything`), read without TensorFlow."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from sam_jax.data.sources import Record, RecordError, read_picture

_HOW = "tfds build segment_anything --file_format=array_record"


class TfdsSegmentAnything:
    """The data set `segment_anything` in array_record files, which have random access.

    The picture is read as the JPEG bytes that the files hold and decoded here. Objects of this
    class can be pickled and used by many threads. Needs the extra `train` (tensorflow-datasets).
    """

    def __init__(
        self, path: str | os.PathLike, split: str = "train", *, at_least: int | None = None
    ):
        """Opens the data set.

        Args:
          path: the folder with dataset_info.json, or one above it (of several versions the
            newest is taken); gs:// and other addresses that etils knows work too.
          split: the split, or a part of it in TFDS's form ("train[:1%]").
          at_least: as for `Sa1bFolder`.

        Raises:
          ValueError: tensorflow-datasets is not installed, no such data set, one of another form,
            or one in files without random access.
        """
        self.path, self.split, self.at_least = _find_version(path), split, at_least
        tfds = _import_tfds()
        builder = tfds.builder_from_directory(self.path)
        raw = {"image": {"content": tfds.decode.SkipDecoding()}}
        try:
            self._data = builder.as_data_source(split=split, decoders=raw)
        except Exception as error:  # TFDS has many
            raise ValueError(f"path: {self.path}, split {split!r}: {error}") from error

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return f"TfdsSegmentAnything({self.path!r}, {self.split!r})"

    def __getitem__(self, index: int) -> Record:
        """Record `index`; its name is its file name in SA-1B.

        Raises:
          IndexError: `index` is not in 0 .. len - 1.
          RecordError: the record cannot be read, or its picture and masks do not fit.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0..{len(self) - 1}, got {index}")
        try:
            example = self._data[int(index)]
            image, annotations = example["image"], example["annotations"]
            name = image["file_name"].decode()
        except Exception as error:  # a damaged file raises almost anything
            raise RecordError(f"record {index} of {self.path}: {error}") from error
        segmentation = annotations["segmentation"]
        rles = [
            {"size": [int(side) for side in size], "counts": counts.decode("latin-1")}
            for size, counts in zip(segmentation["size"], segmentation["counts"], strict=True)
        ]
        stated = [
            {"area": int(area), "bbox": _pixels(box, rle["size"])}
            for area, box, rle in zip(annotations["area"], annotations["bbox"], rles, strict=True)
        ]
        pixels = read_picture(image["content"], rles, name, self.at_least, "its picture")
        return {"image": pixels, "rles": rles, "name": name, "stated": stated}


def is_tfds_folder(path: str | os.PathLike) -> bool:
    """Whether a folder, or one or two levels below it, has been written by TFDS."""
    return bool(_versions(path))


def _versions(path: str | os.PathLike) -> list[str]:
    """The folders with dataset_info.json at or below `path`."""
    for pattern in (".", "*", "*/*"):
        found = [
            os.path.dirname(str(info)) for info in _epath(path).glob(f"{pattern}/dataset_info.json")
        ]
        if found:
            return found
    return []


def _epath(path: str | os.PathLike) -> Any:
    if "://" not in str(path):
        from pathlib import Path

        return Path(path)
    from etils import epath  # comes with tensorflow-datasets

    return epath.Path(path)


def _find_version(path: str | os.PathLike) -> str:
    found = _versions(path)
    if not found:
        raise ValueError(
            "path: expected a data set prepared by TFDS (a folder with dataset_info.json), found "
            f"none in {path}; `{_HOW}` makes one"
        )
    newest = max(found, key=_version_number)
    info = json.loads(_epath(os.path.join(newest, "dataset_info.json")).read_text())
    form = info.get("fileFormat", "tfrecord")
    if info.get("name") != "segment_anything":
        raise ValueError(
            f"path: expected TFDS's data set segment_anything, {newest} is {info.get('name')!r}"
        )
    if form != "array_record":
        raise ValueError(
            f"path: expected array_record files, {newest} has {form} files, which have no random "
            f"access; prepare it with `{_HOW}`"
        )
    return newest


def _version_number(path: str) -> tuple[int, ...]:
    parts = os.path.basename(path).split(".")
    return tuple(int(part) if part.isdigit() else -1 for part in parts)


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            "path: a data set prepared by TFDS needs tensorflow-datasets, which is not installed "
            f"({error}); pip install 'sam_jax[train]'"
        ) from error
    return tfds


def _pixels(box: np.ndarray, image_hw: list[int]) -> list[float]:
    """[x, y, width, height] in pixels of TFDS's [y0, x0, y1, x1] in 0..1."""
    height, width = image_hw
    y0, x0, y1, x1 = (float(v) for v in box)
    return [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
