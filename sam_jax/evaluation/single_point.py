"""Masks from clicks and boxes, measured on folders in SA-1B form (paper section 7.1, appendix D.1).

For each true mask: a click in its middle, then up to eight more, each in the middle of the largest
error that is left; and, apart from that, its bounding box. Beside them stand two baselines from the
same box: the box filled, and OpenCV's GrabCut where OpenCV is installed (--grabcut).

The first click takes the mask of highest predicted IoU of the three ("1 click"), and for
"1 oracle" the best of them. Later clicks feed the last mask back and take the single mask.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CLICKS = (1, 2, 3, 5, 9)
PROMPTS_AT_ONCE = 16  # masks of an image held at the photo's size at the same time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate single-point`."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="DIR",
        nargs="+",
        help="folders of NAME.jpg + NAME.json in SA-1B form, or folders of such folders",
    )
    add("--model", default="tiny", metavar="NAME", help="tiny, vit_b, vit_l, vit_h, or a file")
    add("--clicks", type=int, default=9, metavar="N", help="the most clicks (default 9)")
    add("--images", type=int, default=0, metavar="N", help="only the first N of each folder")
    add("--grabcut", action="store_true", help="also OpenCV's GrabCut from the box")
    add("--out", metavar="FILE.csv", help="where a row for each mask is written")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate single-point` and prints one row a folder.

    Raises:
      ValueError: no data, no such model, or clicks below 1.
    """
    from sam_jax.checkpoint.load import load
    from sam_jax.inference.predictor import Predictor

    if args.clicks < 1:
        raise ValueError(f"--clicks: expected at least 1, got {args.clicks}")
    if args.grabcut:
        _import_cv2()
    folders = find_folders(args.data)
    predictor = Predictor(load(args.model))
    tables = {}
    for folder in folders:
        rows = list(measure_folder(predictor, folder, args.clicks, args.images, args.grabcut))
        tables[folder] = rows
        if not rows:
            raise ValueError(f"--data: {folder} has no masks")
        print_row(folder.name, rows, header=len(tables) == 1)
    if args.out:
        write_rows(Path(args.out), tables)


def find_folders(paths: list[str]) -> list[Path]:
    """The folders with .json files among `paths`, or right below one that has none itself."""
    folders = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"--data: no such folder: {path}")
        below = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        # A folder is read with all that is below it; hidden files are no records.
        found = [path] if any(path.glob("[!.]*.json")) else []
        found = found or [p for p in below if any(p.rglob("[!.]*.json"))]
        if not found:
            raise ValueError(f"--data: {path} holds no .json records in SA-1B form")
        folders += found
    return folders


def measure_folder(
    predictor: Any, folder: Path, clicks: int, images: int = 0, grabcut: bool = False
) -> Iterator[dict[str, Any]]:
    """`measure_source` on a folder in SA-1B form."""
    from sam_jax.data.sources import Sa1bFolder

    source = Sa1bFolder(folder)
    yield from measure_source(predictor, source, clicks, images, grabcut, name=folder.name)


def measure_source(
    predictor: Any,
    source: Any,
    clicks: int,
    images: int = 0,
    grabcut: bool = False,
    name: str = "",
) -> Iterator[dict[str, Any]]:
    """One row a mask: its image, area, and IoU by name of the prompt ("1", "1 oracle", "box").

    Args:
      predictor: a `sam_jax.Predictor`, or what has its `embed` and `predict`.
      source: of records, see `sam_jax.data.sources`; what cannot be read is printed and skipped.
      clicks: the most clicks.
      images: only the first so many records; 0: all.
      grabcut: whether OpenCV's GrabCut is measured beside it.
      name: shown beside the progress bar.
    """
    from tqdm import tqdm

    from sam_jax.data.sources import RecordError
    from sam_jax.ops.rle import decode

    skipped = []
    count = min(images or len(source), len(source))
    for index in tqdm(range(count), desc=name, unit="image", leave=False, disable=None):
        try:
            record = source[index]
        except RecordError as error:
            skipped.append(str(error))
            continue
        embedding = predictor.embed(record["image"])
        masks = [mask for mask in map(decode, record["rles"]) if mask.any()]
        for start in range(0, len(masks), PROMPTS_AT_ONCE):
            part = np.stack(masks[start : start + PROMPTS_AT_ONCE])
            scores = measure_masks(predictor, embedding, part, clicks)
            scores |= measure_boxes(predictor, embedding, part, record["image"], grabcut)
            for i, mask in enumerate(part):
                row = {"image": record["name"], "mask": start + i, "area": int(mask.sum())}
                yield row | {name: float(values[i]) for name, values in scores.items()}
    for reason in skipped:
        print(f"skipped {reason}")


def measure_masks(
    predictor: Any, embedding: Any, masks: np.ndarray, clicks: int
) -> dict[str, np.ndarray]:
    """IoU [N] after 1 ... `clicks` clicks on the masks bool [N, H, W], and of the best of three."""
    from sam_jax.ops.clicks import centre_click, corrective_click, iou

    points = np.array([[centre_click(mask)] for mask in masks])
    labels = np.ones((len(masks), 1), int)
    out = predictor.predict(embedding, points, labels, multimask=True)
    every = np.array(
        [[iou(m, true) for m in three] for three, true in zip(out.masks, masks, strict=True)]
    )
    rows, likeliest = np.arange(len(masks)), out.scores.argmax(1)
    result = {"1": every[rows, likeliest], "1 oracle": every.max(1)}
    predicted, logits = out.masks[rows, likeliest], out.logits[rows, likeliest]
    for number in range(2, clicks + 1):
        nexts = [corrective_click(p, true) for p, true in zip(predicted, masks, strict=True)]
        points = np.concatenate([points, [[xy] for xy, _ in nexts]], 1)
        labels = np.concatenate([labels, [[label] for _, label in nexts]], 1)
        out = predictor.predict(embedding, points, labels, mask_logits=logits, multimask=False)
        predicted, logits = out.masks[:, 0], out.logits[:, 0]
        if number in CLICKS or number == clicks:
            result[str(number)] = np.array(list(map(iou, predicted, masks)))
    return result


def measure_boxes(
    predictor: Any, embedding: Any, masks: np.ndarray, image: np.ndarray, grabcut: bool
) -> dict[str, np.ndarray]:
    """IoU [N] from the masks' tight boxes: the model's, the filled box's, GrabCut's."""
    from sam_jax.ops.clicks import iou
    from sam_jax.ops.masks import mask_boxes

    boxes = mask_boxes(masks) + np.array([0, 0, 1, 1])  # pixel indices -> edges
    out = predictor.predict(embedding, boxes_xyxy=boxes, multimask=True)
    best = out.masks[np.arange(len(masks)), out.scores.argmax(1)]
    filled = np.zeros_like(masks)
    for mask, (x0, y0, x1, y1) in zip(filled, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    result = {"box": best, "filled box": filled}
    if grabcut:
        result["GrabCut"] = [grab_cut(image, box) for box in boxes]
    return {name: np.array(list(map(iou, found, masks))) for name, found in result.items()}


def grab_cut(image: np.ndarray, box_xyxy: np.ndarray, rounds: int = 5) -> np.ndarray:
    """OpenCV's GrabCut from a box: bool [H, W]; the box itself where it finds nothing."""
    cv2 = _import_cv2()
    x0, y0, x1, y1 = (int(v) for v in box_xyxy)
    labels = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    if (labels == cv2.GC_BGD).sum() >= 5 and (x1 - x0) * (y1 - y0) >= 5:
        bgr = np.ascontiguousarray(image[..., ::-1])
        cv2.setRNGSeed(0)
        cv2.grabCut(bgr, labels, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if not found.any():
        found[y0:y1, x0:x1] = True
    return found


def _import_cv2():
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "--grabcut: needs OpenCV; pip install 'opencv-python-headless<6'"
        ) from None
    return cv2


def _names(rows: list[dict]) -> list[str]:
    return [name for name in rows[0] if name not in ("image", "mask", "area")]


def print_row(name: str, rows: list[dict], header: bool) -> None:
    """Prints the means over a folder's masks, as a row of a Markdown table."""
    names = _names(rows)
    if header:
        titles = [f"{n} click{'s' * (n != '1')}" if n.isdigit() else n for n in names]
        print(f"| data | masks | {' | '.join(titles)} |")
        print("|---" * (len(names) + 2) + "|")
    means = [f"{np.mean([row[n] for row in rows]):.3f}" for n in names]
    print(f"| {name} | {len(rows)} | {' | '.join(means)} |", flush=True)


def write_rows(path: Path, tables: dict[Path, list[dict]]) -> None:
    """Writes a CSV row for each mask, whole or not at all."""
    from sam_jax.storage import replacing

    rows = [{"data": folder.name, **row} for folder, rows in tables.items() for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
