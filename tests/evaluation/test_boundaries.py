"""The boundary benchmark: thinning, matching, its numbers; by hand and as the official prints."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from sam_jax.evaluation.boundaries import (
    THRESHOLDS,
    Counts,
    Partners,
    best_f,
    count_image,
    f_measure,
    score,
    thin,
)


def slow_thin(mask):
    """Guo and Hall's conditions as they are written, a pixel at a time."""
    out = np.pad(mask, 1)
    while True:
        before = out.sum()
        for second in (False, True):
            gone = []
            for y, x in np.argwhere(out):
                ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
                n = [bool(out[y + dy, x + dx]) for dy, dx in ring]
                crossings = sum(
                    not n[2 * i] and (n[2 * i + 1] or n[(2 * i + 2) % 8]) for i in range(4)
                )
                one = sum(n[2 * k] or n[2 * k + 1] for k in range(4))
                two = sum(n[2 * k + 1] or n[(2 * k + 2) % 8] for k in range(4))
                blocked = (n[1] or n[2] or not n[7]) and n[0]
                if second:
                    blocked = (n[5] or n[6] or not n[3]) and n[4]
                if crossings == 1 and 2 <= min(one, two) <= 3 and not blocked:
                    gone.append((y, x))
            for y, x in gone:
                out[y, x] = False
        if out.sum() == before:
            return out[1:-1, 1:-1]


@pytest.mark.parametrize("seed", range(8))
def test_thinning_is_guo_and_halls(seed):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(23, 31)), 1 + seed % 3) > 0
    thinned = thin(mask)
    np.testing.assert_array_equal(thinned, slow_thin(mask))
    np.testing.assert_array_equal(thin(np.asfortranarray(mask)), thinned)
    eight = np.ones((3, 3))
    assert ndimage.label(thinned, eight)[1] == ndimage.label(mask, eight)[1], "nothing falls apart"


@pytest.mark.parametrize("seed", range(6))
def test_as_many_as_possible_have_a_partner(seed):
    rng = np.random.default_rng(seed)
    true, found = rng.random((15, 20)) < 0.12, rng.random((15, 20)) < 0.15
    radius = 2.5
    rows, columns = np.nonzero(found)
    matched = Partners(true, radius).match(rows, columns)
    ty, tx = np.nonzero(true)
    apart = np.hypot(rows[:, None] - ty, columns[:, None] - tx)
    cost = np.where(apart <= radius, 0, 1)
    chosen = linear_sum_assignment(cost)
    assert matched.sum() == (cost[chosen] == 0).sum()
    assert not matched[(apart > radius).all(1)].any()


def test_no_boundary_and_no_map():
    empty, line = np.zeros((10, 14), bool), np.zeros((10, 14), bool)
    line[4] = True
    assert not Partners(empty, 3.0).match(*np.nonzero(line)).any()
    assert Partners(line, 3.0).match(*np.nonzero(empty)).shape == (0,)
    counts = count_image(np.zeros((10, 14)), [line, empty])
    assert not counts.found_all.any() and not counts.true_found.any()
    assert (counts.true_all == 14).all()
    assert score([counts]).ods == score([counts]).ap == 0


def test_the_true_boundary_as_map_scores_exactly_one():
    true = np.zeros((40, 60), bool)
    true[10, 5:50] = true[10:30, 5] = True
    counts = count_image(thin(true).astype(float), [thin(true)])
    result = score([counts, counts])
    assert result.ods == result.ois == result.r50 == 1.0
    assert result.recall == result.precision == 1.0


def test_a_moved_boundary_by_hand():
    """A line of 60 pixels; the radius is 0.0075 * hypot(160, 120) = 1.5, so 1 matches and 2 not."""
    line = np.zeros((120, 160), bool)
    line[50, 20:80] = True
    for rows, matches in ((1, 60), (2, 0)):
        moved = np.roll(line, rows, 0)
        counts = count_image(moved.astype(float), [line])
        assert (counts.true_found == matches).all() and (counts.found_true == matches).all()
    half = np.roll(line, 1, 0)
    half[:, 50:] = False  # 30 pixels, all right; the line's pixel 50 matches none of them
    counts = count_image(half.astype(float), [line])
    assert counts.true_found[0] == 30 and counts.found_all[0] == 30
    assert best_f(THRESHOLDS, counts)[3] == pytest.approx(2 * 0.5 / 1.5)


def test_precision_counts_any_annotator_and_recall_all():
    one, two = (np.zeros((50, 50), bool) for _ in range(2))
    one[10, 5:45], two[30, 5:45] = True, True
    counts = count_image(one.astype(float), [one, two])
    assert counts.recall[0] == 0.5 and counts.precision[0] == 1.0


def test_numbers_of_two_images_by_hand():
    """Two thresholds; the second image is best at the other one."""
    thresholds = np.array([0.25, 0.75])
    a = Counts(*np.array([[8, 2], [10, 10], [8, 2], [16, 2]]))
    b = Counts(*np.array([[9, 5], [10, 10], [9, 5], [90, 5]]))
    result = score([a, b], thresholds)
    # OIS: a at 0.25 (F 0.615 against 0.333), b at 0.75 (0.667 against 0.18).
    assert result.ois == pytest.approx(f_measure(13 / 20, 13 / 21))
    assert result.ods > max(f_measure(17 / 20, 17 / 106), f_measure(7 / 20, 1.0))
    # Recall runs from 7/20 (precision 1) to 17/20 (17/106): AP by trapezoids at 0, 0.01, ... 1.
    at = [i / 100 for i in range(35, 86)]
    line = [1 + (17 / 106 - 1) * (r - 0.35) / 0.5 for r in at]
    assert result.ap == pytest.approx(sum(line) / 100, abs=1e-9)
    assert result.r50 == pytest.approx(0.35 + 0.5 * 0.5 / (1 - 17 / 106))


def test_another_size_is_named():
    with pytest.raises(ValueError, match=r"\(10, 14\)"):
        count_image(np.zeros((10, 14)), [np.zeros((9, 14), bool)])


@pytest.mark.shared
@pytest.mark.slow
def test_the_official_benchmark_is_reproduced(shared):
    """What it printed for gPb-owt-ucm, image by image, of every fourth of the 200 test images.

    Its numbers of all 200 came out within 0.002 when this test matched them all (six minutes).
    """
    from sam_jax.data.bsds import Bsds500, read_boundary_map

    root = shared / "bsds500"
    source = Bsds500(root)
    assert len(source) == 200
    counts = [
        count_image(
            read_boundary_map(root / "ucm2" / "test" / f"{record['name']}.mat"),
            record["boundaries"],
        )
        for record in map(source.__getitem__, range(0, 200, 4))
    ]
    each = np.loadtxt(root / "ucm2" / "test_eval" / "eval_bdry_img.txt")[::4, 4]
    own = np.array([best_f(THRESHOLDS, one)[3] for one in counts])
    assert (np.abs(own - each) < 0.01).mean() >= 0.95
    assert abs((own - each).mean()) < 0.002
