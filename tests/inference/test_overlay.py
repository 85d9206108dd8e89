"""Masks drawn over photos, and label maps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sam_jax.inference import overlay
from sam_jax.inference.files import write_labels
from sam_jax.inference.records import to_label_map


def test_fill_outline_and_halo():
    photo = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[10:50, 0:40] = True
    out = overlay.draw_masks(photo, [mask])
    rgb = np.array(overlay.colour(0))
    np.testing.assert_array_equal(out[30, 20], (100 * 0.55 + rgb * 0.45).astype(np.uint8))
    np.testing.assert_array_equal(out[10, 20], rgb)  # the outline, inside
    np.testing.assert_array_equal(out[30, 39], rgb)
    np.testing.assert_array_equal(out[9, 20], 33)  # the dark line around
    assert (out[30, 0] == out[30, 20]).all()  # the photo's edge is no edge of the mask
    np.testing.assert_array_equal(out[:8], photo[:8])
    assert photo.max() == 100  # the photo itself is left alone


def test_smaller_masks_lie_above_larger_ones():
    photo = np.zeros((40, 40, 3), np.uint8)
    large, small = np.zeros((2, 40, 40), bool)
    large[2:38, 2:38], small[10:20, 10:20] = True, True
    out = overlay.draw_masks(photo, [small, large, np.zeros((40, 40), bool)])
    np.testing.assert_array_equal(out[10, 15], overlay.colour(0))
    assert overlay.draw_masks(photo, []).max() == 0


def test_colours_differ():
    colours = {overlay.colour(i) for i in range(200)}
    assert len(colours) > 150 and all(max(rgb) > 150 for rgb in colours)


def test_prompts_and_texts_stay_inside():
    picture = Image.new("RGB", (200, 100))
    overlay.draw_prompt(picture, [(50, 50), (199, 99)], [1, 0], [10, 10, 100, 80])
    pixels = np.asarray(picture)
    assert pixels[48, 48, 1] > 150 > pixels[48, 48, 0]  # green
    assert (pixels[10, 30] == 255).all()
    overlay.write_text(picture, (190, 95), "0.93", (255, 0, 0))
    assert (np.asarray(picture)[60:, 120:] == 20).any()


@pytest.mark.parametrize("count", [3, 300])
def test_label_maps(tmp_path, count):
    masks = np.zeros((count, 30, 40), bool)
    for i in range(count):
        masks[i, i % 30, i % 40 :] = True
    records = [{"segmentation": mask, "area": int(mask.sum())} for mask in masks]
    write_labels(tmp_path / "labels.png", to_label_map(records))
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert labels.shape == (30, 40) and (labels > 0).sum() == masks.any(0).sum()
    for y, x in zip(*np.nonzero(labels), strict=True):
        above = masks[labels[y, x] - 1]
        assert above[y, x] and above.sum() == min(m.sum() for m in masks if m[y, x])
