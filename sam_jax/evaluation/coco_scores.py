"""Truth in COCO's form, and scoring by the libraries that everybody scores with.

COCO's numbers come from pycocotools. LVIS's AP knows which categories were looked for in which
image; that is faster-coco-eval's LVIS mode (the extra `evaluate`). A file is LVIS's if its
categories have a "frequency".
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LVIS_MAX_DETECTIONS = 300
"""Results of an image that count in LVIS, of all categories together."""
COCO_KINDS = ("AP", "AP50", "AP75", "S", "M", "L")
LVIS_KINDS = (*COCO_KINDS, "rare", "common", "frequent")


DATA_HELP = (
    "COCO or LVIS (FILE.json, or FILE.json:FOLDER with its pictures), or any other form that "
    "training reads"
)


def open_truth(path: str) -> Truth:
    """The Truth of a `--data` argument, whose name its errors have."""
    try:
        return Truth(path)
    except ValueError as error:
        raise ValueError(f"--data: {error}") from error


class Truth:
    """Images with their true masks, as records and as COCO annotations.

    Args:
      path: what `open_source` reads; a COCO file keeps its ids, categories and crowds, anything
        else has one category.

    Attributes:
      document: the COCO file, or None.
      categories: {id: name}.
      is_lvis: whether it says how frequent categories are.

    Raises:
      ValueError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        from sam_jax.data.coco import CocoJson, load_document
        from sam_jax.data.open_source import open_source

        self.source = open_source(path)
        self.document: dict[str, Any] | None = None
        self.categories, self.frequency = {1: "object"}, {}
        if isinstance(self.source, CocoJson):
            self.document = _tidy(load_document(self.source.path), self.source.path)
            listed = self.document["categories"]
            self.categories = {one["id"]: one["name"] for one in listed}
            self.frequency = {one["id"]: one["frequency"] for one in listed if "frequency" in one}
            self._annotations: dict[Any, list[dict]] = {}
            for one in self.document["annotations"]:
                self._annotations.setdefault(one["image_id"], []).append(one)

    @property
    def is_lvis(self) -> bool:
        """See the class."""
        return len(self.frequency) == len(self.categories)

    @property
    def image_ids(self) -> list:
        """Of all images; their numbers where no COCO file says them."""
        if self.document is None:
            return list(range(len(self.source)))
        return [image["id"] for image in self.document["images"]]

    def __len__(self) -> int:
        return len(self.document["images"]) if self.document else len(self.source)

    def __repr__(self) -> str:
        return repr(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: {"image", "name", "image_id", "truth": COCO annotations}.

        A COCO file's images without masks are among them: what is found there is wrong.
        """
        if self.document is None:
            record = self.source[index]
            truth = [_annotation(index, k, mask) for k, mask in enumerate(record["rles"])]
            return {**record, "image_id": index, "truth": truth}
        about = self.document["images"][index]
        image = self.source.read_image(about)
        truth = [self.with_mask(one, about) for one in self._annotations.get(about["id"], [])]
        name = about["file_name"]
        return {"image": image, "name": name, "image_id": about["id"], "truth": truth}

    def with_mask(self, annotation: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """An annotation of image `about` with its outline as an RLE, an area and a box.

        Raises:
          RecordError: its outline cannot be read.
        """
        from sam_jax.data.sources import RecordError, segmentation_to_rle
        from sam_jax.ops import rle

        try:
            hw = int(about["height"]), int(about["width"])
            mask = _compressed(segmentation_to_rle(annotation["segmentation"], hw))
        except Exception as error:  # pycocotools raises bare Exceptions
            name = f"{about['file_name']}: annotation {annotation.get('id')}"
            raise RecordError(f"{name}: {error}", "mask") from error
        kept = ("id", "image_id", "category_id", "iscrowd", "area", "bbox", "ignore")
        made = {"area": rle.area(mask), "bbox": rle.bbox_xywh(mask), "iscrowd": 0}
        made |= {k: annotation[k] for k in kept if annotation.get(k) is not None}
        return made | {"segmentation": mask}


def _tidy(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """A COCO file as the libraries need it.

    Annotations of none of its images go, the others are numbered from 1: to the libraries a match
    with number 0 is none. All categories are listed and named; a file without any has one.

    Raises:
      ValueError: only some annotations have a category.
    """
    known = {image["id"] for image in document["images"]}
    annotations: list[dict[str, Any]] = []
    for one in document["annotations"]:
        key = one.get("image_id") if isinstance(one, dict) else None
        if isinstance(key, int | str) and key in known:
            annotations.append({"iscrowd": 0} | one | {"id": len(annotations) + 1})
    listed = [one for one in document.get("categories") or [] if isinstance(one, dict)]
    categories = {one["id"]: {"name": str(one["id"])} | one for one in listed if "id" in one}
    if not any("category_id" in one for one in annotations):
        annotations = [one | {"category_id": 1} for one in annotations]
        categories = {1: {"id": 1, "name": "object"}}
    for one in annotations:
        key = one.get("category_id")
        if not isinstance(key, int | str):
            raise ValueError(
                f"path: {path}: an annotation of image {one['image_id']} has no category_id"
            )
        categories.setdefault(key, {"id": key, "name": str(key)})
    return {**document, "annotations": annotations, "categories": list(categories.values())}


def _annotation(image_id: int, number: int, mask: dict[str, Any]) -> dict[str, Any]:
    from sam_jax.ops import rle

    about = {"id": image_id * 100_000 + number + 1, "image_id": image_id, "category_id": 1}
    shape = {"area": rle.area(mask), "bbox": rle.bbox_xywh(mask), "iscrowd": 0}
    return about | shape | {"segmentation": _compressed(mask)}


def _compressed(mask: dict[str, Any]) -> dict[str, Any]:
    """An RLE whose counts are a string."""
    from sam_jax.ops import rle

    counts = mask["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    elif not isinstance(counts, str):
        counts = rle.compress_counts(np.asarray(counts))
    return {"size": [int(side) for side in mask["size"]], "counts": counts}


def read_results(
    path: str | Path, fields: Sequence[str], truth: Truth
) -> dict[Any, list[dict[str, Any]]]:
    """A COCO results file (a list of dicts) by image_id.

    Args:
      path: of the JSON.
      fields: that each entry must have besides image_id and score.
      truth: what the results are of; results of other images are allowed.

    Raises:
      ValueError: it cannot be read, an entry lacks a field, or none is of these images or
        categories.
    """
    try:
        entries = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"can't read {path}: {error}") from error
    wanted = ("image_id", *fields, "score")
    if not isinstance(entries, list):
        raise ValueError(f"expected a list of {{{', '.join(wanted)}}}, {path} is none")
    found: dict[Any, list[dict[str, Any]]] = {}
    for number, entry in enumerate(entries):
        missing = [k for k in wanted if not isinstance(entry, dict) or k not in entry]
        if missing:
            raise ValueError(f"{path}: entry {number} has no {', '.join(missing)}")
        if not is_number(entry["score"]):
            raise ValueError(f"{path}: entry {number}: expected a number as score")
        if not all(isinstance(entry[k], int | str) for k in wanted if k.endswith("_id")):
            raise ValueError(f"{path}: entry {number}: expected numbers or names as ids")
        found.setdefault(entry["image_id"], []).append(entry)
    for field, known in (("image_id", truth.image_ids), ("category_id", list(truth.categories))):
        if entries and field in wanted and not {e[field] for e in entries} & set(known):
            raise ValueError(
                f"{path}: no {field} of its {len(entries)} entries is one of the data's; those "
                f"are like {known[0]!r}, these like {entries[0][field]!r}"
            )
    return found


def is_number(value: Any) -> bool:
    """Whether JSON gave a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def stored_masks(
    path: str, fields: Sequence[str], truth: Truth
) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """From a record of `truth` to its masks in a results file.

    Args:
      path: of the file.
      fields: that each entry must have besides image_id, segmentation and score.
      truth: what the results are of.

    Raises:
      ValueError: as `read_results`; later where a mask does not fit its image.
    """
    try:
        found = read_results(path, (*fields, "segmentation"), truth)
    except ValueError as error:
        raise ValueError(f"--results: {error}") from error

    def of(record: dict[str, Any]) -> list[dict[str, Any]]:
        hw = list(record["image"].shape[:2])
        entries = found.get(record["image_id"], [])
        return [one | {"segmentation": fitting(one, hw)} for one in entries]

    def fitting(entry: dict[str, Any], hw: list[int]) -> dict[str, Any]:
        from sam_jax.data.sources import segmentation_to_rle
        from sam_jax.ops import rle

        try:
            mask = _compressed(segmentation_to_rle(entry["segmentation"], hw))
            rle.area(mask)  # reads all of it
            if mask["size"] != hw:
                raise ValueError(f"a mask of {mask['size']} for a picture of {hw}")
        except Exception as error:  # pycocotools raises bare Exceptions
            raise ValueError(f"--results: {path}: image {entry['image_id']}: {error}") from error
        return mask

    return of


def digest(path: str) -> str:
    """A file's name and what tells its contents from others', for a journal's settings."""
    return f"{path} {hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()}"


def recall_counts(
    truth: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]], most: int
) -> dict[str, list]:
    """How many true masks of one image are found, by size, whatever their category.

    Args:
      truth: COCO annotations with RLEs.
      results: {"segmentation": RLE, "score"}; the best `most` count.
      most: at most so many of them.

    Returns:
      {"all" | "small" | "medium" | "large": [true masks, [found at IoU .5, .55, ... .95]]}, as
      pycocotools' COCOeval matches them.
    """
    from pycocotools.cocoeval import COCOeval

    sizes = [one["segmentation"]["size"] for one in (*truth, *results)] or [(1, 1)]
    images = [{"id": 1, "height": sizes[0][0], "width": sizes[0][1]}]
    about = {"image_id": 1, "category_id": 1}
    truth = [one | about for one in truth]
    found = [about | {k: one[k] for k in ("segmentation", "score")} for one in results]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = _coco({"images": images, "annotations": truth, "categories": [{"id": 1}]})
        dt = gt.loadRes(found) if found else _coco({"images": images, "annotations": []})
        evaluation = COCOeval(gt, dt, "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
    thresholds = len(evaluation.params.iouThrs)
    counts = {}
    for name, one in zip(evaluation.params.areaRngLbl, evaluation.evalImgs, strict=True):
        counts[name] = [0, [0] * thresholds]
        if one is not None:
            counted = np.asarray(one["gtIgnore"]) == 0
            matched = np.asarray(one["dtMatches"]) > 0
            right = (matched & ~np.asarray(one["dtIgnore"], bool)).sum(1)
            counts[name] = [int(counted.sum()), right.astype(int).tolist()]
    return counts


def average_precision(
    truth: Truth,
    annotations: list[dict[str, Any]] | None,
    results: list[dict[str, Any]],
    image_ids: Sequence,
) -> dict[str, float | None]:
    """Mask AP in percent, by size, and for LVIS by frequency.

    Args:
      truth: the data.
      annotations: of the images where `truth` has no document.
      results: COCO results: image_id, category_id, segmentation, score.
      image_ids: of the images that were measured.

    Returns:
      {"AP", "AP50", "AP75", "S", "M", "L"} and for LVIS "rare", "common", "frequent"; None where
      there is no true mask of a kind.
    """
    document = _measured(truth, annotations or [], image_ids)
    if not results:
        return dict.fromkeys(LVIS_KINDS if truth.is_lvis else COCO_KINDS, 0.0)
    if truth.is_lvis:
        return _lvis(document, results, image_ids)
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = _coco(document)
        evaluation = COCOeval(gt, gt.loadRes(_json_copy(results)), "segm")
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _percent(COCO_KINDS, evaluation.stats[:6])


def _lvis(document, results, image_ids: Sequence) -> dict[str, float | None]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ValueError(
            "LVIS's AP needs faster-coco-eval: pip install 'sam_jax[evaluate]'"
        ) from None
    # What was not looked for in an image does not count; the library fails on an image of which
    # all results are such.
    known = {image["id"]: set(image.get("neg_category_ids", ())) for image in document["images"]}
    for one in document["annotations"]:
        known[one["image_id"]].add(one["category_id"])
    best = _best(results, LVIS_MAX_DETECTIONS)  # before any is left out, as LVIS does
    counted = [one for one in best if one["category_id"] in known.get(one["image_id"], ())]
    if not counted:
        return dict.fromkeys(LVIS_KINDS, 0.0)
    gt = COCO(_json_copy(document))
    evaluation = COCOeval_faster(gt, gt.loadRes(_json_copy(counted)), "segm", lvis_style=True)
    evaluation.params.imgIds = list(image_ids)
    evaluation.params.maxDets = [LVIS_MAX_DETECTIONS]
    evaluation.run()
    stats = evaluation.stats_as_dict
    keys = ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf")
    return _percent(LVIS_KINDS, [stats[key] for key in keys])


def _percent(names: Sequence[str], values: Iterable[float]) -> dict[str, float | None]:
    """The libraries say -1 where there is nothing to find."""
    return {n: None if v < 0 else 100 * float(v) for n, v in zip(names, values, strict=True)}


def _measured(
    truth: Truth, annotations: list[dict[str, Any]], image_ids: Sequence
) -> dict[str, Any]:
    """The images that were measured, with their truth, as a COCO file whose masks have areas."""
    if truth.document is None:
        sizes = {i: (1, 1) for i in image_ids}  # without masks it does not matter
        sizes |= {a["image_id"]: a["segmentation"]["size"] for a in annotations}
        images = [{"id": i, "height": h, "width": w} for i, (h, w) in sizes.items()]
        categories = [{"id": k, "name": n} for k, n in truth.categories.items()]
        return {"images": images, "annotations": annotations, "categories": categories}
    wanted = set(image_ids)
    images = {one["id"]: one for one in truth.document["images"] if one["id"] in wanted}
    annotations = [
        one if one.get("area") is not None else truth.with_mask(one, images[one["image_id"]])
        for one in truth.document["annotations"]
        if one["image_id"] in wanted
    ]
    return {**truth.document, "images": list(images.values()), "annotations": annotations}


def _best(results: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The results of highest score of each image, at most so many."""
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for one in results:
        by_image.setdefault(one["image_id"], []).append(one)
    ordered = (sorted(own, key=lambda one: -one["score"]) for own in by_image.values())
    return [one for own in ordered for one in own[:most]]


def _json_copy(value: Any) -> Any:
    """The libraries write into what they are given."""
    return json.loads(json.dumps(value))


def _coco(document: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    made = COCO()
    made.dataset = document
    made.createIndex()
    return made
