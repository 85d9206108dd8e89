"""The released `ResizeLongestSide` (`utils/transforms.py`), over this project's functions."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sam_jax.inference.arrays import as_given, host
from sam_jax.ops.transforms import resize_image, resized_hw, scale_boxes, scale_points


class ResizeLongestSide:
    """Scales images, points and boxes so that the image's longer side is `target_length`."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """uint8 HxWx3 -> the resized uint8 image."""
        return resize_image(np.asarray(image), self.target_length)

    def apply_coords(self, coords: np.ndarray, original_size: Any) -> np.ndarray:
        """Points [..., 2] of the original image -> of the resized one, float64."""
        return scale_points(coords, original_size, self.target_length)

    def apply_boxes(self, boxes: np.ndarray, original_size: Any) -> np.ndarray:
        """Boxes [..., 4] of the original image -> of the resized one, float64 Bx4."""
        return scale_boxes(np.reshape(boxes, (-1, 4)), original_size, self.target_length)

    def apply_image_torch(self, image: Any) -> Any:
        """Float BCHW -> resized with antialiasing; close to `apply_image`, not the same."""
        array = host(image).astype(np.float32)
        shape = (*array.shape[:2], *resized_hw(array.shape[2:], self.target_length))
        return as_given(np.asarray(jax.image.resize(array, shape, "linear")), image)

    def apply_coords_torch(self, coords: Any, original_size: Any) -> Any:
        """`apply_coords` in float32."""
        ratios = scale_points(np.ones(2), original_size, self.target_length).astype(np.float32)
        return as_given(host(coords).astype(np.float32) * ratios, coords)

    def apply_boxes_torch(self, boxes: Any, original_size: Any) -> Any:
        """`apply_boxes` in float32."""
        corners = host(boxes).astype(np.float32).reshape(-1, 2, 2)
        scaled = host(self.apply_coords_torch(corners, original_size)).reshape(-1, 4)
        return as_given(scaled, boxes)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Height and width after resizing."""
        return resized_hw((oldh, oldw), long_side_length)
