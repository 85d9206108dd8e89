"""Resizing as PyTorch does it."""

import numpy as np
import pytest

from sam_jax.ops.resize import resize_axis, resize_hw, weights


def test_linear_by_hand():
    np.testing.assert_allclose(
        weights(2, 4, "linear"), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )
    np.testing.assert_allclose(weights(4, 2, "linear"), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


def test_cubic_has_pytorchs_constant():
    """Half way between samples a = -0.75 weighs the neighbours -0.09375 and 0.59375."""
    row = weights(6, 3, "cubic")[1]
    np.testing.assert_allclose(row, [0, -0.09375, 0.59375, 0.59375, -0.09375, 0])
    assert not np.allclose(row, [0, -0.0625, 0.5625, 0.5625, -0.0625, 0])


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize(("old", "new"), [(5, 5), (3, 8), (9, 4)])
def test_constants_stay_and_equal_sizes_change_nothing(kind, old, new):
    np.testing.assert_allclose(weights(old, new, kind).sum(1), 1, rtol=1e-6)
    if old == new:
        np.testing.assert_allclose(weights(old, new, kind), np.eye(old), atol=1e-7)


def test_axes():
    x = np.arange(2 * 3 * 4.0, dtype=np.float32).reshape(2, 3, 4)
    assert resize_axis(x, 1, 6).shape == (2, 6, 4)
    assert resize_hw(x, (6, 8), (-2, -1), "linear").shape == (2, 6, 8)
    with pytest.raises(ValueError, match="'linear' or 'cubic'"):
        weights(2, 4, "nearest")


@pytest.mark.torch
@pytest.mark.parametrize(("hw", "to"), [((7, 9), (16, 5)), ((14, 14), (64, 64)), ((27, 4), (9, 9))])
@pytest.mark.parametrize(("kind", "mode"), [("linear", "bilinear"), ("cubic", "bicubic")])
def test_as_pytorch(hw, to, kind, mode):
    import torch

    x = np.random.default_rng(0).normal(0, 1, (2, 3, *hw)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x), to, mode=mode, align_corners=False, antialias=False
    )
    np.testing.assert_allclose(resize_hw(x, to, (2, 3), kind), theirs.numpy(), atol=2e-6)
