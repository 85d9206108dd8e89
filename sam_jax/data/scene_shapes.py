"""Outlines for procedural scenes: closed curves in a local frame, and their rasters.

A shape is a list of paths drawn one after another; local coordinates are about -1..1, x to the
right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

_T24 = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_T40 = np.linspace(0, 2 * np.pi, 40, endpoint=False)


@dataclass(frozen=True)
class Path:
    """Points float [K, 2] (x, y); a polygon, or with a width an open line; fill False cuts out."""

    points: np.ndarray
    width: float = 0.0
    fill: bool = True


Shape = list[Path]


def ellipse(rx: float = 1.0, ry: float = 1.0, cx: float = 0.0, cy: float = 0.0) -> Shape:
    """An ellipse with half axes rx, ry around (cx, cy)."""
    return [Path(np.stack([cx + rx * np.cos(_T24), cy + ry * np.sin(_T24)], 1))]


def ring(rng: np.random.Generator) -> Shape:
    """A ring of random thickness and roundness."""
    hole, ry = rng.uniform(0.45, 0.85), rng.uniform(0.5, 1)
    return ellipse(1, ry) + [Path(ellipse(hole, ry * hole)[0].points, fill=False)]


def rectangle(rx: float, ry: float, radius: float = 0.0, cx: float = 0.0, cy: float = 0.0) -> Shape:
    """A rectangle of half sides rx, ry around (cx, cy) with corners of the given radius."""
    radius = min(radius, rx, ry)
    if radius <= 0:
        corners = [(-rx, -ry), (rx, -ry), (rx, ry), (-rx, ry)]
        return [Path(np.array(corners, float) + (cx, cy))]
    turn = np.linspace(0, np.pi / 2, 5)
    arcs = []
    for k, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        angle = turn + k * np.pi / 2
        x = cx + sx * (rx - radius) + radius * np.cos(angle)
        y = cy + sy * (ry - radius) + radius * np.sin(angle)
        arcs.append(np.stack([x, y], 1))
    return [Path(np.concatenate(arcs))]


def blob(rng: np.random.Generator, roughness: float = 0.25) -> Shape:
    """A smooth random outline: a circle with a few random harmonics, somewhat elongated."""
    orders = np.arange(2, 7)
    sizes = rng.normal(0, roughness, 5) / orders
    phases = rng.uniform(0, 2 * np.pi, 5)
    radius = 1 + (sizes[:, None] * np.cos(orders[:, None] * _T40 + phases[:, None])).sum(0)
    radius = np.maximum(radius, 0.25)
    radius = radius / radius.max()
    x, y = radius * np.cos(_T40), radius * np.sin(_T40) * rng.uniform(0.5, 1)
    return [Path(turned(np.stack([x, y], 1), rng.uniform(0, np.pi)))]


def polygon(rng: np.random.Generator, corners: int | None = None) -> Shape:
    """A random polygon of 3 to 8 corners, half of the time with rounded corners."""
    count = int(corners or rng.integers(3, 9))
    angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * (2 * np.pi / count)
    radius = rng.uniform(0.65, 1, count)
    points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    points = turned(points, rng.uniform(0, np.pi))
    return [Path(rounded(points, 3) if rng.random() < 0.5 else points)]


def star(rng: np.random.Generator) -> Shape:
    """A star or a flower of 4 to 9 tips."""
    tips = int(rng.integers(4, 10))
    angles = np.arange(2 * tips) * (np.pi / tips)
    radius = np.where(np.arange(2 * tips) % 2, rng.uniform(0.35, 0.75), 1.0)
    points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    return [Path(rounded(points, 2) if rng.random() < 0.5 else points)]


def capsule(
    start: tuple[float, float], end: tuple[float, float], r0: float, r1: float | None = None
) -> Shape:
    """A limb from start to end, of radius r0 there and r1 here."""
    r1 = r0 if r1 is None else r1
    start, end = np.asarray(start, float), np.asarray(end, float)
    direction = np.arctan2(end[1] - start[1], end[0] - start[0])
    half = np.linspace(np.pi / 2, 3 * np.pi / 2, 7) + direction
    tail = start + r0 * np.stack([np.cos(half), np.sin(half)], 1)
    front = end + r1 * np.stack([np.cos(half + np.pi), np.sin(half + np.pi)], 1)
    return [Path(np.concatenate([tail, front]))]


def string(rng: np.random.Generator, width: float) -> Shape:
    """A smooth open line that wanders through the frame."""
    points = np.cumsum(rng.normal(0, 1, (int(rng.integers(3, 7)), 2)), 0)
    points = points - points.mean(0)
    points = points / max(np.abs(points).max(), 1e-6)
    return [Path(rounded(points, 3, closed=False), width)]


def letter(rng: np.random.Generator, width: float) -> Shape:
    """A made-up letter: two to four straight or round strokes on a grid of 3 x 3 knots."""
    knots = [np.array([x, y], float) for y in (-1, 0, 1) for x in (-0.6, 0, 0.6)]
    shape = []
    for _ in range(int(rng.integers(2, 5))):
        a, b, c = (knots[k] for k in rng.choice(9, 3, replace=False))
        if rng.random() < 0.4:
            shape.append(Path(rounded(np.stack([a, b, c]), 3, closed=False), width))
        else:
            shape.append(Path(np.stack([a, b]), width))
    return shape


def rounded(points: np.ndarray, times: int, closed: bool = True) -> np.ndarray:
    """Cuts corners (Chaikin) `times` times; float [K, 2] -> [about K * 2**times, 2]."""
    for _ in range(times):
        following = np.roll(points, -1, 0) if closed else points[1:]
        here = points if closed else points[:-1]
        cut = np.stack([0.75 * here + 0.25 * following, 0.25 * here + 0.75 * following], 1)
        cut = cut.reshape(-1, 2)
        points = cut if closed else np.concatenate([points[:1], cut, points[-1:]])
    return points


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points float [K, 2] rotated by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def placed(shape: Shape, matrix: np.ndarray, offset: np.ndarray) -> Shape:
    """The shape under points -> matrix @ points + offset; widths follow the mean scale."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix))))
    return [Path(p.points @ matrix.T + offset, p.width * scale, p.fill) for p in shape]


def rasterise(
    shape: Shape, width: int, height: int, outline: float = 0.0
) -> tuple[Image.Image, Image.Image | None, int, int] | None:
    """Antialiased coverage of a shape given in pixels.

    Args:
      shape: paths in pixels of a canvas of width x height.
      width: of the canvas, pixels.
      height: of the canvas, pixels.
      outline: width of the outline to draw besides, pixels; 0 for none.

    Returns:
      (coverage "L", coverage of the outline or None, x, y of the patch's top left pixel), or None
      when the shape lies outside the canvas.
    """
    low = np.min([p.points.min(0) - p.width / 2 for p in shape], 0) - outline / 2
    high = np.max([p.points.max(0) + p.width / 2 for p in shape], 0) + outline / 2
    x0, y0 = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
    x1, y1 = min(width, int(np.ceil(high[0]))), min(height, int(np.ceil(high[1])))
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    zoom = 4 if max(x1 - x0, y1 - y0) < 64 else 2
    big = Image.new("L", ((x1 - x0) * zoom, (y1 - y0) * zoom))
    pen = ImageDraw.Draw(big)
    rim = Image.new("L", big.size) if outline else None
    rim_pen = ImageDraw.Draw(rim) if outline else None
    for path in shape:
        points = (path.points - (x0, y0)) * zoom
        flat = points.ravel().tolist()
        value = 255 if path.fill else 0
        if path.width:
            _line(pen, points, flat, path.width * zoom)
        else:
            pen.polygon(flat, fill=value)
            if rim_pen is not None:
                rim_pen.line(flat + flat[:4], fill=255, width=max(1, round(outline * zoom)))
    edge = rim.reduce(zoom) if rim is not None else None
    return big.reduce(zoom), edge, x0, y0


def _line(pen: ImageDraw.ImageDraw, points: np.ndarray, flat: list[float], width: float) -> None:
    pen.line(flat, fill=255, width=max(1, round(width)), joint="curve")
    r = width / 2
    for x, y in points[[0, -1]].tolist():
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
