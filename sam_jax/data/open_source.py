"""A path -> the source that reads what lies there."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from sam_jax.data.coco import CocoJson, is_coco_json
from sam_jax.data.cut_outs import CutOuts, are_cut_outs
from sam_jax.data.images import find_images
from sam_jax.data.mask_folders import LAYOUTS, MaskFolder
from sam_jax.data.sources import Sa1bFolder, Source
from sam_jax.data.store import StoreSource, is_store
from sam_jax.data.tars import Sa1bTars
from sam_jax.data.tfds import TfdsSegmentAnything, is_tfds_folder

IMAGE_FOLDERS = ("images", "image", "imgs", "photos", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "SegmentationObject")

FORMS = f"""\
  a folder of NAME.jpg + NAME.json in SA-1B form
  a store of `sam-jax annotate`
  SA-1B's .tar files: one, a folder of them, or a pattern (DIR/sa_00000*.tar)
  SA-1B prepared by TFDS in array_record files
  a COCO instances JSON, the folder that holds one, or FILE.json:FOLDER with FOLDER, seen from the
  JSON, where its pictures are
  a folder of cut-outs: pictures with transparent pixels, each of which shows one object
  a folder with the sub-folders images and masks, or of pictures and masks together:
{LAYOUTS}"""
"""What `open_source` reads, for help texts and errors."""


def open_source(path: str | os.PathLike, *, at_least: int | None = None) -> Source:
    """The source for what lies at a path, whichever of FORMS it has.

    Args:
      path: see FORMS. The sub-folders of pictures and masks may have the names of IMAGE_FOLDERS
        and MASK_FOLDERS.
      at_least: as for `Sa1bFolder`: JPEGs may be decoded smaller.

    Raises:
      ValueError: nothing there, none of the forms, or several; or it cannot be opened.
    """
    text, place = str(path), Path(path)
    if ".json:" in text:
        file, _, images = text.rpartition(".json:")
        json_path = Path(file + ".json")
        return CocoJson(json_path, json_path.parent / images, at_least=at_least)
    if "://" in text:
        return TfdsSegmentAnything(text, at_least=at_least)
    if place.is_dir():
        return _open_folder(place, at_least)
    if place.is_file() and place.suffix.lower() == ".json":
        return CocoJson(place, at_least=at_least)
    if place.is_file() and _looks_like_tar(place.name):
        return Sa1bTars(place, at_least=at_least)
    tars = sorted(name for name in glob.glob(text) if _looks_like_tar(name))
    if tars:
        return Sa1bTars(tars, at_least=at_least)
    problem = "is none of the forms that are read" if place.exists() else "does not exist"
    raise ValueError(f"path: {path} {problem}:\n{FORMS}")


def _open_folder(folder: Path, at_least: int | None) -> Source:
    if is_store(folder):
        return StoreSource(folder, at_least=at_least)
    if is_tfds_folder(folder):
        return TfdsSegmentAnything(folder, at_least=at_least)
    tars = sorted(str(p) for p in folder.iterdir() if _looks_like_tar(p.name))
    if tars:
        return Sa1bTars(tars, at_least=at_least)
    images, masks = (_sub_folder(folder, names) for names in (IMAGE_FOLDERS, MASK_FOLDERS))
    coco = [str(p) for p in _json_files(folder) if is_coco_json(p)]
    if len(coco) == 1:
        return CocoJson(coco[0], at_least=at_least)
    if coco:
        raise ValueError(f"path: {folder} holds several COCO files; name one: {', '.join(coco)}")
    if images and masks and find_images(masks):
        return MaskFolder(images, masks, at_least=at_least)
    if _has_sa1b_json(folder):
        return Sa1bFolder(folder, at_least=at_least)
    pictures = find_images(folder)
    if are_cut_outs(pictures):
        return CutOuts(folder)
    if pictures:
        return MaskFolder(folder, at_least=at_least)
    raise ValueError(f"path: {folder} holds none of the forms that are read:\n{FORMS}")


def _looks_like_tar(name: str) -> bool:
    """Compressed ones too, so that their error is said and not passed over."""
    return not name.startswith(".") and name.endswith((".tar", ".tar.gz", ".tgz", ".tar.xz"))


def _sub_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _json_files(folder: Path) -> Iterator[Path]:
    """The JSON files where COCO's lie: few, in the folder itself or in its `annotations`."""
    for place in (folder, folder / "annotations"):
        if place.is_dir():
            files = sorted(p for p in place.glob("*.json") if not p.name.startswith("."))
            # SA-1B has one a picture; the first few tell which form it is.
            yield from files[:20]


def _has_sa1b_json(folder: Path) -> bool:
    """Whether some of the first JSON files belong to pictures or hold annotations."""
    every = (
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in sorted(names)
        if name.endswith(".json") and not name.startswith(".")
    )
    files = list(itertools.islice(every, 100))
    pictures = (path.with_suffix(s) for path in files for s in (".jpg", ".jpeg", ".png"))
    return any(path.is_file() for path in pictures) or any(
        b'"annotations"' in path.read_bytes() for path in files
    )
