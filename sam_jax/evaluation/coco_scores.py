"""Truth in COCO's form, and scoring by the libraries that everybody scores with.

COCO's numbers come from pycocotools. LVIS's AP knows which categories were looked for in which
image; that is faster-coco-eval's LVIS mode (the extra `evaluate`). A file is LVIS's if its
categories have a "frequency".
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LVIS_MAX_DETECTIONS = 300


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
        self.path = path
        self.document: dict[str, Any] | None = None
        self.categories, self.frequency = {1: "object"}, {}
        if isinstance(self.source, CocoJson):
            self.document = load_document(self.source.path)
            listed = self.document.get("categories") or []
            ids = {one["category_id"] for one in self.document["annotations"]}
            self.categories = {i: str(i) for i in sorted(ids)}
            self.categories |= {one["id"]: one.get("name", str(one["id"])) for one in listed}
            self.frequency = {one["id"]: one["frequency"] for one in listed if "frequency" in one}
            self._annotations: dict[Any, list[dict]] = {}
            for one in self.document["annotations"]:
                self._annotations.setdefault(one["image_id"], []).append(one)

    @property
    def is_lvis(self) -> bool:
        """See the class."""
        return bool(self.frequency)

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
        truth = [self._with_mask(one, about) for one in self._annotations.get(about["id"], [])]
        name = about["file_name"]
        return {"image": image, "name": name, "image_id": about["id"], "truth": truth}

    def _with_mask(self, annotation: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        """An annotation with its outline as an RLE, and an area and a box if it has none."""
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


def read_results(path: str | Path, fields: Sequence[str]) -> dict[Any, list[dict[str, Any]]]:
    """A COCO results file (a list of dicts) by image_id.

    Args:
      path: of the JSON.
      fields: that each entry must have besides image_id.

    Raises:
      ValueError: it cannot be read or an entry lacks a field.
    """
    try:
        entries = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"can't read {path}: {error}") from error
    wanted = ("image_id", *fields)
    if not isinstance(entries, list):
        raise ValueError(f"expected a list of {{{', '.join(wanted)}}}, {path} is none")
    found: dict[Any, list[dict[str, Any]]] = {}
    for number, entry in enumerate(entries):
        missing = [k for k in wanted if not isinstance(entry, dict) or k not in entry]
        if missing:
            raise ValueError(f"{path}: entry {number} has no {', '.join(missing)}")
        found.setdefault(entry["image_id"], []).append(entry)
    return found


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

    image_id = 1
    sizes = [one["segmentation"]["size"] for one in (*truth, *results)] or [(1, 1)]
    images = [{"id": image_id, "height": sizes[0][0], "width": sizes[0][1]}]
    truth = [{**one, "image_id": image_id, "category_id": 1} for one in truth]
    found = [
        {
            "image_id": image_id,
            "category_id": 1,
            "segmentation": r["segmentation"],
            "score": r["score"],
        }
        for r in results
    ]
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
    document = truth.document
    if document is None:
        sizes = {a["image_id"]: a["segmentation"]["size"] for a in annotations or []}
        images = [
            {"id": i, "height": sizes.get(i, (1, 1))[0], "width": sizes.get(i, (1, 1))[1]}
            for i in image_ids
        ]
        categories = [{"id": k, "name": n} for k, n in truth.categories.items()]
        document = {"images": images, "annotations": annotations or [], "categories": categories}
    if not results:
        names = (
            "AP",
            "AP50",
            "AP75",
            "S",
            "M",
            "L",
            *(("rare", "common", "frequent") * truth.is_lvis),
        )
        return dict.fromkeys(names, 0.0)
    if truth.is_lvis:
        return _lvis(document, results, image_ids)
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = _coco(_with_areas(document))
        evaluation = COCOeval(gt, gt.loadRes(_json_copy(results)), "segm")
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _percent(("AP", "AP50", "AP75", "S", "M", "L"), evaluation.stats[:6])


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
    counted = [one for one in results if one["category_id"] in known.get(one["image_id"], ())]
    names = ("AP", "AP50", "AP75", "S", "M", "L", "rare", "common", "frequent")
    if not counted:
        return dict.fromkeys(names, 0.0)
    gt = COCO(_json_copy(_with_areas(document)))
    evaluation = COCOeval_faster(gt, gt.loadRes(_json_copy(counted)), "segm", lvis_style=True)
    evaluation.params.imgIds = list(image_ids)
    evaluation.params.maxDets = [LVIS_MAX_DETECTIONS]
    evaluation.run()
    stats = evaluation.stats_as_dict
    keys = ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf")
    return _percent(names, [stats[key] for key in keys])


def _percent(names: Sequence[str], values: Iterable[float]) -> dict[str, float | None]:
    """The libraries say -1 where there is nothing to find."""
    return {n: None if v < 0 else 100 * float(v) for n, v in zip(names, values, strict=True)}


def _with_areas(document: dict[str, Any]) -> dict[str, Any]:
    """A document whose annotations all have what the libraries need."""
    needed = {"iscrowd": 0}
    return {**document, "annotations": [needed | one for one in document["annotations"]]}


def _json_copy(value: Any) -> Any:
    """The libraries write into what they are given."""
    return json.loads(json.dumps(value))


def _coco(document: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    made = COCO()
    made.dataset = document
    made.createIndex()
    return made
