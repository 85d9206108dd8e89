"""Masks as parts of their logits, against the whole enlarged logits."""

from __future__ import annotations

import numpy as np
import pytest

from sam_jax.ops.cutouts import cut_out, measure, paint
from sam_jax.ops.masks import axes, mask_boxes, upscale_logits
from sam_jax.ops.transforms import resized_hw


def blob(rng: np.random.Generator, side: int) -> np.ndarray:
    """Logits of a noisy disc, or of nothing."""
    y, x = np.mgrid[:side, :side]
    centre, radius = rng.uniform(0, side, 2), rng.uniform(-2, side / 2)
    noise = rng.normal(0, 1, (side, side))
    return (radius - np.hypot(x - centre[0], y - centre[1]) + noise).astype(np.float32)


@pytest.mark.parametrize("image_hw", [(40, 60), (300, 450), (64, 64), (1, 90), (700, 500)])
def test_as_if_the_whole_were_enlarged(image_hw):
    rng, low, frame = np.random.default_rng(0), 32, 128
    sizes = (resized_hw(image_hw, frame), image_hw, frame)
    both = axes((low, low), *sizes)
    for threshold, offset in ((0.0, 1.0), (0.5, 2.0)):
        for _ in range(20):
            logits = blob(rng, low)
            whole = upscale_logits(logits, *sizes)
            cutout = cut_out(logits, threshold - offset, both)
            area, stability, box = measure(cutout, both, threshold, offset)
            mask = whole > threshold
            inner, outer = (whole > threshold + offset).sum(), (whole > threshold - offset).sum()
            assert area == mask.sum() and box == tuple(mask_boxes(mask))
            if not outer:
                assert np.isnan(stability)
            else:
                assert stability.dtype == np.float32
                assert stability == np.float32(inner) / np.float32(outer)
            painted = np.zeros(image_hw, bool)
            if cutout is not None:
                assert cutout.logits.size <= logits.size
                painted[cutout.at] = paint(cutout, both, threshold)
            np.testing.assert_array_equal(painted, mask)


def test_a_small_mask_is_a_small_part():
    logits = np.full((256, 256), -5, np.float32)
    logits[100:110, 30:36] = 5
    both = axes((256, 256), (683, 1024), (4000, 6000), 1024)
    cutout = cut_out(logits, -1.0, both)
    assert cutout.logits.shape == (14, 10)
    assert 200 < cutout.at[0].stop - cutout.at[0].start < 300
    assert measure(cutout, both, 0.0, 1.0).area == paint(cutout, both, 0.0).sum() > 30_000


def test_nothing_above_the_level_or_only_in_the_padding():
    both = axes((32, 32), (64, 128), (100, 200), 128)  # the lower half of the frame is padding
    logits = np.full((32, 32), -5, np.float32)
    assert cut_out(logits, -1.0, both) is None
    logits[20:30] = 5
    assert cut_out(logits, -1.0, both) is None
    area, stability, box = measure(None, both, 0.0, 1.0)
    assert area == 0 and np.isnan(stability) and box == (0, 0, 0, 0)
