"""Automatic masks; what the released generator gives is compared in tests/test_compat.py."""

from __future__ import annotations

import dataclasses
import resource

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.inference import views
from sam_jax.inference.candidates import Candidates, Counts, clean_mask, clean_regions
from sam_jax.inference.generator import MaskGenerator
from sam_jax.inference.predictor import Predictor
from sam_jax.inference.presets import PRESETS
from sam_jax.ops import rle
from sam_jax.ops.masks import mask_boxes
from sam_jax.ops.regions import drop_small_islands, fill_small_holes
from tests.small import photo, small_sam

LOOSE = dict(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(small_sam(), cache=False)


def test_records(predictor):
    records = MaskGenerator(predictor, **LOOSE).generate(photo((50, 81)))
    assert len(records) == 48  # 16 points, 3 masks each, nothing filtered
    for record in records:
        mask = record["segmentation"]
        assert mask.shape == (50, 81) and mask.dtype == bool
        assert record["area"] == mask.sum() and record["crop_box"] == [0, 0, 81, 50]
        x0, y0, x1, y1 = mask_boxes(mask).tolist()
        assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)
    points = {tuple(record["point_coords"][0]) for record in records}
    expected = {((i + 0.5) / 4 * 81, (j + 0.5) / 4 * 50) for i in range(4) for j in range(4)}
    np.testing.assert_allclose(sorted(points), sorted(expected))


def test_the_points_masks_are_the_predictor_s(predictor):
    image = photo((50, 81))
    record = MaskGenerator(predictor, **LOOSE).generate(image)[5]
    out = predictor.predict(predictor.embed(image), record["point_coords"])
    k = int(np.abs(out.scores - record["predicted_iou"]).argmin())
    np.testing.assert_allclose(out.scores[k], record["predicted_iou"], atol=1e-5)
    assert (out.masks[k] != record["segmentation"]).mean() < 1e-4


def test_forms_of_output_hold_the_same_masks(predictor):
    image = photo((50, 81))
    masks, plain, coco = (
        MaskGenerator(predictor, **LOOSE, output_mode=mode).generate(image)
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    for a, b, c in zip(masks, plain, coco, strict=True):
        assert isinstance(b["segmentation"]["counts"], list)
        assert isinstance(c["segmentation"]["counts"], str)
        np.testing.assert_array_equal(rle.decode(b["segmentation"]), a["segmentation"])
        np.testing.assert_array_equal(rle.decode(c["segmentation"]), a["segmentation"])


def test_thresholds_filter(predictor):
    image = photo((50, 81))
    everything = MaskGenerator(predictor, **LOOSE).generate(image)
    scores = sorted(record["predicted_iou"] for record in everything)
    limit = scores[-8]
    assert limit > 0  # 0 and less mean no limit
    above = MaskGenerator(predictor, **{**LOOSE, "pred_iou_thresh": limit}).generate(image)
    assert len(above) == sum(score > limit for score in scores)  # strictly
    for one, same in zip(above, everything, strict=False):  # both by descending score
        np.testing.assert_array_equal(one["segmentation"], same["segmentation"])
    stable = [record["stability_score"] for record in everything]
    limit = sorted(stable)[20]
    kept = MaskGenerator(predictor, **{**LOOSE, "stability_score_thresh": limit}).generate(image)
    assert len(kept) == sum(score >= limit for score in stable)
    assert MaskGenerator(predictor, **{**LOOSE, "pred_iou_thresh": 99.0}).generate(image) == []


def test_crops(predictor):
    records = MaskGenerator(predictor, **LOOSE, crop_n_layers=1, crop_nms_thresh=1.0).generate(
        photo((200, 300))
    )
    boxes = {tuple(record["crop_box"]) for record in records}
    assert (0, 0, 300, 200) in boxes and all(w in (184, 300) for _, _, w, _ in boxes)
    # Smaller crops come first, and none of their masks touches an inner edge of its crop.
    areas = [record["crop_box"][2] * record["crop_box"][3] for record in records]
    assert areas == sorted(areas)
    for record in records:
        x, y, w, h = record["crop_box"]
        mask = record["segmentation"]
        assert mask.shape == (200, 300) and mask[y : y + h, x : x + w].sum() == record["area"]


def test_a_list_of_photos_on_all_devices_is_each_alone(predictor):
    assert len(jax.local_devices()) == 8
    photos = [photo((50 + 9 * i, 81 - 7 * i), i) for i in range(5)]
    for changes in ({}, {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}):
        generator = MaskGenerator(predictor, **{**LOOSE, "box_nms_thresh": 0.9}, **changes)
        one_device = MaskGenerator(predictor, **{**LOOSE, "box_nms_thresh": 0.9}, **changes)
        one_device._model = lambda photos: predictor.compiled
        together, counts = generator.generate(photos, with_counts=True)
        assert generator._spread.devices == 8 and len(together) == len(counts) == 5
        for image, records, count in zip(photos, together, counts, strict=True):
            alone, own = one_device.generate(image, with_counts=True)
            assert own == count and len(alone) == len(records) > 0
            for a, b in zip(alone, records, strict=True):
                np.testing.assert_array_equal(a.pop("segmentation"), b.pop("segmentation"))
                assert a == b


def test_counts_say_what_became_of_every_mask(predictor):
    image = photo((200, 300))
    arguments = dict(
        points_per_side=4,
        stability_score_offset=0.05,
        box_nms_thresh=0.8,
        crop_n_layers=1,
        min_mask_region_area=30,
    )
    seen = set()
    for pred_iou, stability in ((0.01, 0.5), (0.0, 0.0)):
        generator = MaskGenerator(
            predictor, pred_iou_thresh=pred_iou, stability_score_thresh=stability, **arguments
        )
        records, counts = generator.generate(image, with_counts=True)
        assert counts.masks == 5 * 16 * 3 and counts.kept == len(records)
        dropped = dataclasses.asdict(counts)
        assert dropped.pop("masks") == sum(dropped.values())
        seen |= {name for name, count in dropped.items() if count}
    assert seen == {"low_predicted_iou", "unstable", "at_crop_edge", "duplicates_in_crop", "kept"}


def test_masks_of_nearly_everything_may_be_left_out(predictor):
    image = photo((50, 81))
    everything = MaskGenerator(predictor, **LOOSE).generate(image)
    areas = sorted(record["area"] / image[..., 0].size for record in everything)
    limit = areas[len(areas) // 2]
    generator = MaskGenerator(predictor, **LOOSE, max_area_ratio=limit)
    kept, counts = generator.generate(image, with_counts=True)
    assert len(kept) == sum(area < limit for area in areas)
    assert counts.too_large == len(everything) - len(kept) > 0


def test_presets():
    sam = small_sam()
    for name, arguments in PRESETS.items():
        generator = MaskGenerator.preset(sam, name, points_per_side=8)
        assert len(generator.point_grids[0]) == 64
        assert generator.crop_n_layers == arguments.get("crop_n_layers", 0)
    generator = MaskGenerator.preset(sam, "sa1b")
    assert [len(grid) for grid in generator.point_grids] == [1024, 256, 64]
    assert generator.limits.max_area_ratio == 0.95 and generator.min_mask_region_area == 100
    assert MaskGenerator(sam).limits.max_area_ratio == 1.0
    with pytest.raises(ValueError, match="expected one of default, dense"):
        MaskGenerator.preset(sam, "best")


@pytest.mark.parametrize("hw", [(1, 1), (2, 300), (1, 64)])
def test_photos_of_a_few_pixels(predictor, hw):
    records = MaskGenerator(predictor, **LOOSE, crop_n_layers=2).generate(photo(hw))
    assert all(record["segmentation"].shape == hw for record in records) and records


def test_grids_without_points_and_one_point_at_a_time(predictor):
    image = photo((50, 81))
    none = {**LOOSE, "points_per_side": None, "point_grids": [np.zeros((0, 2))]}
    assert MaskGenerator(predictor, **none).generate(image) == []
    one_by_one = MaskGenerator(predictor, **LOOSE, points_per_batch=1).generate(image)
    assert len(one_by_one) == 48


def test_points_that_are_decoded_at_the_same_time_keep_their_places(predictor):
    model, features = predictor.compiled, predictor.embed(photo((50, 81))).features
    points = np.random.default_rng(0).uniform(0, 60, (1, 64, 2))
    together = model.decode_points(features, points, 1)
    parts = [model.decode_points(features, points[:, i : i + 4], 1) for i in range(0, 64, 4)]
    for whole, part in zip(together, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(part, 1))
        assert len(np.unique(np.asarray(whole)[0].sum(-1))) >= 64


def test_masks_of_points_without_a_likely_one_are_not_computed_on_a_cpu(predictor):
    model, features = predictor.compiled, predictor.embed(photo((50, 81))).features
    points = np.random.default_rng(0).uniform(0, 60, (1, 4, 2))
    logits, scores = (np.asarray(x) for x in model.decode_points(features, points, 1))
    least = float(np.sort(scores[0].max(1))[1])  # two points of four have nothing above it
    some, same = (np.asarray(x) for x in model.decode_points(features, points, 1, least))
    np.testing.assert_array_equal(same, scores)
    likely = (scores > least).any(2)
    assert likely.sum() == 2
    np.testing.assert_array_equal(some[likely], logits[likely])
    assert not some[~likely].any() and logits[~likely].any()


def test_a_float64_threshold_is_compared_as_float32_throughout(predictor):
    image = photo((50, 81))
    scores = [
        record["predicted_iou"] for record in MaskGenerator(predictor, **LOOSE).generate(image)
    ]
    limit = np.float64(scores[7]) - 1e-9  # in float32 the score itself
    records = MaskGenerator(predictor, **{**LOOSE, "pred_iou_thresh": limit}).generate(image)
    assert len(records) == sum(score > scores[7] for score in scores)


def test_frozen_variables_are_taken():
    sam = small_sam()
    frozen = dataclasses.replace(sam, params=flax.core.freeze(sam.params))
    image = photo((50, 81))
    ours, theirs = (MaskGenerator(Predictor(x, cache=False), **LOOSE) for x in (frozen, sam))
    for one, same in zip(ours.generate(image), theirs.generate(image), strict=True):
        np.testing.assert_array_equal(one["segmentation"], same["segmentation"])


def test_only_likely_masks_leave_an_accelerator():
    logits = jnp.arange(5 * 3 * 2 * 2, dtype=jnp.float32).reshape(1, 5, 3, 2, 2)
    rows = np.array([[4, 2], [0, 1], [3, 0]])
    gathered = np.asarray(views._gather(logits, rows))
    np.testing.assert_array_equal(gathered, np.asarray(logits)[0, rows[:, 0], rows[:, 1]])
    decoded = views.Decoded(logits, jnp.zeros((1, 5, 3)))
    np.testing.assert_array_equal(np.stack(list(decoded.logits(rows))), gathered)


def test_the_memory_of_small_masks_of_a_large_photo():
    # Only the columns of a mask are touched: 200 masks of 24 MB each fit easily.
    mask = {"size": [4000, 6000], "counts": [4000 * 3000, 4000 * 10, 4000 * 2990]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    masks = [rle.decode(mask) for _ in range(200)]
    masks[0][5, 5] = True  # they are arrays like any other
    assert all(m[:, 3000:3010].all() for m in masks)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1.2e6  # kB; they are 4.8 GB


def table_of(masks, scores) -> Candidates:
    """Candidates of a photo that is one crop."""
    return Candidates(
        np.array(scores, np.float32),
        np.ones(len(masks), np.float32),
        np.array([mask_boxes(mask) for mask in masks]),
        np.zeros((len(masks), 2)),
        np.tile([0, 0, *masks[0].shape[::-1]], (len(masks), 1)),
        [rle.uncompressed(mask) for mask in masks],
    )


def test_cleaned_regions_lose_against_clean_ones():
    disc = np.hypot(*(np.mgrid[:40, :40] - 20)) < 15
    holed = disc.copy()
    holed[20, 20] = False
    speck = np.zeros((40, 40), bool)
    speck[2, 2] = True
    counts = Counts()
    both = table_of([holed | speck, disc], [0.99, 0.9])
    kept = clean_regions(both, 10, 0.7, counts)
    assert (
        len(kept) == 1
        and kept.scores[0] == np.float32(0.9)
        and counts.duplicates_after_cleaning == 1
    )
    alone = clean_regions(both.take(np.array([0])), 10, 0.7, counts)
    np.testing.assert_array_equal(rle.decode(alone.masks[0]), disc)
    np.testing.assert_array_equal(alone.boxes_xyxy[0], mask_boxes(disc))


@pytest.mark.parametrize("seed", range(40))
def test_cleaning_a_mask_s_surroundings_is_cleaning_the_photo(seed):
    rng = np.random.default_rng(seed)
    hw = rng.integers(1, 30, 2)
    mask = rng.random(hw) < rng.choice([0.05, 0.5, 0.9])
    y, x = (int(rng.integers(0, n)) for n in hw)
    mask[: rng.integers(0, y + 1)], mask[:, x + rng.integers(1, 30) :] = False, False
    area = int(rng.choice([2, 10, 60]))
    whole, filled = fill_small_holes(mask, area)
    whole, dropped = drop_small_islands(whole, area)
    cleaned = clean_mask(rle.uncompressed(mask), mask_boxes(mask), area)
    if not (filled or dropped):
        assert cleaned is None
    else:
        np.testing.assert_array_equal(rle.decode(cleaned[0]), whole)
        np.testing.assert_array_equal(cleaned[1], mask_boxes(whole))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(points_per_side=None), "exactly one"),
        (dict(point_grids=[np.zeros((1, 2))]), "exactly one"),
        (dict(points_per_side=None, point_grids=[np.zeros((1, 2))], crop_n_layers=1), "2 layers"),
        (dict(points_per_side=None, point_grids=[np.zeros((1, 3))]), "point_grids"),
        (dict(points_per_side=0), "points_per_side"),
        (
            dict(points_per_side=2, crop_n_layers=2, crop_n_points_downscale_factor=2),
            "points_per_side",
        ),
        (dict(points_per_batch=0), "points_per_batch"),
        (dict(points_per_side=2.5), "points_per_side"),
        (dict(crop_n_layers=1, crop_n_points_downscale_factor=0), "downscale_factor"),
        (dict(pred_iou_thresh=float("nan")), "pred_iou_thresh"),
        (dict(output_mode="png"), "output_mode"),
        (dict(max_area_ratio=0.0), "max_area_ratio"),
    ],
)
def test_bad_arguments(predictor, arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskGenerator(predictor, **arguments)
