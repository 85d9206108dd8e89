"""True masks clicked on as a patient user would, and what a model makes of it (appendix D.1).

The first click lies in the middle of the mask, or anywhere in it; each further one in the middle
of the largest error that is left. The first takes the mask of highest predicted IoU of the three
("1"), and for "1 oracle" the best of them. Later clicks feed the last mask's logits back and take
the single mask. Apart from that, the mask's bounding box is a prompt of its own ("box").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sam_jax.evaluation.intervals import keyed

COUNTED = (1, 2, 3, 5, 9)
"""After how many clicks the paper measures."""
FACTS = ("image", "record", "mask", "area", "x", "y")
"""What a row says of a mask besides its IoUs; record and mask are numbers, x, y the first click."""
CANDIDATES = tuple(f"{what} {k}" for k in (1, 2, 3) for what in ("candidate", "predicted"))
"""Of the first click's three masks: the IoU, and what the model predicted."""
PROMPTS_AT_ONCE = 16  # masks of an image held at the photo's size at the same time


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is asked of a model.

    Attributes:
      clicks: the most clicks.
      first: where the first lies: "centre", or "random" for a pixel of the mask by chance.
      seed: of that chance; it also depends on the record's name and the mask, on nothing else.
      boxes: whether boxes are measured, and the filled box beside them.
      grabcut: whether OpenCV's GrabCut is measured beside them.
    """

    clicks: int = 9
    first: str = "centre"
    seed: int = 0
    boxes: bool = True
    grabcut: bool = False


@dataclasses.dataclass(frozen=True)
class Clicked:
    """What became of N masks.

    Attributes:
      ious: {"1", "1 oracle", "2", ...: float [N]}.
      candidates: {CANDIDATES: float [N]}.
      points_xy, labels: the clicks, int [N, P, 2] and [N, P].
      first: bool [N, H, W], the mask taken after the first click.
    """

    ious: dict[str, np.ndarray]
    candidates: dict[str, np.ndarray]
    points_xy: np.ndarray
    labels: np.ndarray
    first: np.ndarray


def names_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The prompts that were measured in all rows: the keys of the IoUs."""
    return [name for name in rows[0] if name not in FACTS + CANDIDATES] if rows else []


def true_masks(record: dict[str, Any]) -> Iterator[tuple[list[int], np.ndarray]]:
    """The masks of a record that are not empty, a few at a time.

    Yields:
      Their numbers in the record, N of them, and bool [N, H, W].
    """
    from sam_jax.ops import rle

    numbers = [i for i, mask in enumerate(record["rles"]) if rle.area(mask)]
    for start in range(0, len(numbers), PROMPTS_AT_ONCE):
        part = numbers[start : start + PROMPTS_AT_ONCE]
        yield part, np.stack([rle.decode(record["rles"][i]) for i in part])


def measure_record(
    predictor: Any, embedding: Any, record: dict[str, Any], protocol: Protocol
) -> list[dict[str, Any]]:
    """One row a mask of a record: FACTS, the IoU by name of the prompt, and CANDIDATES.

    Args:
      predictor: a `sam_jax.Predictor`, or what has its `predict`.
      embedding: of the record's image.
      record: see `sam_jax.data.sources`.
      protocol: what is asked.
    """
    rows = []
    for numbers, masks in true_masks(record):
        firsts = first_clicks(masks, protocol, record["name"], numbers)
        clicked = click(predictor, embedding, masks, protocol.clicks, firsts)
        scores = dict(clicked.ious)
        if protocol.boxes:
            scores |= measure_boxes(predictor, embedding, masks, record["image"], protocol.grabcut)
        scores |= clicked.candidates
        facts = facts_of(record, numbers, masks, firsts)
        for i, row in enumerate(facts):
            rows.append(row | {name: float(values[i]) for name, values in scores.items()})
    return rows


def facts_of(
    record: dict[str, Any], numbers: Sequence[int], masks: np.ndarray, firsts: np.ndarray
) -> list[dict[str, Any]]:
    """FACTS of some masks of a record; arguments as they are passed along above."""
    index = record.get("index", 0)
    return [
        dict(
            zip(FACTS, (record["name"], index, number, int(mask.sum()), *xy.tolist()), strict=True)
        )
        for number, mask, xy in zip(numbers, masks, firsts, strict=True)
    ]


def first_clicks(
    masks: np.ndarray, protocol: Protocol, name: str, numbers: Sequence[int]
) -> np.ndarray:
    """int [N, 2]: the first click (x, y) on each of the masks bool [N, H, W] of a record.

    Args:
      masks: none of them empty.
      protocol: says where clicks lie.
      name: of the record.
      numbers: of the masks in the record.
    """
    from sam_jax.ops.clicks import centre_click

    if protocol.first == "centre":
        return np.array([centre_click(mask) for mask in masks])
    points = []
    for number, mask in zip(numbers, masks, strict=True):
        y, x = np.nonzero(mask)
        chosen = keyed(protocol.seed, name, number).integers(len(x))
        points.append((x[chosen], y[chosen]))
    return np.array(points)


def click(
    predictor: Any,
    embedding: Any,
    masks: np.ndarray,
    clicks: int,
    firsts: np.ndarray,
    replay: tuple[np.ndarray, np.ndarray] | None = None,
) -> Clicked:
    """Clicks on masks until there are `clicks` of them on each.

    Args:
      predictor, embedding: of the image.
      masks: bool [N, H, W], the true ones, none empty.
      clicks: at least 1.
      firsts: int [N, 2], the first clicks.
      replay: points int [N, P, 2] and labels [N, P] to click on, P at least `clicks`, instead of
        where this model errs.
    """
    from sam_jax.ops.clicks import corrective_click, iou

    points, labels = np.asarray(firsts)[:, None], np.ones((len(masks), 1), int)
    out = predictor.predict(embedding, points, labels, multimask=True)
    every = np.array(
        [[iou(m, true) for m in three] for three, true in zip(out.masks, masks, strict=True)]
    )
    values = np.stack([every, out.scores], 2).reshape(len(masks), -1)
    candidates = dict(zip(CANDIDATES, values.T, strict=True))
    rows, likeliest = np.arange(len(masks)), out.scores.argmax(1)
    ious = {"1": every[rows, likeliest], "1 oracle": every.max(1)}
    predicted, logits = out.masks[rows, likeliest], out.logits[rows, likeliest]
    first = predicted
    for number in range(2, clicks + 1):
        if replay:
            points, labels = (part[:, :number] for part in replay)
        else:
            nexts = [corrective_click(p, true) for p, true in zip(predicted, masks, strict=True)]
            points = np.concatenate([points, [[xy] for xy, _ in nexts]], 1)
            labels = np.concatenate([labels, [[label] for _, label in nexts]], 1)
        out = predictor.predict(embedding, points, labels, mask_logits=logits, multimask=False)
        predicted, logits = out.masks[:, 0], out.logits[:, 0]
        if number in COUNTED or number == clicks:
            ious[str(number)] = np.array(list(map(iou, predicted, masks)))
    return Clicked(ious, candidates, points, labels, first)


def measure_boxes(
    predictor: Any, embedding: Any, masks: np.ndarray, image: np.ndarray, grabcut: bool = False
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
    cv2 = import_cv2()
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


def import_cv2():
    """OpenCV, or a ValueError that says how to get it."""
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "--grabcut: needs OpenCV; pip install 'opencv-python-headless<6'"
        ) from None
    return cv2
