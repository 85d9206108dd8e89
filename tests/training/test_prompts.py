"""The click simulator: where clicks fall, what they are labelled, when there are none."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from sam_jax.ops.clicks import interior_distance
from sam_jax.training import prompts

SIDE, GRID = 64, 16
CELL = SIDE // GRID


def cells(points):
    return np.floor((np.asarray(points) + 0.5) / CELL).astype(int)


def test_points_are_uniform_over_the_region():
    region = np.zeros((GRID, GRID), bool)
    region[2:5, 7:9] = region[11, 3] = True
    keys = jax.random.split(jax.random.key(0), 7000)
    points = jax.vmap(lambda key: prompts.sample_point(key, jnp.asarray(region), SIDE))(keys)
    where = cells(points)
    assert region[where[:, 1], where[:, 0]].all()
    counts = np.bincount(where[:, 1] * GRID + where[:, 0], minlength=GRID**2).reshape(GRID, GRID)
    np.testing.assert_allclose(counts[region], 1000, rtol=0.15)
    within = np.asarray(points) + 0.5 - where * CELL
    np.testing.assert_allclose(within.mean(0), CELL / 2, atol=0.1)
    assert within.min() >= 0 and within.max() <= CELL


def test_first_click_of_a_mask_smaller_than_a_cell():
    target = jnp.zeros((GRID, GRID)).at[3, 9].set(0.2).at[3, 10].set(0.1)
    point = prompts.first_point(jax.random.key(1), target, SIDE)
    assert cells(point).tolist() == [9, 3]


def test_the_centre_is_where_evaluation_clicks():
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.normal(size=(40, GRID, GRID)), (0, 2, 2)) > 0.03
    blobs[0] = True  # the whole frame: its edge counts as the mask's
    points = prompts.centre_point(jnp.asarray(blobs, jnp.float32), SIDE)
    x, y = cells(points).T
    np.testing.assert_array_equal((np.asarray(points) + 0.5) % CELL, CELL / 2)
    for i, blob in enumerate(blobs):
        depth = ndimage.distance_transform_edt(np.pad(blob, 1))[1:-1, 1:-1]
        assert depth[y[i], x[i]] == interior_distance(blob)[0]


def test_the_centre_of_a_mask_smaller_than_a_cell():
    target = jnp.zeros((GRID, GRID)).at[3, 9].set(0.2).at[3, 10].set(0.1)
    assert cells(prompts.centre_point(target, SIDE)).tolist() == [9, 3]


def test_corrective_clicks_fall_on_errors_and_say_which():
    target = jnp.zeros((1, 2, GRID, GRID)).at[0, :, 2:6, 2:6].set(1.0)
    logits = jnp.full((1, 2, GRID, GRID), -3.0)
    logits = logits.at[0, 0, 2:6, 2:6].set(3.0).at[0, 0, 10:12, 10:12].set(3.0)  # surplus only
    logits = logits.at[0, 1, 2:6, 2:4].set(3.0)  # half is missing
    content = jnp.ones((1, 1, GRID, GRID), bool)
    for i in range(20):
        points, labels = prompts.corrective_click(jax.random.key(i), logits, target, content, SIDE)
        assert labels.tolist() == [[0, 1]]
        (x0, y0), (x1, y1) = cells(points)[0]
        assert 10 <= x0 < 12 and 10 <= y0 < 12
        assert 4 <= x1 < 6 and 2 <= y1 < 6


def test_a_perfect_mask_gets_a_background_click_on_the_photo():
    target = jnp.zeros((1, 1, GRID, GRID)).at[..., :8, :8].set(1.0)
    content = prompts.content_area(jnp.array([[32, 64]]), SIDE, GRID)
    assert int(content.sum()) == 8 * 16
    for i in range(20):
        point, label = prompts.corrective_click(
            jax.random.key(i), target * 2 - 1, target, content, SIDE
        )
        x, y = cells(point)[0, 0]
        assert int(label[0, 0]) == 0 and y < 8 <= x


def test_errors_on_the_padding_are_not_clicked():
    target = jnp.zeros((1, 1, GRID, GRID)).at[..., 0, 0].set(1.0)
    logits = jnp.full((1, 1, GRID, GRID), -1.0).at[..., 8:, :].set(1.0)  # surplus on the padding
    content = prompts.content_area(jnp.array([[32, 64]]), SIDE, GRID)
    point, label = prompts.corrective_click(jax.random.key(0), logits, target, content, SIDE)
    assert cells(point)[0, 0].tolist() == [0, 0] and int(label[0, 0]) == 1


def test_box_noise_is_bounded_by_the_side_and_by_pixels():
    boxes = jnp.tile(jnp.array([[20.0, 20, 30, 60], [100, 100, 500, 500]]), (1000, 1, 1))
    size = jnp.tile(jnp.array([[512, 512]]), (1000, 1))
    noisy = prompts.noisy_box(jax.random.key(0), boxes, size, 0.1, 10.0)
    moved = np.abs(np.asarray(noisy - boxes)).max(0)
    np.testing.assert_allclose(moved[0], [1, 4, 1, 4], rtol=0.02)
    np.testing.assert_allclose(moved[1], [10, 10, 10, 10], rtol=0.02)
    small = prompts.noisy_box(jax.random.key(0), boxes, jnp.full((1000, 2), 55), 0.1, 10.0)
    assert float(small.max()) == 54.0


def test_eleven_rounds_with_the_last_one_always_without_a_click():
    places = set()
    for i in range(200):
        clicked = np.asarray(prompts.click_schedule(jax.random.key(i), 8, 2))
        assert clicked.shape == (10,) and clicked.sum() == 8 and not clicked[-1]
        places.add(int(np.flatnonzero(~clicked)[0]))
    assert places == set(range(9))
    assert prompts.click_schedule(jax.random.key(0), 3, 0).all()


def test_noisy_texts_have_length_1_and_stay_near():
    text = jax.random.normal(jax.random.key(0), (20, 30, 64))
    text /= jnp.linalg.norm(text, axis=-1, keepdims=True)
    np.testing.assert_allclose(prompts.noisy_text(jax.random.key(1), text, 0.0), text, atol=1e-6)
    noisy = prompts.noisy_text(jax.random.key(1), text, 1.5)
    np.testing.assert_allclose(jnp.linalg.norm(noisy, axis=-1), 1, rtol=1e-5)
    cosines = (noisy * text).sum(-1)
    # A length of r at right angles turns by arctan r, and r is uniform in 0..1.5.
    r = np.linspace(0, 1.5, 1000)
    np.testing.assert_allclose(cosines.mean(), np.cos(np.arctan(r)).mean(), atol=0.03)
    assert cosines.min() > 0.3 and cosines.max() > 0.99
