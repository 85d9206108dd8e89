"""Bootstrap intervals: what they cover, that images are drawn and not masks."""

import numpy as np

from sam_jax.evaluation.intervals import bounds, half_width, resampled_means


def test_the_width_is_that_of_a_mean_of_images():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(100), 5)
    each = rng.normal(size=100)
    values = each[images]  # masks of an image are all alike: 100 numbers, not 500
    half = half_width(resampled_means(values, images))
    assert abs(half / (1.96 * each.std() / 10) - 1) < 0.1
    apart = half_width(resampled_means(values, np.arange(500)))
    assert apart < 0.6 * half


def test_it_covers_the_true_mean_95_times_of_100():
    rng, hits = np.random.default_rng(1), 0
    for k in range(300):
        values = rng.uniform(size=60)
        low, high = bounds(resampled_means(values, np.arange(60), resamples=400, seed=k))
        hits += low <= 0.5 <= high
    assert 0.91 <= hits / 300 <= 0.98


def test_columns_are_drawn_together_and_images_weigh_by_their_masks():
    values = np.array([[1.0, 10.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    drawn = resampled_means(values, ["a", "b", "b", "b"], resamples=500)
    assert drawn.shape == (500, 2)
    np.testing.assert_allclose(drawn[:, 1], 10 * drawn[:, 0])
    assert set(np.round(drawn[:, 0], 6)) == {0, 0.25, 1}  # both b; one of each; both a
    np.testing.assert_array_equal(drawn, resampled_means(values, ["a", "b", "b", "b"], 500))
    assert half_width(resampled_means(np.ones(3), ["x"] * 3)) == 0
