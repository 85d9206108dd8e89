"""Procedural scenes and pasted objects."""

import numpy as np
import pytest

from sam_jax.data.images import ImageError
from sam_jax.data.scene_layouts import draw, new_canvas
from sam_jax.data.scene_shapes import ellipse, rectangle
from sam_jax.data.scene_textures import Style, ramp
from sam_jax.data.scene_things import Node
from sam_jax.data.scenes import CutPaste, ProceduralScenes, _visible_masks
from sam_jax.ops import rle


def decoded(record):
    return np.stack([rle.decode(r) for r in record["rles"]])


def test_scenes_depend_on_seed_and_index_only():
    a, b = ProceduralScenes(size=128, seed=3), ProceduralScenes(length=50, size=128, seed=3)
    for index in (0, 7, 49):
        first, again = a[index], b[index]
        np.testing.assert_array_equal(first["image"], again["image"])
        assert first["rles"] == again["rles"] and first["name"] == f"scene:3:{index}"
    other = ProceduralScenes(size=128, seed=4)[0]
    assert (other["image"] != a[0]["image"]).mean() > 0.5
    assert (a[1]["image"] != a[0]["image"]).mean() > 0.5


def test_scenes_have_many_different_masks_of_enough_pixels():
    source = ProceduralScenes(size=256, seed=1)
    counts = []
    for index in range(12):
        record = source[index]
        assert record["image"].shape == (256, 256, 3) and record["image"].dtype == np.uint8
        masks = decoded(record)
        counts.append(len(masks))
        assert masks.shape[1:] == (256, 256)
        assert masks.sum((1, 2)).min() >= 30
        assert len({r["counts"] for r in record["rles"]}) == len(masks)
    assert np.mean(counts) > 15 and min(counts) >= 1


def test_masks_are_nested_or_disjoint():
    # One label map lies under all of them, and groups are trees.
    masks = decoded(ProceduralScenes(size=256, seed=1)[4]).reshape(-1, 256 * 256).astype(np.int64)
    together = masks @ masks.T
    area = np.diag(together)
    smaller = np.minimum(area[:, None], area[None, :])
    assert np.all((together == 0) | (together == smaller))


def flat(colour):
    return Style(ramp([np.array(colour, float)] * 2), "flat")


def test_visible_parts_and_wholes_by_hand():
    canvas = new_canvas(64)
    window = Node(rectangle(0.5, 0.5), flat((0, 255, 0)))
    house = Node(rectangle(1, 1), flat((255, 0, 0)), children=[window])
    draw(canvas, house, 16 * np.eye(2), np.array([24.0, 24.0]))  # pixels 8..39, window 16..31
    cover = Node(rectangle(1, 1), flat((0, 0, 255)))
    draw(canvas, cover, 8 * np.eye(2), np.array([32.0, 24.0]))  # x 24..39, y 16..31
    masks = {int(m.sum()): m for m in map(rle.decode, _visible_masks(canvas))}
    # window: 16 x 16 less its right half; house: 32 x 32 less the cover; the cover itself
    assert sorted(masks) == [128, 256, 1024 - 256]
    pixels = np.asarray(canvas.image)
    np.testing.assert_array_equal(masks[256], (pixels == (0, 0, 255)).all(2))
    np.testing.assert_array_equal(masks[128], (pixels == (0, 255, 0)).all(2))
    red = (pixels == (255, 0, 0)).all(2)
    np.testing.assert_array_equal(masks[768], red | masks[128])


def test_clipped_parts_stay_within_their_parent():
    canvas = new_canvas(64)
    spot = Node(ellipse(), flat((0, 255, 0)), at=(1.0, 0.0), clip=True)
    body = Node(rectangle(1, 1), flat((255, 0, 0)), children=[spot])
    draw(canvas, body, 10 * np.eye(2), np.array([30.0, 30.0]))
    half, whole = (rle.decode(r) for r in _visible_masks(canvas))
    assert whole.sum() == 400 and whole[20:40, 20:40].all()
    assert not (half & ~whole).any() and 0.45 < half.sum() / (np.pi * 100) < 0.52


def test_photographs_as_surfaces_change_the_scenes():
    photo = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    plain = ProceduralScenes(size=128)
    textured = ProceduralScenes(size=128, texture_photos=[photo])
    assert any((plain[i]["image"] != textured[i]["image"]).any() for i in range(3))
    with pytest.raises(ImageError, match="no such file"):
        ProceduralScenes(texture_photos=["absent.jpg"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="length must be at least 1"):
        ProceduralScenes(length=0)
    with pytest.raises(IndexError, match="got 5"):
        ProceduralScenes(length=5, size=64)[5]
    with pytest.raises(ValueError, match="at least one record"):
        CutPaste([])
    with pytest.raises(ValueError, match="size must be"):
        CutPaste(ProceduralScenes(), size=3)


def two_colour_photos():
    """Photo 0 is blue with a dark blue square; photo 1 is red with a disc and a part in it."""
    y, x = np.mgrid[:100, :120]
    square = (y >= 40) & (y < 80) & (x >= 30) & (x < 90)
    disc = (x - 60) ** 2 + (y - 50) ** 2 < 900
    part = (x - 60) ** 2 + (y - 50) ** 2 < 200
    first = np.where(square[..., None], (0, 0, 90), (0, 0, 255)).astype(np.uint8)
    second = np.where(disc[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)
    records = []
    for number, (image, masks) in enumerate([(first, [square]), (second, [disc, part])]):
        rles = [rle.encode(m) for m in masks]
        records.append({"image": image, "rles": rles, "name": str(number)})
    return records


def test_each_time_other_objects_are_pasted_on_a_photo():
    photos = two_colour_photos()
    source = CutPaste(photos, size=96, seed=5, length=4 * len(photos))
    images = [source[i]["image"] for i in range(0, len(source), len(photos))]  # of one photo
    assert len({image.tobytes() for image in images}) == 4


def test_pasted_objects_hide_what_is_under_them():
    source = CutPaste(two_colour_photos(), size=240, seed=0, length=40)
    assert len(source) == 40
    hidden = 0
    for index in range(0, 40, 2):  # photo 0 below
        record = source[index]
        assert record["image"].shape == (200, 240, 3)
        masks = decoded(record)
        assert masks.shape[1:] == (200, 240) and masks.sum((1, 2)).min() >= 30
        below = masks[0]
        assert not below[:80].any() and not below[160:].any()
        pasted = np.zeros_like(below) if len(masks) == 1 else masks[1:].any(0)
        hidden += 80 * 120 - int(below.sum())
        assert not (below & pasted).any()
        red = record["image"][..., 0] > 150  # only pasted discs are red
        assert (red & ~pasted).sum() <= 0.02 * max(1, red.sum())
    assert hidden > 0


def test_objects_come_from_the_donors_by_weight():
    """Photo 0 has a dark blue object, photo 1 a red one; no other is red."""
    photos = two_colour_photos()
    shares = []
    for weights in [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]:
        donors = [([photo], weight) for photo, weight in zip(photos, weights, strict=True)]
        source = CutPaste(photos[:1], size=96, seed=1, length=40, donors=donors)
        red = [(source[i]["image"][..., 0] > 150).any() for i in range(len(source))]
        shares.append(np.mean(red))
    assert shares[0] == 0 and 0.2 < shares[1] < 0.95 and shares[2] > 0.9
    with pytest.raises(ValueError, match="donors must hold at least one"):
        CutPaste(photos, donors=[([], 1.0)])


def test_pasting_is_deterministic():
    a, b = (CutPaste(two_colour_photos(), size=96, seed=5) for _ in range(2))
    np.testing.assert_array_equal(a[1]["image"], b[1]["image"])
    assert a[1]["rles"] == b[1]["rles"] and a[1]["name"] == "cutpaste:5:1:1"
