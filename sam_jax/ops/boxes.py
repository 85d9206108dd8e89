"""Boxes, crops and point grids of automatic mask generation (PROTOCOLS section 8), in numpy.

Boxes are x0, y0, x1, y1. Those of masks hold pixel indices, inclusive at both ends, and their
width is nevertheless x1 - x0: the released code's convention, kept because its NMS depends on it.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def box_area(boxes_xyxy: np.ndarray) -> np.ndarray:
    """[..., 4] -> [...]: (x1 - x0) * (y1 - y0)."""
    boxes = np.asarray(boxes_xyxy)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def xyxy_to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """[..., 4] x0, y0, x1, y1 -> x0, y0, width, height (COCO's order), width = x1 - x0."""
    boxes = np.array(boxes_xyxy)
    boxes[..., 2:] -= boxes[..., :2]
    return boxes


def point_grid(per_side: int) -> np.ndarray:
    """float64 [per_side ** 2, 2]: the centres of a grid's cells in 0..1, row by row."""
    offset = 1 / (2 * per_side)
    line = np.linspace(offset, 1 - offset, per_side)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def point_grids(per_side: int, layers: int, downscale: int) -> list[np.ndarray]:
    """One `point_grid` for the photo and one for each of `layers` layers of crops.

    Layer i has int(per_side / downscale ** i) points a side.
    """
    return [point_grid(int(per_side / downscale**i)) for i in range(layers + 1)]


def crop_boxes(
    image_hw: tuple[int, int], layers: int, overlap_ratio: float
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """The photo, and its crops: layer i has 2**i by 2**i of them.

    Args:
      image_hw: height and width in pixels.
      layers: number of layers besides the photo itself, which is layer 0.
      overlap_ratio: how far neighbours of layer 1 overlap, in short sides of the photo; half of
        it in each layer after.

    Returns:
      Boxes (x0, y0, x1, y1) with exclusive ends, and the layer of each. Within a layer column by
      column.
    """
    height, width = image_hw
    boxes, of_layer = [(0, 0, width, height)], [0]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_w, crop_h = (
            int(math.ceil((overlap * (count - 1) + length) / count)) for length in (width, height)
        )
        for i, j in itertools.product(range(count), range(count)):
            x0, y0 = (crop_w - overlap) * i, (crop_h - overlap) * j
            boxes.append((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)))
            of_layer.append(layer)
    return boxes, of_layer


def near_crop_edge(
    boxes_xyxy: np.ndarray, crop_box, image_hw: tuple[int, int], tolerance: float = 20.0
) -> np.ndarray:
    """bool [N]: which boxes come close to an edge of their crop that is no edge of the photo.

    Args:
      boxes_xyxy: [N, 4] in pixels of the photo.
      crop_box: x0, y0, x1, y1 in pixels of the photo.
      image_hw: the photo's height and width in pixels.
      tolerance: how many pixels are close, inclusive.
    """
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    image_box = np.array([0, 0, image_hw[1], image_hw[0]], np.float32)
    near_crop = np.abs(boxes - np.asarray(crop_box, np.float32)) <= tolerance
    near_image = np.abs(boxes - image_box) <= tolerance
    return (near_crop & ~near_image).any(1)
