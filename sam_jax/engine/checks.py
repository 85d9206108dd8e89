"""What the annotation server is sent, checked: each function gives a value or a BadRequest."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from sam_jax.ops import rle

MOST_POINTS = 200
MOST_STROKES = 2_000
MOST_STROKE_POINTS = 200_000
MOST_SECONDS = 24 * 3600
MOST_LABEL = 200
TOOLS = ("brush", "eraser", "lasso")


class BadRequest(ValueError):
    """Something in a request is not as it must be; the message is one sentence."""


def text(body: dict[str, Any], key: str, most: int = 4096, default: str | None = None) -> str:
    """A string of at most `most` characters."""
    value = body.get(key, default)
    if not isinstance(value, str) or len(value) > most or (default is None and not value):
        raise BadRequest(f"{key}: expected a text of at most {most} characters")
    return value


def number(body: dict[str, Any], key: str, low: float, high: float, default: Any = None) -> Any:
    """A finite number in a range; `default` where it is null or missing."""
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{key}: expected a number from {low:g} to {high:g}")
    return float(value)


def points(body: dict[str, Any], hw: tuple[int, int]) -> tuple[list[list[float]], list[int]]:
    """Points [[x, y]] on a photo and their labels."""
    places, labels = body.get("points") or [], body.get("labels") or []
    if not isinstance(places, list) or not isinstance(labels, list) or len(places) > MOST_POINTS:
        raise BadRequest(f"points: expected a list of at most {MOST_POINTS} [x, y]")
    if len(places) != len(labels) or any(type(v) is not int or v not in (0, 1) for v in labels):
        raise BadRequest("labels: expected a 1 or a 0 for each point")
    checked = [_numbers(place, 2, f"points[{i}]") for i, place in enumerate(places)]
    for x, y in checked:
        if not (0 <= x < hw[1] and 0 <= y < hw[0]):
            raise BadRequest(f"points: ({x:g}, {y:g}) is not on the photo of {hw[1]} x {hw[0]}")
    return checked, labels


def box(body: dict[str, Any], hw: tuple[int, int]) -> list[float] | None:
    """A box [x0, y0, x1, y1] with an area on the photo, or None."""
    value = body.get("box")
    if value is None:
        return None
    x0, y0, x1, y1 = _numbers(value, 4, "box")
    x0, x1 = (min(max(v, 0.0), float(hw[1])) for v in (x0, x1))
    y0, y1 = (min(max(v, 0.0), float(hw[0])) for v in (y0, y1))
    if not (x0 < x1 and y0 < y1):
        raise BadRequest("box: expected x0 < x1 and y0 < y1 with an area on the photo")
    return [x0, y0, x1, y1]


def mask(body: dict[str, Any], hw: tuple[int, int], empty: bool = False) -> dict[str, Any] | None:
    """A COCO RLE of the photo's size as {"size", "counts": str}, or None.

    Args:
      body: the request.
      hw: the photo's height and width.
      empty: whether a mask without pixels is taken.
    """
    value = body.get("mask")
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("size") != list(hw):
        raise BadRequest(f"mask: expected a COCO RLE of size [{hw[0]}, {hw[1]}] (height, width)")
    counts = value.get("counts")
    listed = isinstance(counts, list) and all(type(c) is int and 0 <= c <= 1 << 40 for c in counts)
    if not listed and not isinstance(counts, str):
        raise BadRequest("mask: expected counts, a list of run lengths or a string")
    try:
        lengths = rle.read_counts({"size": list(hw), "counts": counts})
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"mask: {error}") from error
    if not empty and not lengths[1::2].sum():
        raise BadRequest("mask: it has no pixels")
    return {"size": list(hw), "counts": rle.compress_counts(np.asarray(lengths))}


def strokes(prompts: dict[str, Any]) -> list[dict[str, Any]]:
    """What was painted: [{"tool", "radius", "points"}]."""
    value = prompts.get("strokes") or []
    if not isinstance(value, list) or len(value) > MOST_STROKES:
        raise BadRequest(f"strokes: expected a list of at most {MOST_STROKES}")
    total, checked = 0, []
    for stroke in value:
        if not isinstance(stroke, dict) or stroke.get("tool") not in TOOLS:
            raise BadRequest(f"strokes: each needs a tool, one of {', '.join(TOOLS)}")
        places = stroke.get("points")
        if not isinstance(places, list):
            raise BadRequest("strokes: each needs points, a list of [x, y]")
        total += len(places)
        if total > MOST_STROKE_POINTS:
            raise BadRequest(f"strokes: at most {MOST_STROKE_POINTS} points in all")
        made = {"tool": stroke["tool"], "radius": number(stroke, "radius", 0, 10_000, 0.0)}
        checked.append(made | {"points": [_numbers(place, 2, "strokes") for place in places]})
    return checked


def annotator(name: str | None) -> str:
    """The annotator's name from its header: letters, digits, spaces and . _ - of any script."""
    name = (name or "annotator").strip()
    if not re.fullmatch(r"[\w .@-]{1,64}", name) or name == "model":
        raise BadRequest(
            "X-Annotator: expected a name of at most 64 letters, digits, spaces, . _ -"
        )
    return name


def _numbers(value: Any, count: int, name: str) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise BadRequest(f"{name}: expected {count} numbers")
    for part in value:
        fits = isinstance(part, int | float) and not isinstance(part, bool) and abs(part) < 1e6
        if not fits or not math.isfinite(part):
            raise BadRequest(f"{name}: expected {count} finite numbers")
    return [float(part) for part in value]
