"""Masks drawn over the photo: translucent colours, outlines, prompt markers and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sam_jax.ops.masks import mask_boxes

COLOURS = (
    (30, 144, 255),
    (255, 99, 71),
    (60, 200, 90),
    (255, 200, 0),
    (190, 90, 255),
    (0, 205, 205),
    (255, 105, 180),
    (160, 220, 60),
    (255, 140, 0),
    (110, 130, 255),
    (0, 170, 130),
    (230, 60, 140),
)
"""Told apart on dark and on light photos; used in turn."""

FILL = 0.45
"""How much of a mask's colour shows."""


def colour(index: int) -> tuple[int, int, int]:
    """The colour of mask number `index`: those of COLOURS, then others of the same brightness."""
    if index < len(COLOURS):
        return COLOURS[index]
    hue = (index * 0.618034) % 1.0  # the golden ratio keeps neighbours apart
    wave = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    red, green, blue = (int(v) for v in 70 + 185 * wave)
    return red, green, blue


def draw_masks(photo: np.ndarray, masks: Sequence[np.ndarray], first: int = 0) -> np.ndarray:
    """The photo with masks over it, larger ones below smaller ones.

    Args:
      photo: uint8 [H, W, 3].
      masks: bool [H, W] each; mask i has colour `first + i`.
      first: number of the first colour.

    Returns:
      A new uint8 [H, W, 3].
    """
    out = photo.copy()
    width = line_width(photo.shape[:2])
    areas = [np.count_nonzero(mask) for mask in masks]
    for i in sorted(range(len(masks)), key=lambda i: -areas[i]):
        if areas[i]:
            _paint(out, np.asarray(masks[i], bool), colour(first + i), width)
    return out


def line_width(image_hw: tuple[int, int]) -> int:
    """Pixels of an outline: what looks about the same on a photo of any size."""
    return max(1, round(max(image_hw) / 400))


def _paint(out: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int], width: int) -> None:
    """One mask into `out`: its fill, its outline inside, and a dark line around."""
    margin = width + 1
    x0, y0, x1, y1 = mask_boxes(mask)
    view = np.s_[max(y0 - margin, 0) : y1 + 1 + margin, max(x0 - margin, 0) : x1 + 1 + margin]
    inside, part = mask[view], out[view]
    part[inside] = (part[inside] * (1 - FILL) + np.array(rgb) * FILL).astype(np.uint8)
    edge = np.nonzero(_edge(inside))
    halo = _near(edge, inside.shape, max(1, width // 2)) & ~inside
    part[halo] = part[halo] // 3
    part[_near(edge, inside.shape, width - 1) & inside] = rgb


def _edge(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask beside one that is not in it; beyond the picture all count as in it."""
    outside = ~mask
    edge = np.zeros_like(mask)
    edge[1:] |= outside[:-1]
    edge[:-1] |= outside[1:]
    edge[:, 1:] |= outside[:, :-1]
    edge[:, :-1] |= outside[:, 1:]
    return edge & mask


def _near(pixels: tuple[np.ndarray, ...], hw: tuple[int, ...], radius: int) -> np.ndarray:
    """bool [H, W]: what lies within a radius of some pixels; costs as much as there are pixels."""
    near = np.zeros(hw, bool)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * (radius + 1):
                y = np.clip(pixels[0] + dy, 0, hw[0] - 1)
                near[y, np.clip(pixels[1] + dx, 0, hw[1] - 1)] = True
    return near


def draw_prompt(
    picture: Image.Image, points_xy: Sequence, labels: Sequence[int], box_xyxy: Sequence | None
) -> None:
    """Markers into `picture`: green discs and red discs with a bar, and a box with corners.

    Args:
      picture: an RGB PIL image at the photo's size; changed.
      points_xy: (x, y) in pixels.
      labels: 1 foreground (green, with a cross), 0 background (red, with a bar).
      box_xyxy: x0, y0, x1, y1 in pixels, or None.
    """
    draw = ImageDraw.Draw(picture)
    width = line_width(picture.size)
    if box_xyxy is not None:
        box = [float(v) for v in box_xyxy]
        draw.rectangle(_grown(box, width), outline=(0, 0, 0), width=3 * width)
        draw.rectangle(box, outline=(255, 255, 255), width=width)
    radius = max(4, round(max(picture.size) / 90))
    for (x, y), label in zip(points_xy, labels, strict=True):
        rgb = (40, 200, 60) if label else (225, 40, 40)
        for r, fill in ((radius + width + 1, (0, 0, 0)), (radius + 1, (255, 255, 255))):
            draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        r = radius - max(1, width // 2)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=rgb)
        arm, line = r * 0.55, max(1, radius // 4)
        draw.line([x - arm, y, x + arm, y], fill=(255, 255, 255), width=line)
        if label:
            draw.line([x, y - arm, x, y + arm], fill=(255, 255, 255), width=line)


def _grown(box: list[float], by: int) -> list[float]:
    return [box[0] - by, box[1] - by, box[2] + by, box[3] + by]


def write_text(
    picture: Image.Image, xy: tuple[float, float], text: str, rgb: tuple[int, int, int]
) -> None:
    """White text on a dark plate with a bar of the colour; moved so that it stays inside."""
    draw = ImageDraw.Draw(picture)
    size = max(11, round(max(picture.size) / 55))
    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(2, size // 4)
    wide, high = right - left + 3 * pad + pad, bottom - top + 2 * pad
    x = min(max(0, xy[0]), max(0, picture.width - wide))
    y = min(max(0, xy[1]), max(0, picture.height - high))
    draw.rectangle([x, y, x + wide, y + high], fill=(20, 20, 20))
    draw.rectangle([x, y, x + pad, y + high], fill=rgb)
    draw.text((x + 2.5 * pad - left, y + pad - top), text, fill=(255, 255, 255), font=font)


def tile(rows: Sequence[Sequence[Image.Image]], gap: int = 6) -> Image.Image:
    """Pictures of one size in rows and columns on a dark ground."""
    wide, high = rows[0][0].size
    columns = max(len(row) for row in rows)
    size = (columns * (wide + gap) + gap, len(rows) * (high + gap) + gap)
    sheet = Image.new("RGB", size, (20, 20, 20))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(picture, (gap + j * (wide + gap), gap + i * (high + gap)))
    return sheet


def label_place(mask: np.ndarray) -> tuple[float, float]:
    """Where a mask's text starts: the top left corner of its box."""
    x0, y0, _, _ = mask_boxes(mask)
    return float(x0), float(y0)


def candidate_sheet(photo: np.ndarray, prompts: Sequence, prediction, side: int) -> Image.Image:
    """Every candidate of every prompt beside each other, best first, one row a prompt.

    Args:
      photo: uint8 [H, W, 3].
      prompts: with `points`, `labels` and `box`.
      prediction: a Prediction with masks [N, K, H, W].
      side: longer side of a panel in pixels at most.
    """
    scale = min(1.0, side / max(photo.shape[:2]))
    size = tuple(max(1, round(n * scale)) for n in photo.shape[1::-1])
    rows = []
    for i, prompt in enumerate(prompts):
        row = []
        for k in np.argsort(-prediction.scores[i], kind="stable"):
            panel = Image.fromarray(draw_masks(photo, [prediction.masks[i, k]], first=i))
            draw_prompt(panel, prompt.points, prompt.labels, prompt.box)
            panel = panel.resize(size, Image.Resampling.LANCZOS)
            write_text(panel, (0, 0), f"{prediction.scores[i, k]:.3f}", colour(i))
            row.append(panel)
        rows.append(row)
    return tile(rows)
