"""The click simulator against one that is slow and plain, and first clicks by chance."""

from __future__ import annotations

import types

import numpy as np
import pytest

from sam_jax.evaluation import clicks
from sam_jax.evaluation.clicks import Protocol
from sam_jax.ops.rle import encode

HW = (11, 16)


def slow_deepest(region):
    """The squared distance and place of the pixel of a region that is farthest from what is not.

    All pairs of pixels are looked at; what lies beyond the picture is outside. Of equals the first
    in reading order.
    """
    height, width = region.shape
    outside = [
        (y, x)
        for y in range(-1, height + 1)
        for x in range(-1, width + 1)
        if not (0 <= y < height and 0 <= x < width and region[y, x])
    ]
    best, at = 0, None
    for y in range(height):
        for x in range(width):
            if region[y, x]:
                depth = min((y - v) ** 2 + (x - u) ** 2 for v, u in outside)
                if depth > best:
                    best, at = depth, (x, y)
    return best, at


def slow_session(true, answers):
    """Clicks and labels on one mask, given what the model answers to each."""
    points, labels = [slow_deepest(true)[1]], [1]
    for answer in answers:
        missing, missing_at = slow_deepest(true & ~answer)
        surplus, surplus_at = slow_deepest(answer & ~true)
        if missing == surplus == 0:
            points.append(slow_deepest(true)[1])
            labels.append(1)
        elif missing > surplus:
            points.append(missing_at)
            labels.append(1)
        else:
            points.append(surplus_at)
            labels.append(0)
    return points, labels


class Scripted:
    """Answers round after round with given masks bool [R, N, H, W]."""

    def __init__(self, rounds):
        self.rounds, self.calls = rounds, []

    def predict(self, embedding, points, labels, mask_logits=None, multimask=True):
        self.calls.append((np.array(points), np.array(labels), mask_logits, multimask))
        masks = self.rounds[len(self.calls) - 1][:, None]
        scores = np.ones((len(masks), 1), np.float32)
        if multimask:  # the first answer is the likeliest of three
            masks = np.concatenate([masks, ~masks, masks & False], 1)
            scores = np.tile(np.float32([0.8, 0.3, 0.1]), (len(masks), 1))
        return types.SimpleNamespace(masks=masks, scores=scores, logits=masks * 2.0 - 1)


def random_masks(rng, count):
    """Blobs, noise, rectangles with ties, and the whole picture; none of them empty."""
    made = []
    for k in range(count):
        mask = rng.random(HW) < (0.3, 0.6, 0.9)[k % 3]
        if k % 4 == 1:
            y, x = rng.integers(0, 5, 2)
            mask = np.zeros(HW, bool)
            mask[y : y + 4, x : x + 6] = mask[6:10, 9:15] = True
        if k % 7 == 6:
            mask[:] = True
        mask[rng.integers(HW[0]), rng.integers(HW[1])] = True
        made.append(mask)
    return np.array(made)


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_a_slow_one(seed):
    rng, count, number = np.random.default_rng(seed), 24, 5
    true = random_masks(rng, count)
    rounds = np.array([random_masks(rng, count) for _ in range(number)])
    rounds[1, :6] = true[:6]  # perfect: no error is left
    rounds[2, 6:9] = False  # nothing found
    rounds[0, 9:12] = np.roll(true[9:12], 1, 2)  # equal errors on both sides
    model = Scripted(rounds)
    firsts = clicks.first_clicks(true, Protocol(), "x", range(count))
    clicked = clicks.click(model, None, true, number, firsts)
    ties = 0
    for i in range(count):
        points, labels = slow_session(true[i], rounds[: number - 1, i])
        assert clicked.points_xy[i].tolist() == [list(point) for point in points]
        assert clicked.labels[i].tolist() == labels
        for answer in rounds[: number - 1, i]:
            depths = slow_deepest(true[i] & ~answer)[0], slow_deepest(answer & ~true[i])[0]
            ties += depths[0] == depths[1] > 0
        for name, answer in (("1", rounds[0, i]), ("5", rounds[4, i])):
            union = (answer | true[i]).sum()
            assert clicked.ious[name][i] == (answer & true[i]).sum() / union
        inverse = ~rounds[0, i]
        best = max((m & true[i]).sum() / (m | true[i]).sum() for m in (rounds[0, i], inverse))
        assert clicked.ious["1 oracle"][i] == best
    assert ties > 3, "ties are among them"
    np.testing.assert_array_equal(clicked.first, rounds[0])
    assert set(clicked.ious) == {"1", "1 oracle", "2", "3", "5"}


def test_the_model_gets_its_last_mask_and_gives_one():
    rng = np.random.default_rng(0)
    true = random_masks(rng, 3)
    model = Scripted(np.array([random_masks(rng, 3) for _ in range(3)]))
    clicks.click(model, None, true, 3, clicks.first_clicks(true, Protocol(), "x", range(3)))
    assert [call[3] for call in model.calls] == [True, False, False]
    assert [call[0].shape for call in model.calls] == [(3, 1, 2), (3, 2, 2), (3, 3, 2)]
    assert model.calls[0][2] is None
    for k in (1, 2):
        np.testing.assert_array_equal(model.calls[k][2], model.rounds[k - 1] * 2.0 - 1)


def test_clicks_can_be_replayed():
    rng = np.random.default_rng(1)
    true = random_masks(rng, 4)
    first = Scripted(np.array([random_masks(rng, 4) for _ in range(4)]))
    firsts = clicks.first_clicks(true, Protocol(), "x", range(4))
    made = clicks.click(first, None, true, 4, firsts)
    second = Scripted(np.array([random_masks(rng, 4) for _ in range(4)]))
    again = clicks.click(second, None, true, 4, firsts, (made.points_xy, made.labels))
    np.testing.assert_array_equal(again.points_xy, made.points_xy)
    for k in range(4):
        np.testing.assert_array_equal(second.calls[k][0], first.calls[k][0])
        np.testing.assert_array_equal(second.calls[k][1], first.calls[k][1])


def test_random_first_clicks_are_uniform_and_depend_on_name_number_and_seed_alone():
    mask = np.zeros(HW, bool)
    mask[2:4, 3:5] = mask[8, 8] = True
    many = np.tile(mask, (3000, 1, 1))
    protocol = Protocol(first="random")
    points = clicks.first_clicks(many, protocol, "a", range(3000))
    places, counts = np.unique(points, axis=0, return_counts=True)
    assert sorted(map(tuple, places.tolist())) == [(3, 2), (3, 3), (4, 2), (4, 3), (8, 8)]
    assert np.abs(counts - 600).max() < 100  # 4.5 standard deviations
    np.testing.assert_array_equal(
        clicks.first_clicks(many[:7], protocol, "a", range(40, 47)), points[40:47]
    )
    others = (
        clicks.first_clicks(many, protocol, "b", range(3000)),
        clicks.first_clicks(many, Protocol(first="random", seed=1), "a", range(3000)),
    )
    assert all((other != points).any(1).mean() > 0.7 for other in others)


def test_empty_masks_are_left_out_and_numbers_stay():
    masks = np.zeros((20, *HW), bool)
    masks[[0, *range(2, 20)], 3, 4] = True
    record = {"name": "r", "index": 7, "image": None, "rles": [encode(mask) for mask in masks]}
    parts = list(clicks.true_masks(record))
    assert [len(numbers) for numbers, _ in parts] == [16, 3]
    assert [n for numbers, _ in parts for n in numbers] == [0, *range(2, 20)]
    np.testing.assert_array_equal(np.concatenate([m for _, m in parts]), masks[masks.any((1, 2))])
    facts = clicks.facts_of(record, [2], masks[2:3], np.array([[4, 3]]))
    assert facts == [{"image": "r", "record": 7, "mask": 2, "area": 1, "x": 4, "y": 3}]
