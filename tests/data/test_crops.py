"""Crops around masks."""

import numpy as np
import pytest

from sam_jax.data.crops import FILL, MIN_AREA, crop_object, crop_rng, large_enough
from sam_jax.data.sources import RecordError
from sam_jax.ops import rle

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(rows, columns, hw=(240, 320)):
    """A red rectangle, the mask, on blue."""
    mask = np.zeros(hw, bool)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return np.where(mask[..., None], RED, BLUE).astype(np.uint8), mask


def red_columns(crop):
    return np.flatnonzero(crop[..., 0].max(0) > 127)


def test_the_centred_crop_by_hand():
    # 100 x 100 pixels from (x, y) = (150, 60) on: the square has side 150 and corner (125, 35),
    # so that at 60 pixels the object is 40 wide, from 10 to 50; a patch is 10 pixels.
    image, mask = picture((60, 160), (150, 250))
    crop, inside = crop_object(image, mask, 60, 6)
    assert crop.shape == (60, 60, 3) and crop.dtype == np.uint8
    assert (crop[12:48, 12:48] == RED).all()
    outer = np.ones((60, 60), bool)
    outer[8:52, 8:52] = False
    assert (crop[outer] == BLUE).all()
    expected = np.zeros((6, 6), bool)
    expected[1:5, 1:5] = True
    np.testing.assert_array_equal(inside, expected)
    again, inside_again = crop_object(image, mask, 60, 6)
    np.testing.assert_array_equal(crop, again)
    np.testing.assert_array_equal(inside, inside_again)


def test_an_oblong_object_keeps_its_shape():
    # 160 x 80 pixels: side 240, so 40 x 20 of 60 pixels and 4 x 2 of 6 patches.
    image, mask = picture((80, 160), (80, 240))
    crop, inside = crop_object(image, mask, 60, 6)
    red = crop[..., 0] > 127
    np.testing.assert_array_equal(np.flatnonzero(red.any(0)), np.arange(10, 50))
    np.testing.assert_array_equal(np.flatnonzero(red.any(1)), np.arange(20, 40))
    expected = np.zeros((6, 6), bool)
    expected[2:4, 1:5] = True
    np.testing.assert_array_equal(inside, expected)


def test_beyond_the_photo_is_blank():
    image, mask = picture((0, 100), (220, 320))  # the upper right corner
    crop, inside = crop_object(image, mask, 60, 6)
    assert (crop[:8] == FILL).all() and (crop[:, 52:] == FILL).all()
    assert (crop[12:48, 12:48] == RED).all() and (crop[52:, :48] == BLUE).all()
    assert inside.sum() == 16 and inside[1:5, 1:5].all()
    # CLIP's mean (its preprocessing): nothing is left of it after normalisation.
    mean = 255 * np.array([0.48145466, 0.4578275, 0.40821073])
    assert np.abs(np.array(FILL) - mean).max() <= 0.5


def test_surroundings_are_blanked_half_of_the_time():
    image, mask = picture((60, 160), (150, 250))
    blanked = 0
    for k in range(200):
        crop, inside = crop_object(image, mask, 60, 6, crop_rng(0, 0, 0, k + 1), growth=(1.5, 1.5))
        assert (crop[12:48, 12:48] == RED).all() and inside.sum() == 16
        corner = tuple(crop[0, 0].tolist())
        assert corner in (FILL, BLUE)
        assert (crop[:8] == corner).all() and (crop[52:] == corner).all()
        blanked += corner == FILL
    assert 80 <= blanked <= 120
    for probability, colour in ((0.0, BLUE), (1.0, FILL)):
        rng = np.random.default_rng(0)
        crop, _ = crop_object(image, mask, 60, 6, rng, blank_probability=probability)
        assert crop[0, 0].tolist() == list(colour)


def test_only_the_mask_is_left_of_a_blanked_crop():
    image, mask = picture((60, 160), (150, 250))
    mask[60:110, 150:200] = False  # its upper left quarter, red still, is no part of the object
    rng = np.random.default_rng(0)
    crop, inside = crop_object(image, mask, 60, 6, rng, growth=(1.5, 1.5), blank_probability=1.0)
    assert (crop[12:28, 12:28] == FILL).all()
    assert (crop[32:48, 12:48] == RED).all() and (crop[12:48, 32:48] == RED).all()
    assert inside.sum() == 12 and not inside[1:3, 1:3].any()


def test_squares_grow_by_one_to_two():
    image, mask = picture((60, 160), (150, 250))
    shares, middles = [], []
    for k in range(1, 120):
        crop, _ = crop_object(image, mask, 100, 10, crop_rng(1, 0, 0, k))
        columns = red_columns(crop)
        shares.append(100 / len(columns))
        middles.append((columns[0] + columns[-1] + 1) / 2)
    assert 0.98 <= min(shares) < 1.05 and 1.95 < max(shares) <= 2.02
    assert abs(np.mean(shares) - 1.5) < 0.1
    assert np.abs(np.array(middles) - 50).max() <= 1


def test_an_object_of_one_pixel():
    image, mask = picture((7, 8), (0, 1), hw=(9, 5))
    crop, inside = crop_object(image, mask, 48, 4)
    # The square's side is 1.5 pixels: the pixel covers the patches in the middle and a third of
    # the ones beside them.
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(inside, expected)
    assert crop[24, 24, 0] > 150 > crop[24, 47, 0]


def test_specks_and_lines_have_patches():
    mask = np.zeros((240, 320), bool)
    mask[3, 5] = mask[203, 305] = True
    image = np.zeros((240, 320, 3), np.uint8)
    _, inside = crop_object(image, mask, 48, 6)
    # The square has side 451.5 and corner (-70.25, -122.25); a patch is 75.25 pixels.
    assert sorted(zip(*(v.tolist() for v in np.nonzero(inside)), strict=True)) == [(1, 1), (4, 4)]
    line = np.zeros((240, 320), bool)
    line[:, 160] = True  # its middle is the border between two columns of patches
    _, inside = crop_object(image, line, 48, 6)
    expected = np.zeros((6, 6), bool)
    expected[1:5, 2:4] = True
    np.testing.assert_array_equal(inside, expected)


def test_variants_are_told_apart_and_can_be_drawn_again():
    image, mask = picture((60, 160), (150, 250))
    crops = [crop_object(image, mask, 60, 6, crop_rng(0, 5, 2, k))[0] for k in range(4)]
    again = crop_object(image, mask, 60, 6, crop_rng(0, 5, 2, 3))[0]
    np.testing.assert_array_equal(crops[3], again)
    assert len({crop.tobytes() for crop in crops}) == 4
    assert crop_rng(0, 5, 2, 0) is None
    draws = {crop_rng(*key).random() for key in ((0, 5, 2, 1), (1, 5, 2, 1), (0, 2, 5, 1))}
    assert len(draws) == 3
    with pytest.raises(ValueError, match="must not be negative, got 0, -1, 0 and 1"):
        crop_rng(0, -1, 0, 1)


def test_masks_of_enough_pixels():
    masks = [np.zeros((150, 200), bool) for _ in range(4)]
    for mask, pixels in zip(masks, (9_999, 10_000, 0, 30_000), strict=True):
        mask.reshape(-1)[:pixels] = True
    record = {"rles": [rle.encode(mask) for mask in masks], "name": "four"}
    assert MIN_AREA == 10_000
    assert large_enough(record) == [1, 3]
    assert large_enough(record, 9_999) == [0, 1, 3]
    assert large_enough(record, 0) == [0, 1, 3]
    record["rles"][1]["counts"] = "x"
    with pytest.raises(RecordError, match="four: mask 1: "):
        large_enough(record)


def test_bad_arguments():
    image, mask = picture((60, 160), (150, 250))
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\], got float64"):
        crop_object(image / 255, mask, 60, 6)
    with pytest.raises(ValueError, match=r"mask must be bool \(240, 320\).* got bool \(320, 240\)"):
        crop_object(image, mask.T, 60, 6)
    with pytest.raises(ValueError, match="mask must be bool .* got uint8"):
        crop_object(image, mask.astype(np.uint8), 60, 6)
    with pytest.raises(ValueError, match="empty"):
        crop_object(image, np.zeros_like(mask), 60, 6)
    with pytest.raises(ValueError, match="grid must divide size, got size=60 and grid=7"):
        crop_object(image, mask, 60, 7)
    with pytest.raises(ValueError, match=r"growth must be .* got \(0.5, 2\)"):
        crop_object(image, mask, 60, 6, growth=(0.5, 2))
