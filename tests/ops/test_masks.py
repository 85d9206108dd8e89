"""Enlarging of low-resolution logits, and boxes of masks."""

from __future__ import annotations

import numpy as np
import pytest

from sam_jax.ops.masks import (
    Axis,
    mask_boxes,
    upscale_logits,
    upscale_masks,
)
from sam_jax.ops.transforms import resized_hw

SIZES = [(300, 450), (640, 480), (900, 1200), (7, 5), (1, 900), (256, 256), (1024, 1024)]


@pytest.mark.torch
@pytest.mark.parametrize("image_hw", SIZES)
def test_the_same_as_pytorch_s_two_interpolations(image_hw):
    import torch

    logits = 8 * np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    input_hw = resized_hw(image_hw, 256)
    ours = upscale_logits(logits, input_hw, image_hw, 256)
    resize = torch.nn.functional.interpolate
    x = resize(torch.tensor(logits)[None], (256, 256), mode="bilinear", align_corners=False)
    x = x[..., : input_hw[0], : input_hw[1]]
    theirs = resize(x, image_hw, mode="bilinear", align_corners=False)[0].numpy()
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-3)  # of 30; it rounds its positions
    assert ((ours > 0) != (theirs > 0)).mean() < 1e-5
    np.testing.assert_array_equal(upscale_masks(logits, input_hw, image_hw, 256), ours > 0)


def test_the_matrix_by_hand():
    # 2 -> 4 gives weights 1, 3/4, 1/4, 0 of the first sample; of the first 2 outputs back to 1
    # their mean.
    np.testing.assert_allclose(
        Axis(2, 4, 4, 4).matrix.toarray(), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )
    np.testing.assert_allclose(Axis(2, 4, 2, 1).matrix.toarray(), [[0.875, 0.125]])


def test_padding_is_cut_off():
    logits = np.full((8, 8), -5.0, np.float32)
    logits[:, :4] = 5.0
    out = upscale_logits(logits, (32, 14), (64, 28), 32)
    np.testing.assert_array_equal(out, np.full((64, 28), 5.0))  # the left 14 pixels of 32
    with pytest.raises(ValueError, match="input_hw"):
        upscale_logits(logits, (33, 14), (64, 28), 32)


def test_the_threshold_is_strict():
    flat = np.zeros((4, 4), np.float32)
    assert not upscale_masks(flat, (16, 16), (20, 20), 16).any()
    assert upscale_masks(flat + 1e-6, (16, 16), (20, 20), 16).all()
    assert not upscale_masks(flat + 0.5, (16, 16), (20, 20), 16, threshold=0.5).any()


def test_any_leading_axes_and_none():
    logits = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    out = upscale_logits(logits, (30, 32), (300, 320), 32)
    assert out.shape == (2, 3, 300, 320)
    np.testing.assert_array_equal(out[1, 2], upscale_logits(logits[1, 2], (30, 32), (300, 320), 32))
    assert upscale_masks(logits[:0], (30, 32), (300, 320), 32).shape == (0, 3, 300, 320)


def test_mask_boxes_are_inclusive():
    masks = np.zeros((2, 2, 10, 12), bool)
    masks[0, 0, 3:7, 2:5] = True
    masks[0, 1, 9, 11] = True
    masks[1, 0] = True
    expected = [[[2, 3, 4, 6], [11, 9, 11, 9]], [[0, 0, 11, 9], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(mask_boxes(masks), expected)
    np.testing.assert_array_equal(mask_boxes(masks[0, 0]), [2, 3, 4, 6])
