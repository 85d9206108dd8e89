"""Masks are drawn around themselves only; the result is that of drawing the whole frame."""

import dataclasses

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


def rectangle_sample(config, seed):
    """The sample of a picture that is white where its mask is, in the middle of grey."""
    mask = np.zeros((96, 96), bool)
    mask[32:64, 24:72] = True
    image = np.where(mask[:, :, None], np.uint8(255), np.uint8(64)).repeat(3, axis=2)
    record = {"image": image, "rles": [rle.encode(mask)], "name": "square"}
    return make_sample(record, np.random.default_rng(seed), config)


def test_a_stretched_picture_and_its_mask_stay_together():
    plain = {"colour_jitter": 0.0, "grey_probability": 0.0, "invert_probability": 0.0}
    config = PipelineConfig(
        image_size=128, mask_size=128, max_masks=1, scale_range=(1.0, 1.0), stretch=0.4, **plain
    )
    ratios = []
    for seed in range(30):
        sample = rectangle_sample(config, seed)
        height, width = sample["image_hw"]
        assert max(height, width) <= 128
        inside = sample["image"][:height, :width, 0] > 160
        drawn = sample["masks"][0][:height, :width] >= 128
        assert np.mean(inside != drawn) < 0.01
        left, top, right, bottom = sample["boxes_xyxy"][0]
        if 0 < left and right < width - 1 and 0 < top and bottom < height - 1:
            ratios.append((right - left + 1) / (bottom - top + 1))
    assert min(ratios) < 1.2 and max(ratios) > 1.9  # 1.5 in the picture
    assert all(1.5 * np.exp(-0.85) < ratio < 1.5 * np.exp(0.85) for ratio in ratios)
    config = dataclasses.replace(config, stretch=0.0)
    assert {tuple(rectangle_sample(config, seed)["image_hw"]) for seed in range(5)} == {(128, 128)}


def test_some_pictures_are_blurred():
    config = PipelineConfig(
        image_size=96,
        mask_size=96,
        max_masks=1,
        scale_range=(1.0, 1.0),
        colour_jitter=0.0,
        grey_probability=0.0,
        invert_probability=0.0,
        blur_probability=0.5,
    )
    images = [rectangle_sample(config, seed)["image"][..., 0].astype(int) for seed in range(40)]
    steps = np.array([np.abs(np.diff(image)).max() for image in images])
    assert 10 < np.sum(steps == 255 - 64) < 30 and steps.min() < 120
    assert all(image.min() >= 63 for image in images), "the picture goes on at its border"


@pytest.mark.parametrize("stretch", [-0.1, 1.5])
def test_a_stretch_out_of_range_is_refused(stretch):
    with pytest.raises(ValueError, match=r"stretch must be in \[0, 1\], got"):
        PipelineConfig(stretch=stretch)
