"""Everything in an image, scored as object proposals: mask AR@1000 (paper section 7.3, D.3).

The automatic generator on a 64 x 64 grid without crops and without filters, box NMS at 0.9; of more
than 1000 masks those with the highest mean of predicted IoU and stability count. --single: one mask
a point instead of three, on a 128 x 128 grid, NMS at 0.95, a random 1000.

Recall is averaged over IoU 0.50 to 0.95, whatever the category, for all masks and by size; where
categories say how frequent they are (LVIS), also for the masks of frequent, common and rare ones.
--results scores masks that somebody else made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.evaluation import models, report
from sam_jax.evaluation.coco_scores import (
    DATA_HELP,
    Truth,
    digest,
    open_truth,
    recall_counts,
    stored_masks,
)
from sam_jax.evaluation.intervals import keyed
from sam_jax.evaluation.journal import Journal, each_record, in_order

KINDS = ("all", "small", "medium", "large", "frequent", "common", "rare")
FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}
PAPER = {  # LVIS v1 val, the paper's table 4
    "SAM (ViT-H), LVIS v1, the paper": (59.3, 45.5, 81.6, 86.9, 59.1, 63.9, 65.8),
    "SAM single-output, the paper": (54.9, 42.8, 76.7, 74.4, 54.7, 59.8, 62.0),
    "ViTDet-H, the paper": (63.0, 51.7, 80.8, 87.0, 63.1, 63.3, 58.3),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate proposals`."""
    add = parser.add_argument
    add("--data", required=True, metavar="DATA", help=DATA_HELP)
    add("--model", default="tiny", metavar="NAME", help=models.HELP)
    add(
        "--results", metavar="FILE.json", help="score these masks (COCO's results) and run no model"
    )
    add("--images", type=int, default=0, metavar="N", help="only the first N images")
    add("--single", action="store_true", help="one mask a point, see above")
    add("--points-per-side", type=int, metavar="N", help="of the grid (default 64; --single 128)")
    add("--nms", type=float, metavar="IOU", help="of box NMS (default 0.9; --single 0.95)")
    add("--max", type=int, default=1000, metavar="N", help="masks of an image (default 1000)")
    add("--seed", type=int, default=0, metavar="N", help="of the random ranking of --single")
    add("--out", metavar="DIR", help="where counts and table go; a second run goes on there")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate proposals`.

    Raises:
      ValueError: no data, no such model, or a bad number.
    """
    side = args.points_per_side
    if side is None:
        side = 128 if args.single else 64
    nms = args.nms if args.nms is not None else (0.95 if args.single else 0.9)
    for name, value, low, high in (
        ("points-per-side", side, 1, 4096),
        ("max", args.max, 1, 1 << 20),
    ):
        if not low <= value <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {value}")
    if not 0 <= nms <= 1:
        raise ValueError(f"--nms: expected 0 to 1, got {nms}")
    truth = open_truth(args.data)
    settings = {"table": "proposals", "data": repr(truth), "records": len(truth), "max": args.max}
    if args.results:
        propose: Callable[[dict[str, Any]], list[dict]] = stored_masks(args.results, (), truth)
        about = {"results": digest(args.results)}
    else:
        predictor, about = models.open_model(args.model)
        about |= {"single": args.single, "points per side": side, "nms": nms, "seed": args.seed}
        propose = (
            _single(predictor, side, nms, args.seed)
            if args.single
            else _multi(predictor, side, nms)
        )
    out = Path(args.out) if args.out else None
    with Journal(out and out / "proposals.jsonl", settings | about) as journal:
        each_record(
            truth, journal, measure(truth, propose, args.max), name="proposals", images=args.images
        )
    found = list(in_order(journal, truth, args.images))
    if not found:
        raise ValueError("--data: no image could be measured")
    recall = average_recall(one["counts"] for one in found)
    masks = float(np.mean([one["proposals"] for one in found]))
    name = Path(args.results).name if args.results else args.model
    text = table(f"{name} ({len(found)} images)", recall, masks, args.max)
    print(text)
    if out:
        report.write_text(out / "table.md", text + "\n")
        scores = {"recall": recall, "images": len(found), "masks an image": masks}
        report.write_json(out / "scores.json", scores)
        print(f"results in {out}")


def _multi(predictor: Any, side: int, nms: float) -> Callable[[dict[str, Any]], list[dict]]:
    """Three masks a point, ranked by the mean of predicted IoU and stability."""
    from sam_jax.inference.generator import MaskGenerator

    changes = dict(points_per_side=side, box_nms_thresh=nms, output_mode="coco_rle")
    generator = MaskGenerator.preset(predictor, "proposals", **changes)

    def propose(record: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "segmentation": one["segmentation"],
                "score": (one["predicted_iou"] + np.nan_to_num(one["stability_score"])) / 2,
            }
            for one in generator.generate(record["image"])
        ]

    return propose


def _single(
    predictor: Any, side: int, nms_thresh: float, seed: int
) -> Callable[[dict[str, Any]], list[dict]]:
    """The single mask of each point, in random order."""
    from sam_jax.ops import rle
    from sam_jax.ops.boxes import point_grid
    from sam_jax.ops.cutouts import cut_out, measure, paint
    from sam_jax.ops.masks import axes
    from sam_jax.ops.nms import nms

    def propose(record: dict[str, Any]) -> list[dict[str, Any]]:
        embedding = predictor.embed(record["image"])
        image_hw, frame = embedding.image_hw[0], embedding.features.shape[1]
        frame *= predictor.config.patch_size
        points = point_grid(side) * np.array(image_hw[::-1])
        cutouts, boxes, scores = [], [], []
        for start in range(0, len(points), 256):
            part = points[start : start + 256, None]
            arguments = (part, np.ones(part.shape[:2], int), None, None, None)
            logits, likely, _ = predictor.decode(embedding, arguments, False)
            both = axes(logits.shape[-2:], embedding.input_hw[0], image_hw, frame)
            for one, score in zip(logits[:, 0], likely[:, 0], strict=True):
                cutout = cut_out(one, 0.0, both)
                found = measure(cutout, both, 0.0, 0.0)
                if found.area:
                    cutouts.append(cutout)
                    boxes.append(found.box_xyxy)
                    scores.append(score)
        kept = nms(np.array(boxes), np.array(scores), nms_thresh) if boxes else []
        order = keyed(seed, record["name"]).permutation(len(kept))
        return [
            {
                "segmentation": rle.encode_part(
                    paint(cutouts[i], both, 0.0),
                    (cutouts[i].at[0].start, cutouts[i].at[1].start),
                    image_hw,
                ),
                "score": 1 - rank / len(kept),
            }
            for rank, i in enumerate(np.asarray(kept)[order])
        ]

    return propose


def measure(
    truth: Truth, propose: Callable[[dict[str, Any]], list[dict[str, Any]]], most: int
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """From a record of `truth` to its counts by kind, and the number of proposals."""

    def of(record: dict[str, Any]) -> dict[str, Any]:
        results = sorted(propose(record), key=lambda one: -one["score"])[:most]
        counts = recall_counts(record["truth"], results, most)
        for letter, name in FREQUENCIES.items() if truth.is_lvis else ():
            own = [a for a in record["truth"] if truth.frequency.get(a["category_id"]) == letter]
            counts[name] = recall_counts(own, results, most)["all"]
        return {"image": record["name"], "proposals": len(results), "counts": counts}

    return of


def average_recall(counts: Iterable[dict[str, list]]) -> dict[str, float | None]:
    """AR in percent by kind, from the counts of all images; None where nothing is to be found."""
    total: dict[str, int] = {}
    found: dict[str, np.ndarray] = {}
    for one in counts:
        for kind, (masks, matched) in one.items():
            total[kind] = total.get(kind, 0) + masks
            found[kind] = found.get(kind, 0) + np.array(matched)
    return {
        kind: 100 * float(found[kind].mean()) / total[kind] if total.get(kind) else None
        for kind in KINDS
        if kind in total
    }


def table(name: str, recall: dict[str, float | None], masks: float, most: int) -> str:
    """The recall as Markdown, beside the paper's."""

    def cells(values: Iterable[float | None]) -> list[str]:
        return ["" if value is None else f"{value:.1f}" for value in values]

    rows = [[name, f"{masks:.0f}", *cells(recall.get(kind) for kind in KINDS)]]
    rows += [[method, "", *cells(values)] for method, values in PAPER.items()]
    return report.markdown([f"mask AR@{most}", "masks an image", *KINDS], rows)
