"""Suppression on the device against the rule box by box."""

from __future__ import annotations

import numpy as np
import pytest

from sam_jax.ops.boxes import box_area
from sam_jax.ops.nms import keep_sorted, nms


def test_nms_keeps_the_best_and_is_strict_at_the_threshold():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 9]]
    # IoU with the first: 0.5, 0, 0.9.
    np.testing.assert_array_equal(nms(boxes, [0.9, 0.8, 0.7, 0.95], 0.5), [3, 2])
    np.testing.assert_array_equal(nms(boxes, [0.95, 0.8, 0.7, 0.9], 0.5), [0, 1, 2])
    np.testing.assert_array_equal(nms(boxes, [0.95, 0.8, 0.7, 0.9], 0.49), [0, 2])


def test_nms_orders_ties_as_they_came_and_leaves_boxes_without_area():
    boxes = [[0, 0, 0, 0], [5, 5, 9, 9], [0, 0, 0, 0], [5, 5, 9, 9]]
    np.testing.assert_array_equal(nms(boxes, [1.0, 1.0, 1.0, 1.0], 0.7), [0, 1, 2])
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.7).shape == (0,)


def test_nms_against_the_plain_double_loop():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 60, (200, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 40, (200, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 20, 200) / 20  # many ties
    kept: list[int] = []
    for i in sorted(range(200), key=lambda i: (-scores[i], i)):
        for j in kept:
            last, first = np.minimum(boxes[i], boxes[j])[2:], np.maximum(boxes[i], boxes[j])[:2]
            wide, high = last - first
            shared = max(wide, 0) * max(high, 0)
            if shared / (box_area(boxes[i]) + box_area(boxes[j]) - shared) > 0.3:
                break
        else:
            kept.append(i)
    np.testing.assert_array_equal(nms(boxes, scores, 0.3), kept)
    assert 10 < len(kept) < 190


def greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """The rule as it is usually written, in float32."""
    boxes = np.asarray(boxes, np.float32)
    alive, kept = list(np.argsort(-np.asarray(scores, np.float32), kind="stable")), []
    while alive:
        best, rest = alive[0], np.array(alive[1:], int)
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        sides = np.maximum(sides - np.maximum(boxes[best, :2], boxes[rest, :2]), 0)
        shared = sides[:, 0] * sides[:, 1]
        union = box_area(boxes[best]) + box_area(boxes[rest]) - shared
        with np.errstate(invalid="ignore"):
            alive = [
                i for i, over in zip(rest, shared / union > threshold, strict=True) if not over
            ]
    return kept


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300, 1500])
def test_any_number_of_boxes(count):
    rng = np.random.default_rng(count)
    low, size = rng.integers(0, 200, (count, 2)), rng.integers(0, 90, (count, 2))
    boxes, scores = np.concatenate([low, low + size], 1), np.round(rng.random(count), 2)
    for threshold in (0.1, 0.7):
        np.testing.assert_array_equal(
            nms(boxes, scores, threshold), greedy(boxes, scores, threshold)
        )


def test_a_long_chain_and_small_blocks():
    # Each box suppresses the next one alone, so every second stays, however long the chain is.
    x = np.arange(64, dtype=np.float32) * 4
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1)
    valid = np.ones(64, bool)
    for block in (4, 16, 64):
        kept = np.asarray(keep_sorted(boxes, valid, np.float32(0.3), block=block))
        np.testing.assert_array_equal(kept, np.arange(64) % 2 == 0)
    valid[0] = False
    kept = np.asarray(keep_sorted(boxes, valid, np.float32(0.3), block=16))
    np.testing.assert_array_equal(kept, np.arange(64) % 2 == 1)
