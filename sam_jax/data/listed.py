"""Records that a list of files makes: a picture, and a function that reads its masks.

Most data sets differ only in where files lie and how masks are written; each reader here takes one
way of writing them. All are functions of the module, so that a source can be pickled.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.data.sources import Record, RecordError, read_picture, segmentation_to_rle
from sam_jax.ops import rle


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture of a data set.

    Attributes:
      name: of the record.
      image: its file, or a .zip and the name of the file in it.
      read: (hw, *args) -> COCO RLEs; hw is the picture's height and width.
      args: paths, polygons, or whatever `read` takes.
      count: how many masks there are, where that is known without reading; -1: it is not.
    """

    name: str
    image: Path | tuple[Path, str]
    read: Callable[..., list[dict[str, Any]]]
    args: tuple
    count: int = -1


class Listed:
    """A source of items.

    Args:
      items: in the order of the records.
      what: shown by repr: the data set and where it is.
    """

    def __init__(self, items: Sequence[Item], what: str) -> None:
        self._items, self._what = list(items), what

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return self._what

    def mask_count(self, index: int) -> int:
        """How many masks record `index` has; 0 where it cannot be read."""
        item = self._items[index]
        if item.count >= 0:
            return item.count
        try:
            return len(self._rles(item, None))
        except RecordError:
            return 0

    def __getitem__(self, index: int) -> Record:
        """Record `index`.

        Raises:
          RecordError: the picture or its masks are missing or damaged, or differ in size.
        """
        item = self._items[index]
        picture: Path | bytes = item.image if isinstance(item.image, Path) else b""
        if not isinstance(item.image, Path):
            archive, member = item.image
            try:
                with zipfile.ZipFile(archive) as opened:
                    picture = opened.read(member)
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                raise RecordError(f"{item.name}: {archive.name}: {error}", "image") from error
        image = read_picture(picture, [], item.name, picture_name=item.name)
        masks = self._rles(item, image.shape[:2])
        for number, mask in enumerate(masks):
            if tuple(mask["size"]) != image.shape[:2]:
                raise RecordError(
                    f"{item.name}: mask {number} has size {mask['size']} but the picture is "
                    f"{list(image.shape[:2])} (height, width)",
                    "size",
                )
        return {"image": image, "rles": masks, "name": item.name}

    def _rles(self, item: Item, hw: tuple[int, int] | None) -> list[dict[str, Any]]:
        try:
            return item.read(hw, *item.args)
        except RecordError:
            raise
        except Exception as error:  # damaged files lead to whatever error
            raise RecordError(f"{item.name}: masks: {error!r}", "mask") from error


class Joined:
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._sources))

    def _place(self, index: int) -> tuple[Any, int]:
        index = range(len(self))[index]
        which = int(np.searchsorted(self._ends, index, "right"))
        return self._sources[which], index - (self._ends[which - 1] if which else 0)

    def mask_count(self, index: int) -> int:
        """How many masks record `index` has."""
        source, own = self._place(index)
        return source.mask_count(own)

    def __getitem__(self, index: int) -> Record:
        source, own = self._place(index)
        return source[own]


class Subset:
    """Some records of a source.

    Args:
      source: of records.
      indices: of those that are kept, in their order.
      why: added to repr.
    """

    def __init__(self, source: Any, indices: Sequence[int], why: str) -> None:
        self._source, self._indices, self._why = source, list(indices), why

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"{self._source!r}, {self._why}"

    def __getitem__(self, index: int) -> Record:
        return self._source[self._indices[index]]


def subsample(source: Any, masks: int = 10_000, limit: int = 15_000, seed: int = 0) -> Any:
    """A source of about `masks` masks where it has more than `limit`, as the paper did, by image.

    No more is counted than is needed to know. What is kept depends on the seed and the source alone
    and stays in its order.

    Args:
      source: with `mask_count(i)`.
      masks: about how many are kept.
      limit: a source of no more is returned as it is.
      seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(source))
    counted, kept = 0, len(order)
    for number, index in enumerate(order, 1):
        before = counted
        counted += source.mask_count(int(index))
        if before < masks <= counted:
            kept = number
        if counted > limit:
            return Subset(source, np.sort(order[:kept]).tolist(), f"{kept} images by chance")
    return source


def polygons(hw: tuple[int, int] | None, shapes: list[list[list[float]]]) -> list[dict[str, Any]]:
    """Masks of polygons; each shape is a list of [x0, y0, x1, y1, ...] whose union it is."""
    if hw is None:  # only counted
        return [{} for _ in shapes]
    return _filled([segmentation_to_rle(shape, hw) for shape in shapes])


def run_lengths(hw: tuple[int, int] | None, masks: list[Any]) -> list[dict[str, Any]]:
    """Masks that are COCO segmentations already: RLEs, or lists of polygons."""
    if hw is None:
        return [{} for _ in masks]
    return _filled([segmentation_to_rle(mask, hw) for mask in masks])


def label_map(hw: Any, path: Path, void: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    """A picture in which every value is one mask, but for `void`; colours are one number each."""
    return _of_labels(_values(path), void)


def binary_files(hw: Any, *paths: Path) -> list[dict[str, Any]]:
    """One mask a file: what is not 0."""
    return _filled([rle.encode(_values(path) != 0) for path in paths])


def instance_channel(hw: Any, path: Path, channel: int = 2) -> list[dict[str, Any]]:
    """A colour picture one channel of which numbers the objects (ADE20K: blue)."""
    with Image.open(path) as file:
        return _of_labels(np.asarray(file.convert("RGB"))[..., channel].astype(np.int64), (0,))


def panoptic(hw: Any, path: Path, ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """COCO panoptic: the masks of some segments of a picture, id = R + 256 G + 65536 B."""
    with Image.open(path) as file:
        rgb = np.asarray(file.convert("RGB")).astype(np.int64)
    labels = rgb @ np.array([1, 256, 65536])
    return _filled([rle.encode(labels == number) for number in ids])


def hdf5_labels(hw: Any, path: Path, void: tuple[int, ...] = (-1,)) -> list[dict[str, Any]]:
    """Hypersim: the labels of an .hdf5's "dataset"."""
    import h5py

    with h5py.File(path) as file:
        return _of_labels(np.asarray(file["dataset"]).astype(np.int64), void)


def numpy_labels(hw: Any, path: Path, void: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    """The labels of an .npy or the first array of an .npz."""
    loaded = np.load(path, allow_pickle=False)
    labels = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
    return _of_labels(np.asarray(labels).astype(np.int64), void)


def _of_labels(labels: np.ndarray, void: tuple[int, ...]) -> list[dict[str, Any]]:
    values, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape)
    return [rle.encode(dense == k) for k, value in enumerate(values) if int(value) not in void]


def _values(path: Path) -> np.ndarray:
    """int64 [H, W]: the numbers of a picture; colours as R + 256 G + 65536 B."""
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        if file.mode in ("RGB", "RGBA"):
            rgb = np.asarray(file.convert("RGB")).astype(np.int64)
            return rgb @ np.array([1, 256, 65536])
        if file.mode in ("LA", "1"):
            file = file.convert("L")
        return np.asarray(file).astype(np.int64)


def _filled(masks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that have no pixel."""
    return [mask for mask in masks if rle.area(mask)]
