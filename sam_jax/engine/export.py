"""A store's masks in other forms: SA-1B, COCO, label maps as PNG."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from sam_jax.data.store import Mask, Store, each_photo, photo_path
from sam_jax.inference.folder import document
from sam_jax.inference.records import to_label_map
from sam_jax.ops import rle

FORMS = ("sa1b", "coco", "png")


def files(store: Store, form: str) -> Iterator[tuple[str, bytes]]:
    """The files of an export: their names and what is in them, one photo in memory at a time.

    Args:
      store: whose masks.
      form: "sa1b", NAME.json for each photo; "coco", one instances.json; "png", NAME.png for each,
        a label map in which smaller masks lie above larger ones. Of a.jpg and a.png in one folder
        the second's is a_png.

    Raises:
      ValueError: another form.
    """
    if form == "coco":
        yield "instances.json", json.dumps(_coco(store)).encode()
    elif form in ("sa1b", "png"):
        photos = list(each_photo(store))
        stems = _stems({*store.names(), *(name for name, _ in photos)})
        for name, masks in photos:
            stem = stems[name]
            if form == "sa1b":
                yield f"{stem}.json", json.dumps(_sa1b(name, masks, stem)).encode()
            else:
                yield f"{stem}.png", _label_map(masks)
    else:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")


def to_folder(store: Store, form: str, out: Path) -> int:
    """Writes an export; for "sa1b" with the photographs, so that it is read as it is.

    Returns:
      How many files were written.

    Raises:
      ValueError: another form, or a file would take the place of a photograph.
      OSError: `out` cannot be written to.
    """
    from sam_jax.inference.files import write_atomically

    names = store.names()
    photos = {(store.photos / name).resolve() for name in names}
    for stem in _stems(names).values() if form == "png" else ():
        if (out / f"{stem}.png").resolve() in photos:
            raise ValueError(
                f"out: {out / stem}.png is one of the photographs; choose another folder"
            )
    count = 0
    for name, content in files(store, form):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda file, content=content: file.write(content))
        count += 1
    if form == "sa1b":
        for name, _ in each_photo(store):
            source = photo_path(store.photos, name)
            if source is not None:
                with open(source, "rb") as opened:
                    write_atomically(out / name, lambda f, o=opened: shutil.copyfileobj(o, f))
                count += 1
    return count


def to_zip(store: Store, form: str) -> bytes:
    """An export as the bytes of a .zip, without photographs; errors as `files`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files(store, form):
            archive.writestr(name, content)
    return buffer.getvalue()


def _record(mask: Mask) -> dict[str, Any]:
    """A mask with the fields of SA-1B's records, and its label, stage and annotator."""
    event = mask.event
    points = (event.get("prompts") or {}).get("points") or []
    height, width = event["size"]
    return {
        "segmentation": mask.rle,
        "bbox": rle.bbox_xywh(mask.rle),
        "area": rle.area(mask.rle),
        "predicted_iou": event.get("predicted_iou"),
        "stability_score": event.get("stability_score"),
        "point_coords": points,
        "crop_box": event.get("crop_box") or [0, 0, width, height],
        "label": mask.label,
        "stage": event.get("stage"),
        "annotator": event["who"],
    }


def _stems(names: Iterable[str]) -> dict[str, str]:
    """Names without suffixes, but where photographs differ in nothing else."""
    result, taken = {}, set()
    for name in sorted(names, key=lambda name: (not name.lower().endswith(".jpg"), name)):
        path = Path(name)
        stem = path.with_suffix("").as_posix()
        if stem in taken:
            stem += f"_{path.suffix[1:].lower()}"
        while stem in taken:
            stem += "_"
        taken.add(stem)
        result[name] = stem
    return result


def _sa1b(name: str, masks: list[Mask], stem: str) -> dict[str, Any]:
    hw = tuple(masks[0].event["size"])
    return document([_record(mask) for mask in masks], Path(name).name, stem, hw)


def _coco(store: Store) -> dict[str, Any]:
    """All masks as COCO instances; a category for each label, "object" for those without."""
    photos = list(each_photo(store))
    labels = sorted({mask.label or "object" for _, masks in photos for mask in masks})
    categories = {label: number for number, label in enumerate(labels, 1)}
    images, annotations = [], []
    for image_id, (name, masks) in enumerate(photos, 1):
        height, width = masks[0].event["size"]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for mask in masks:
            category = categories[mask.label or "object"]
            about = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            annotations.append(about | {"iscrowd": 0} | _record(mask))
    listed = [{"id": number, "name": label} for label, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": listed}


def _label_map(masks: list[Mask]) -> bytes:
    labels = to_label_map([_record(mask) for mask in masks])
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()
