"""Pictures with masks as picture files: label maps, or one file for each mask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.data.images import ImageError, find_images
from sam_jax.data.sources import Record, RecordError, read_picture
from sam_jax.ops import rle as rle_ops

LAYOUTS = """\
  IMAGES/NAME.jpg with MASKS/NAME.png            a label map: 0 (black) is background, every other
                                                 integer, palette index or colour is one object
  IMAGES/NAME.jpg with MASKS/NAME/ANYTHING.png   one mask a file: 0 and one other value
  IMAGES/NAME.jpg with MASKS/NAME_ANYTHING.png   likewise; where it is the only one, a label map
IMAGES and MASKS may have sub-folders, and may be one folder; a label map there needs a NAME.jpg"""
"""The accepted layouts, for help texts and errors."""

_LOSSY = (".jpg", ".jpeg", ".webp")
_MOST_LABELS = 4096
_VOID = 255  # the palette index of Pascal VOC's borders between objects
_MANY = 20  # labels from which on a map is looked at for damage


class MaskFolder:
    """A folder of pictures, and their masks as picture files in one of the layouts of LAYOUTS.

    Which layout holds is decided for each picture by what is there. Masks may be PNG, TIFF, BMP
    or GIF; 1, 8 or 16 bits, palette or colour. Transparent pixels are background, and so is
    palette index 255 in a map with other objects (Pascal VOC's border). `left_out` names
    pictures without masks, `damage` masks without a picture. Objects of this class can be pickled
    and used by many threads.
    """

    def __init__(
        self,
        images: str | os.PathLike,
        masks: str | os.PathLike | None = None,
        *,
        at_least: int | None = None,
    ):
        """Lists the files.

        Args:
          images: the folder of pictures.
          masks: the folder of masks; by default they lie among the pictures.
          at_least: as for `Sa1bFolder`.

        Raises:
          ValueError: no such folder, or no picture with a mask.
        """
        self.images, self.at_least = Path(images), at_least
        self.masks = self.images if masks is None else Path(masks)
        for argument, folder in (("images", self.images), ("masks", self.masks)):
            if not folder.is_dir():
                raise ValueError(f"{argument}: expected a folder, got {folder}")
        self.damage: dict[str, str] = {}
        pictures, found = self._pictures_and_masks()
        files: dict[str, list[Path]] = {}
        for path in found:
            stem = _owner(_stem(path, self.masks), pictures)
            if stem is None:
                self.damage[str(path.relative_to(self.masks))] = "a mask of no picture"
            else:
                files.setdefault(stem, []).append(path)
        self._pairs = [(pictures[stem], _chosen(stem, files[stem], self)) for stem in sorted(files)]
        self.left_out = {
            str(picture.relative_to(self.images)): "no masks"
            for stem, picture in pictures.items()
            if stem not in files
        }
        if not self._pairs:
            raise ValueError(
                f"images, masks: expected pictures with masks, found {len(pictures)} pictures and "
                f"{len(found)} masks in {self.images} and {self.masks}, none of which belong "
                f"together. The accepted layouts:\n{LAYOUTS}"
            )

    def _pictures_and_masks(self) -> tuple[dict[str, Path], list[Path]]:
        """{path without suffix: picture}, and the mask files."""
        pictures: dict[str, Path] = {}
        if self.masks != self.images:
            inside = self.masks.is_relative_to(self.images)
            for path in find_images(self.images):
                if inside and path.is_relative_to(self.masks):
                    continue
                if pictures.setdefault(_stem(path, self.images), path) is not path:
                    self.damage[str(path.relative_to(self.images))] = "another picture's name"
            return pictures, find_images(self.masks)
        files = find_images(self.images)
        lossy = {_stem(p, self.images): p for p in files if p.suffix.lower() in _LOSSY}
        mapped = {_stem(p, self.images) for p in files if p.suffix.lower() not in _LOSSY}
        every = mapped | set(lossy)
        masks = []
        for path in files:
            stem = _stem(path, self.images)
            own = lossy.get(stem, path)
            if own == path and path.suffix.lower() in _LOSSY and stem in mapped:
                pictures[stem] = path  # it has a label map, whatever its name
            elif own != path or _owner(stem, every - {stem}) is not None:
                masks.append(path)
            else:
                pictures[stem] = path
        return pictures, masks

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"MaskFolder({str(self.images)!r}, {str(self.masks)!r})"

    def __getitem__(self, index: int) -> Record:
        """Record `index`, in sorted order; its name is the picture's path in the folder.

        Raises:
          IndexError: `index` is not in 0 .. len - 1.
          RecordError: the picture or a mask is damaged, their sizes differ, or a mask file holds
            what no layout has.
        """
        picture, masks = self._pairs[index]
        name = str(picture.relative_to(self.images))
        notes: list[str] = []
        if len(masks) == 1:
            rles = _read_map(masks[0], name, notes)
        else:
            rles = [_read_mask(path, name, notes) for path in masks]
        image = read_picture(picture, rles, name, self.at_least)
        return {"image": image, "rles": rles, "name": name, "notes": notes}


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _shorter(stem: str) -> Iterator[str]:
    """What a mask's picture may be called: the same, its folder, or less from an underscore on."""
    yield stem
    folder, _, base = stem.rpartition("/")
    while "_" in base:
        base = base.rpartition("_")[0]
        yield f"{folder}/{base}" if folder else base
    if folder:
        yield folder


def _owner(stem: str, pictures: Any) -> str | None:
    return next((name for name in _shorter(stem) if name in pictures), None)


def _chosen(stem: str, files: list[Path], source: MaskFolder) -> list[Path]:
    """The mask files of one picture: its label map where there is one, else all."""
    exact = [path for path in files if _stem(path, source.masks) == stem]
    if not exact:
        return sorted(files)
    for path in files:
        if path is not exact[0]:
            source.damage[str(path.relative_to(source.masks))] = (
                f"left out: the picture has the label map {exact[0].name}"
            )
    return exact[:1]


def _read_map(path: Path, name: str, notes: list[str]) -> list[dict]:
    """The masks of a label map, in the order of their values."""
    labels, palette = _read_values(path, name)
    values, pixels = _counts(labels)
    if palette and len(values) > 1 and values[-1] == _VOID:
        values, pixels = values[:-1], pixels[:-1]
    dense = np.zeros(labels.shape, np.int32)
    if len(values):
        order = np.minimum(np.searchsorted(values, labels), len(values) - 1)
        dense = np.where(values[order] == labels, order + 1, 0).astype(np.int32)
    if len(values) > 1 and _is_soft(values, pixels):
        grey = values < values[-1] * 15 / 16
        if 2 * (_thin_labels(dense, pixels) & grey).sum() > grey.sum():  # and no objects
            return [_soft_mask(labels, path, notes)]
    if len(values) > _MOST_LABELS:
        raise RecordError(
            f"{name}: {path.name} holds {len(values)} different values: anti-aliased or saved "
            f"with loss, or no label map (at most {_MOST_LABELS} objects are read)",
            "mask",
        )
    thin = int(_thin_labels(dense, pixels).sum()) if len(values) > _MANY else 0
    if 2 * thin > len(values):
        notes.append(
            f"{path.name} has {len(values)} values, of which {thin} are nowhere wider than two "
            "pixels: anti-aliased or saved with loss?"
        )
    return rle_ops.encode_groups(dense, [[k + 1] for k in range(len(values))])


def _thin_labels(dense: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Which labels 1..L lie nearly everywhere beside another: edges and noise, not objects.

    Args:
      dense: int [H, W], values 0..L.
      pixels: int [L], how many pixels each label has.

    Returns:
      bool [L].
    """
    beside = np.zeros(dense.shape, bool)
    rows, columns = dense[1:] != dense[:-1], dense[:, 1:] != dense[:, :-1]
    beside[1:] |= rows
    beside[:-1] |= rows
    beside[:, 1:] |= columns
    beside[:, :-1] |= columns
    edges = np.bincount(dense[beside], minlength=len(pixels) + 1)[1:]
    return edges >= 0.9 * pixels


def _read_mask(path: Path, name: str, notes: list[str]) -> dict:
    """The mask of a file that holds one."""
    labels, _ = _read_values(path, name)
    values, pixels = _counts(labels)
    if len(values) <= 1:
        return rle_ops.encode(labels > 0)
    if _is_soft(values, pixels):
        return _soft_mask(labels, path, notes)
    raise RecordError(
        f"{name}: {path.name} holds {len(values)} values besides 0; where a picture has several "
        f"mask files, each holds one mask: 0 and one other value. The accepted layouts:\n{LAYOUTS}",
        "mask",
    )


def _is_soft(values: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether values look like one white mask whose edge is blurred: few and varied greys."""
    top = int(values[-1])
    grey = (values > top / 16) & (values < top * 15 / 16)
    white = pixels[values >= top * 15 / 16].sum()
    return top in (0xFF, 0xFFFF) and grey.sum() >= 4 and white >= 2 * pixels[grey].sum()


def _soft_mask(labels: np.ndarray, path: Path, notes: list[str]) -> dict:
    notes.append(
        f"{path.name} is a mask with grey values between black and white: anti-aliased or saved "
        "with loss; from half on they were taken as the mask"
    )
    return rle_ops.encode(2 * labels > labels.max())


def _counts(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values above 0, rising, and how many pixels have each."""
    if labels.max() < 1 << 16:
        pixels = np.bincount(labels.reshape(-1))
        values = np.flatnonzero(pixels)
        values = values[values > 0]
        return values, pixels[values]
    values, pixels = np.unique(labels, return_counts=True)
    return values[values > 0], pixels[values > 0]


def _read_values(path: Path, name: str) -> tuple[np.ndarray, bool]:
    """A mask file as int64 [H, W], 0 where nothing is, and whether it has a palette."""
    try:
        with Image.open(path) as file:
            file.load()
            return _values(file), file.mode == "P"
    except (ImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecordError(f"{name}: mask {path.name} cannot be read: {error}", "mask") from error


def _values(file: Image.Image) -> np.ndarray:
    if file.mode in ("1", "L", "P") or file.mode.startswith("I"):
        return np.maximum(np.asarray(file).astype(np.int64), 0)
    if file.mode == "F":
        values = np.asarray(file)
        if not (values == np.round(values)).all():
            raise ImageError("it holds floating-point values that are no integers")
        return np.maximum(values.astype(np.int64), 0)
    pixels = np.asarray(file.convert("RGBA")).astype(np.int64)
    red, green, blue, alpha = np.moveaxis(pixels, -1, 0)
    grey = (red == green).all() and (green == blue).all()
    return np.where(alpha > 0, red if grey else red << 16 | green << 8 | blue, 0)
