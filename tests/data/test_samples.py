"""Masks are drawn around themselves only; the result is that of drawing the whole frame."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.samples import PipelineConfig, make_sample
from sam_jax.ops import rle


def whole_frame(mask, config):
    """The coverage map and box of a mask [H, W] by resizing all of it."""
    height, width = mask.shape
    ratio = config.image_size / max(mask.shape)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    frame = Image.new("L", (config.image_size, config.image_size))
    frame.paste(Image.fromarray(mask * np.uint8(255)).resize(size, Image.Resampling.BILINEAR))
    box = frame.point([0] * 128 + [255] * 128).getbbox()
    return np.asarray(frame.reduce(config.image_size // config.mask_size)), box


@pytest.mark.parametrize(("side", "step"), [(64, 1), (64, 2), (96, 4), (256, 4)])
def test_a_part_is_drawn_as_the_whole(side, step):
    config = PipelineConfig(
        image_size=side,
        mask_size=side // step,
        max_masks=1,
        scale_range=(1.0, 1.0),
        flip=False,
        min_mask_pixels=1,
    )
    rng = np.random.default_rng(side + step)
    compared = 0
    for _ in range(60):
        height, width = rng.integers(15, 400, 2)
        y, x = np.mgrid[:height, :width]
        centre, radii = rng.uniform(0, (height, width)), rng.uniform(1, (height / 2, width / 2))
        mask = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
        image = np.zeros((height, width, 3), np.uint8)
        record = {"image": image, "rles": [rle.encode(mask)], "name": "ellipse"}
        sample = make_sample(record, rng, config)
        if sample is None:  # too small once resized, or nearly everything
            continue
        expected, box = whole_frame(mask, config)
        difference = np.abs(sample["masks"][0].astype(int) - expected)
        assert difference.max() <= 1
        left, top, right, bottom = box
        assert sample["boxes_xyxy"][0].tolist() == [left, top, right - 1, bottom - 1]
        compared += 1
    assert compared >= 40
