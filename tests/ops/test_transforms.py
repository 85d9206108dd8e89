"""The photo's way into the model's frame."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sam_jax.ops.transforms import (
    pad_to_frame,
    resize_image,
    resized_hw,
    scale_boxes,
    scale_points,
)


@pytest.mark.parametrize(
    "image_hw, expected",
    [
        ((1500, 2250), (683, 1024)),  # 682.67
        ((480, 640), (768, 1024)),
        ((640, 480), (1024, 768)),
        ((7, 5), (1024, 731)),  # 731.43; small photos are enlarged
        ((1024, 1024), (1024, 1024)),
        ((3, 2048), (2, 1024)),  # 1.5 rounds up
        ((1, 5000), (1, 1024)),  # 0.2 rounds to 0, but a side is at least 1
        ((5000, 1), (1024, 1)),
    ],
)
def test_resized_hw(image_hw, expected):
    assert resized_hw(image_hw, 1024) == expected


@pytest.mark.parametrize("image_hw, side", [((0, 5), 64), ((5, -1), 64), ((5, 5), 0)])
def test_resized_hw_needs_pixels(image_hw, side):
    with pytest.raises(ValueError, match="positive numbers of pixels"):
        resized_hw(image_hw, side)


def test_points_scale_by_the_rounded_sizes():
    # 1500 x 2250 becomes 683 x 1024: y by 683 / 1500, not by 1024 / 2250.
    scaled = scale_points([[2250, 1500], [10, 20]], (1500, 2250), 1024)
    np.testing.assert_allclose(scaled, [[1024, 683], [4.5511111, 9.1066667]], rtol=1e-7)
    assert scaled.dtype == np.float64
    boxes = scale_boxes([[0, 0, 2250, 1500]], (1500, 2250), 1024)
    np.testing.assert_allclose(boxes, [[0, 0, 1024, 683]])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="points_xy"):
        scale_points([1, 2, 3], (5, 5), 64)
    with pytest.raises(ValueError, match="boxes_xyxy"):
        scale_boxes([1, 2, 3], (5, 5), 64)
    with pytest.raises(ValueError, match="uint8"):
        resize_image(np.zeros((5, 5, 3)), 64)
    with pytest.raises(ValueError, match="uint8"):
        resize_image(np.zeros((5, 5), np.uint8), 64)


def test_resize_image_is_pillow_s_bilinear_filter():
    image = np.random.default_rng(0).integers(0, 256, (90, 37, 3), dtype=np.uint8)
    resized = resize_image(image, 64)
    expected = Image.fromarray(image).resize((26, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized, np.asarray(expected))
    # Shrinking averages: a chequerboard becomes grey instead of black or white.
    board = np.indices((128, 128)).sum(0) % 2 * 255
    small = resize_image(np.repeat(board[..., None], 3, 2).astype(np.uint8), 32)
    assert 100 < small.min() and small.max() < 155
    assert resize_image(image[::-1, ::-1], 64).shape == (64, 26, 3)  # views are taken
    assert resize_image(image[:1], 1024).shape == (28, 1024, 3)
    assert resize_image(np.zeros((1, 3000, 3), np.uint8), 64).shape == (1, 64, 3)


def test_pad_to_frame_is_at_the_right_and_the_bottom():
    frame = pad_to_frame(np.ones((2, 3, 3), np.uint8), 4)
    assert frame.shape == (4, 4, 3) and frame.dtype == np.uint8
    np.testing.assert_array_equal(frame[..., 0], [[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4, [0] * 4])
