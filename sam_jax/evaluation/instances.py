"""Masks from a detector's boxes, scored as instance segmentation: mask AP (section 7.4, D.4).

Each box gives the mask of highest predicted IoU of the three, which is fed back with the box for
one refinement pass (--no-refine: not). The detector's scores rank the masks. COCO's AP, or LVIS's
where the categories say how frequent they are.

--boxes truth takes the true boxes. --results scores masks that somebody else made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.evaluation import models, report
from sam_jax.evaluation.coco_scores import (
    COCO_KINDS,
    DATA_HELP,
    LVIS_KINDS,
    Truth,
    average_precision,
    digest,
    is_number,
    open_truth,
    read_results,
    stored_masks,
)
from sam_jax.evaluation.journal import Journal, each_record, in_order

AT_ONCE = 16  # boxes whose masks are held at the photo's size
PAPER = {  # the paper's table 5: COCO, then LVIS v1
    False: {
        "SAM (ViT-H), COCO, the paper": (46.5, None, None, 30.8, 51.0, 61.7),
        "ViTDet-H, COCO, the paper": (51.0, None, None, 32.0, 54.3, 68.9),
    },
    True: {
        "SAM (ViT-H), LVIS v1, the paper": (44.7, None, None, 32.5, 57.6, 65.5),
        "ViTDet-H, LVIS v1, the paper": (46.6, None, None, 35.0, 58.0, 66.3),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate instances`."""
    add = parser.add_argument
    add("--data", required=True, metavar="DATA", help=DATA_HELP)
    add("--model", default="tiny", metavar="NAME", help=models.HELP)
    add(
        "--boxes",
        metavar="FILE.json",
        help="detections in COCO's form (image_id, category_id, bbox, score), or truth",
    )
    add(
        "--results", metavar="FILE.json", help="score these masks (COCO's results) and run no model"
    )
    add("--images", type=int, default=0, metavar="N", help="only the first N images")
    add("--no-refine", action="store_true", help="without the second pass")
    add("--out", metavar="DIR", help="where masks and table go; a second run goes on there")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate instances`.

    Raises:
      ValueError: no data, no boxes, no such model, or files of another form.
    """
    if bool(args.boxes) == bool(args.results):
        raise ValueError("--boxes: expected a file of detections or 'truth'; or else --results")
    truth = open_truth(args.data)
    settings: dict[str, Any] = {"table": "instances", "data": repr(truth), "records": len(truth)}
    if args.results:
        segment = stored_masks(args.results, ("category_id",), truth)
        settings["results"] = digest(args.results)
    else:
        detections = None if args.boxes == "truth" else _detections(args.boxes, truth)
        settings["boxes"] = "truth" if detections is None else digest(args.boxes)
        predictor, about = models.open_model(args.model)
        settings |= about | {"refine": not args.no_refine}
        segment = _from_boxes(predictor, detections, not args.no_refine)
    out = Path(args.out) if args.out else None
    with Journal(out and out / "instances.jsonl", settings) as journal:
        each_record(truth, journal, measure(truth, segment), name="instances", images=args.images)
    found = list(in_order(journal, truth, args.images))
    if not found:
        raise ValueError("--data: no image could be measured")
    results = [result for one in found for result in one["results"]]
    annotations = [a for one in found for a in one.get("truth", ())]
    ids = [one["image_id"] for one in found]
    precision = average_precision(truth, annotations, results, ids)
    name = Path(args.results).name if args.results else args.model
    text = table(f"{name} ({len(found)} images)", precision, len(results), truth.is_lvis)
    print(text)
    if out:
        report.write_text(out / "table.md", text + "\n")
        scores = {"precision": precision, "images": len(found), "masks": len(results)}
        report.write_json(out / "scores.json", scores)
        report.write_json(out / "results.json", results)
        print(f"results in {out}")


def _detections(path: str, truth: Truth) -> dict[Any, list[dict[str, Any]]]:
    try:
        found = read_results(path, ("category_id", "bbox"), truth)
    except ValueError as error:
        raise ValueError(f"--boxes: {error}") from error
    for box in (one["bbox"] for own in found.values() for one in own):
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            raise ValueError(
                f"--boxes: {path}: expected [x, y, width, height] as bbox, got {str(box)[:60]}"
            )
    return found


def _from_boxes(
    predictor: Any, detections: dict[Any, list[dict[str, Any]]] | None, refine: bool
) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Masks of the boxes of a record's detections, or of its true ones where there are none."""
    from sam_jax.ops.rle import encode

    def segment(record: dict[str, Any]) -> list[dict[str, Any]]:
        if detections is None:
            found = [a | {"score": 1.0} for a in record["truth"] if not a.get("iscrowd")]
        else:
            found = detections.get(record["image_id"], [])
        if not found:
            return []
        embedding, results = predictor.embed(record["image"]), []
        for start in range(0, len(found), AT_ONCE):
            part = found[start : start + AT_ONCE]
            boxes = boxes_on(part, record["image"].shape[:2])
            for one, mask in zip(part, masks_of(predictor, embedding, boxes, refine), strict=True):
                about = {k: one[k] for k in ("category_id", "score")}
                results.append(about | {"segmentation": encode(mask)})
        return results

    return segment


def boxes_on(detections: list[dict[str, Any]], image_hw: tuple[int, int]) -> np.ndarray:
    """float [N, 4] x0, y0, x1, y1 of detections' bbox, on the photo and at least a pixel large."""
    xywh = np.array([one["bbox"] for one in detections], np.float64).reshape(-1, 4)
    limit = np.array(image_hw[::-1], np.float64)
    low = np.clip(xywh[:, :2], 0, limit - 1)
    high = np.clip(np.maximum(xywh[:, :2] + xywh[:, 2:], low + 1), 1, limit)
    return np.concatenate([low, high], 1)


def masks_of(predictor: Any, embedding: Any, boxes_xyxy: np.ndarray, refine: bool) -> np.ndarray:
    """bool [N, H, W]: the masks of boxes [N, 4], after one refinement pass if that is asked for."""
    out = predictor.predict(embedding, boxes_xyxy=boxes_xyxy, multimask=True)
    rows, best = np.arange(len(boxes_xyxy)), out.scores.argmax(1)
    if not refine:
        return out.masks[rows, best]
    logits = out.logits[rows, best]
    again = predictor.predict(embedding, boxes_xyxy=boxes_xyxy, mask_logits=logits, multimask=False)
    return again.masks[:, 0]


def measure(
    truth: Truth, segment: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """From a record to its results in COCO's form (and its truth, where no file holds it)."""

    def of(record: dict[str, Any]) -> dict[str, Any]:
        kept = ("category_id", "segmentation", "score")
        results = [
            {"image_id": record["image_id"]} | {k: one[k] for k in kept} for one in segment(record)
        ]
        value = {"image": record["name"], "image_id": record["image_id"], "results": results}
        return value if truth.document else value | {"truth": record["truth"]}

    return of


def table(name: str, precision: dict[str, float | None], masks: int, is_lvis: bool) -> str:
    """The precision as Markdown, beside the paper's."""
    kinds = LVIS_KINDS if is_lvis else COCO_KINDS

    def cells(values: Iterable[float | None]) -> list[str]:
        row = ["" if value is None else f"{value:.1f}" for value in values]
        return row + [""] * (len(kinds) - len(row))

    rows = [[name, str(masks), *cells(precision.get(kind) for kind in kinds)]]
    rows += [[method, "", *cells(values)] for method, values in PAPER[is_lvis].items()]
    return report.markdown(["mask AP", "masks", *kinds], rows)
