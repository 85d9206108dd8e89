"""Where the files of the paper's 23 data sets lie: one function a layout, from a root to a source.

The root may be an archive's folder or one inside it. A function gives None where its files are not
there. `zero_shot` names them and says what each expects.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sam_jax.data import listed
from sam_jax.data.coco import CocoJson, load_document
from sam_jax.data.listed import Item, Joined, Listed
from sam_jax.data.sources import Source

COCO_FOLDERS = ("val2017", "train2017")


def find(root: Path, *paths: str) -> Path | None:
    """The first of some paths (patterns) that is there, in the root or in a folder of it."""
    for pattern in paths:
        for place in (pattern, f"*/{pattern}", f"*/*/{pattern}"):
            found = sorted(root.glob(place))
            if found:
                return found[0]
    return None


def coco_files(
    json_paths: tuple[str, ...], images: tuple[str, ...]
) -> Callable[[Path], Source | None]:
    """COCO files, read one after the other, with pictures in the first folder that is there."""

    def open_(root: Path) -> Source | None:
        sources = []
        for pattern in json_paths:
            path = find(root, pattern)
            if path is not None:
                folders = [path.parent / name for name in images]
                folder = next((f for f in folders if f.is_dir()), path.parent)
                sources.append(CocoJson(path, folder))
        if not sources:
            return None
        return sources[0] if len(sources) == 1 else Joined(sources)

    return open_


def paired(
    root: Path, images: Path | None, suffix: str, partner: Callable[[Path], Path | None], read: Any
) -> list[Item]:
    """Items of the pictures below a folder whose name ends in `suffix` and that have a partner."""
    items = []
    for image in sorted(images.rglob(f"*{suffix}")) if images else []:
        masks = partner(image)
        if masks is not None and masks.is_file():
            items.append(Item(image.relative_to(root).as_posix(), image, read, (masks,)))
    return items


def make(name: str, root: Path, items: list[Item]) -> Listed | None:
    return Listed(items, f"{name} in {root}") if items else None


def ppdls(root: Path) -> Source | None:
    def label(image: Path) -> Path:
        return image.with_name(image.name.removesuffix("_rgb.png") + "_label.png")

    return make("ppdls", root, paired(root, root, "_rgb.png", label, listed.label_map))


def bbbc038(root: Path) -> Source | None:
    items = []
    for folder in sorted({p.parent.parent for p in root.rglob("*/images/*.png")}):
        masks = tuple(sorted((folder / "masks").glob("*.png")))
        for image in sorted((folder / "images").glob("*.png")) if masks else ():
            items.append(Item(folder.name, image, listed.binary_files, masks, len(masks)))
    return make("bbbc038v1", root, items)


def doors(root: Path) -> Source | None:
    items = []
    for image in sorted(root.rglob("Te*/img/*.png")):
        mask = image.parent.parent / "Rock_all" / image.name
        if mask.is_file():
            name = image.relative_to(root).as_posix()
            items.append(Item(name, image, listed.binary_files, (mask,), 1))
    return make("doors", root, items)


def via_shapes(document: Any) -> Iterator[tuple[str, list[list[list[float]]]]]:
    """File names and shapes of a VGG Image Annotator file; regions are a list or a dict."""
    document = document.get("_via_img_metadata", document)
    for entry in document.values():
        regions = entry.get("regions") or []
        shapes = []
        for region in regions.values() if isinstance(regions, dict) else regions:
            shape = region["shape_attributes"]
            if "all_points_x" in shape and len(shape["all_points_x"]) >= 3:
                points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
                shapes.append([[float(v) for xy in points for v in xy]])
        yield entry["filename"], shapes


def ndd20(root: Path) -> Source | None:
    items = []
    for part in ("ABOVE", "BELOW"):
        path = find(root, f"{part}_LABELS.json")
        for name, shapes in via_shapes(json.loads(path.read_bytes())) if path else ():
            if shapes:
                image = path.parent / part / name
                items.append(Item(f"{part}/{name}", image, listed.polygons, (shapes,), len(shapes)))
    return make("ndd20", root, items)


def lvis(root: Path) -> Source | None:
    path = find(root, "lvis_v0.5_val.json", "annotations/lvis_v0.5_val.json")
    if path is None:
        return None
    document = load_document(path)
    masks: dict[Any, list[Any]] = {}
    for one in document["annotations"]:
        masks.setdefault(one["image_id"], []).append(one["segmentation"])
    folders = [f / split for f in (path.parent, path.parent.parent) for split in COCO_FOLDERS]
    items = []
    for entry in document["images"]:
        own = masks.get(entry["id"])
        name = entry["file_name"].rsplit("_", 1)[-1]  # COCO_val2014_000000000042.jpg
        image = next((f / name for f in folders if (f / name).is_file()), folders[0] / name)
        if own:
            items.append(Item(name, image, listed.run_lengths, (own,), len(own)))
    return make("lvis", root, items)


def streets(root: Path) -> Source | None:
    # Not verified: VIA's JSON is what the authors' tool writes; label maps are a common conversion.
    items = []
    for path in sorted(root.rglob("*.json")):
        try:
            found = list(via_shapes(json.loads(path.read_bytes())))
        except (ValueError, AttributeError, KeyError, TypeError):
            continue
        for name, shapes in found:
            image = find(path.parent, name, f"images/{name}") or path.parent / "images" / name
            if shapes:
                items.append(Item(name, image, listed.polygons, (shapes,), len(shapes)))
    if not items:
        images = find(root, "images")
        items = paired(root, images, ".jpg", beside("labels", ".png"), listed.label_map)
    return make("streets", root, items)


def beside(folder: str, suffix: str, up: int = 1) -> Callable[[Path], Path]:
    """A partner in a folder beside that of the pictures, with the same name and another suffix."""
    return lambda image: image.parents[up] / folder / (image.stem + suffix)


def ishape(root: Path) -> Source | None:
    items = []
    for image in sorted(root.rglob("val/image/*")):
        for suffix, read in ((".png", listed.label_map), (".npz", listed.numpy_labels)):
            labels = image.parents[1] / "instance_map" / (image.stem + suffix)
            if labels.is_file():
                name = image.relative_to(root).as_posix()
                items.append(Item(name, image, read, (labels,)))
                break
    return make("ishape", root, items)


def ade20k(root: Path) -> Source | None:
    images = find(root, "images/ADE/validation", "images/validation")

    def seg(image: Path) -> Path:
        return image.with_name(image.stem + "_seg.png")

    items = paired(root, images, ".jpg", seg, listed.instance_channel)
    return make("ade20k", root, items)


def ovis(root: Path) -> Source | None:
    path = find(root, "annotations_train.json", "annotations/annotations_train.json")
    if path is None:
        return None
    document = json.loads(path.read_bytes())
    frames: dict[tuple[Any, int], list[Any]] = {}
    for track in document["annotations"]:
        for number, mask in enumerate(track["segmentations"]):
            if mask:
                frames.setdefault((track["video_id"], number), []).append(mask)
    folders = (path.parent / "train", path.parent.parent / "train", path.parent)
    images = next(f for f in folders if f.is_dir())
    items = []
    for video in document["videos"]:
        for number, name in enumerate(video["file_names"]):
            masks = frames.get((video["id"], number))
            if masks:
                image = images / name
                items.append(Item(name, image, listed.run_lengths, (masks,), len(masks)))
    return make("ovis", root, items)


def hypersim(root: Path) -> Source | None:
    items = []
    for path in sorted(
        root.rglob("ai_*/images/scene_cam_*_geometry_hdf5/*.semantic_instance.hdf5")
    ):
        volume = int(path.parents[2].name.split("_")[1])
        if volume > 55 or volume in (20, 25, 40, 49):
            continue
        frame = path.name.removesuffix(".semantic_instance.hdf5")
        camera = path.parent.name.removesuffix("_geometry_hdf5")
        for kind in ("tonemap.jpg", "color.jpg"):
            image = path.parents[1] / f"{camera}_final_preview" / f"{frame}.{kind}"
            if image.is_file():
                name = image.relative_to(root).as_posix()
                items.append(Item(name, image, listed.hdf5_labels, (path,)))
                break
    if items:
        try:
            import h5py  # noqa: F401
        except ImportError:
            raise ValueError("hypersim: needs h5py: pip install 'sam_jax[evaluate]'") from None
    return make("hypersim", root, items)


def visor(root: Path) -> Source | None:
    folder = find(root, "annotations/val", "val")
    frames = find(root, "rgb_frames/val")
    items = []
    for path in sorted(folder.glob("*.json")) if folder and frames else ():
        video, kitchen = path.stem, path.stem.split("_")[0]
        for entry in json.loads(path.read_bytes())["video_annotations"]:
            shapes = [
                [
                    [float(v) for xy in polygon for v in xy]
                    for polygon in one["segments"]
                    if len(polygon) > 2
                ]
                for one in entry["annotations"]
            ]
            shapes = [shape for shape in shapes if shape]
            name = entry["image"]["name"]
            places = (
                frames / kitchen / video / name,
                frames / video / name,
                frames / kitchen / name,
            )
            image: Any = next((p for p in places if p.is_file()), places[0])
            archive = frames / kitchen / f"{video}.zip"
            if not image.is_file() and archive.is_file():
                image = (archive, name)
            if shapes:
                named = f"{video}/{name}"
                items.append(Item(named, image, listed.polygons, (shapes,), len(shapes)))
    return make("visor", root, items)


def egohos(root: Path) -> Source | None:
    images = find(root, "train/image")
    items = paired(root, images, ".jpg", beside("label", ".png"), listed.label_map)
    chosen = [item for item in items if item.image.name.lower().startswith(("ego4d", "thu"))]
    return make("egohos", root, chosen)


def ibd(root: Path) -> Source | None:
    # Not verified: the authors' download was not at hand.
    images = find(root, "train/images", "train/image", "train")
    items: list[Item] = []
    for suffix in (".png", ".jpg"):
        for folder in ("labels", "masks", "instances"):
            items = items or paired(root, images, suffix, beside(folder, ".png"), listed.label_map)
        items = items or paired(
            root, images, suffix, beside("train_labels", ".png"), listed.label_map
        )
    return make("ibd", root, items)


def woodscape(root: Path) -> Source | None:
    folder, images = find(root, "instance_annotations"), find(root, "rgb_images")
    items = []
    for path in sorted(folder.rglob("*.json")) if folder and images else ():
        try:
            document = json.loads(path.read_bytes())
            entry = next(v for v in document.values() if isinstance(v, dict) and "annotation" in v)
            shapes = [
                [[float(v) for xy in one["segmentation"] for v in xy]]
                for one in entry["annotation"]
                if len(one["segmentation"]) > 2
            ]
        except (ValueError, StopIteration, KeyError, TypeError, AttributeError):
            shapes = [[]]  # named as broken when it is read
        image = images / f"{path.stem}.png"
        if shapes:
            items.append(Item(path.stem, image, listed.polygons, (shapes,), len(shapes)))
    return make("woodscape", root, items)


def cityscapes(root: Path) -> Source | None:
    images = find(root, "leftImg8bit/val")
    path = find(root, "gtFine/cityscapes_panoptic_val.json")
    if images is None or path is None:
        return None
    document = json.loads(path.read_bytes())
    items = []
    for entry in document["annotations"]:
        ids = tuple(s["id"] for s in entry["segments_info"] if not s.get("iscrowd"))
        stem = entry["file_name"].removesuffix("_gtFine_panoptic.png")
        image = images / stem.split("_")[0] / f"{stem}_leftImg8bit.png"
        labels = path.with_suffix("") / entry["file_name"]
        items.append(Item(stem, image, listed.panoptic, (labels, ids), len(ids)))
    return make("cityscapes", root, items)


def dram(root: Path) -> Source | None:
    images, labels = find(root, "test"), find(root, "labels")
    if images is None or labels is None:
        return None

    def label(image: Path) -> Path | None:
        parts = image.relative_to(images).with_suffix(".png").parts
        for start in range(len(parts)):
            for front in ("", "test"):
                path = labels.joinpath(front, *parts[start:])
                if path.is_file():
                    return path
        return None

    read = functools.partial(listed.label_map, void=(0, 255))
    return make("dram", root, paired(root, images, ".jpg", label, read))


def gtea(root: Path) -> Source | None:
    items: list[Item] = []
    for images in sorted({*root.glob("Images"), *root.glob("*/Images"), *root.glob("*/*/Images")}):
        if "PLUS" in str(images.relative_to(root)):  # another data set of the same archive
            continue
        for suffix in (".jpg", ".png"):
            items += paired(root, images, suffix, beside("Masks", ".png"), listed.label_map)
    return make("gtea", root, items)
