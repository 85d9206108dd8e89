"""From a photo's pixels to the model's frame: the resized photo, and points and boxes with it.

The photo is scaled so that its longer side fills the frame; the rest of the frame is padding, at
the right and at the bottom (`utils/transforms.py` of the released code).
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized_hw(image_hw: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width in pixels of a photo whose longer side is scaled to `side`.

    Each is rounded half up, and is at least 1 (the released code comes to 0 for a photo more than
    2 * side times as long as wide, and fails).

    Raises:
      ValueError: a side of the photo or of the frame is not positive.
    """
    height, width = (int(n) for n in image_hw)
    if height < 1 or width < 1 or side < 1:
        raise ValueError(
            f"image_hw and side: expected positive numbers of pixels, got {image_hw} and {side}"
        )
    scale = side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def scale_points(points_xy, image_hw: tuple[int, int], side: int) -> np.ndarray:
    """Points in pixels of the photo -> pixels of the model's frame, float64 [..., 2].

    x and y are scaled by the ratios of the *rounded* sizes, so not quite by the same number.

    Args:
      points_xy: [..., 2] in pixels of the photo.
      image_hw: height and width of the photo in pixels.
      side: of the frame in pixels.
    """
    height, width = image_hw
    new_height, new_width = resized_hw(image_hw, side)
    points = np.array(points_xy, np.float64)
    if points.shape[-1:] != (2,):
        raise ValueError(f"points_xy: expected [..., 2] with x and y, got shape {points.shape}")
    return points * (new_width / width, new_height / height)


def scale_boxes(boxes_xyxy, image_hw: tuple[int, int], side: int) -> np.ndarray:
    """Boxes in pixels of the photo -> pixels of the model's frame, float64 [..., 4]."""
    boxes = np.array(boxes_xyxy, np.float64)
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes_xyxy: expected [..., 4], got shape {boxes.shape}")
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return scale_points(corners, image_hw, side).reshape(boxes.shape)


def resize_image(image: np.ndarray, side: int) -> np.ndarray:
    """A photo uint8 [H, W, 3] with its longer side scaled to `side` pixels, uint8.

    By Pillow's bilinear filter, which averages when it shrinks and rounds to 8 bits: what the
    released predictor does, bit for bit. Small photos are enlarged.

    Raises:
      ValueError: `image` is no uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"image: expected uint8 [H, W, 3], got {image.dtype} with shape {image.shape}"
        )
    height, width = resized_hw(image.shape[:2], side)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def pad_to_frame(image: np.ndarray, side: int) -> np.ndarray:
    """[h, w, C] with h, w <= side -> [side, side, C], zeros at the right and at the bottom."""
    frame = np.zeros((side, side, *image.shape[2:]), image.dtype)
    frame[: image.shape[0], : image.shape[1]] = image
    return frame
