"""The losses against sums written out in NumPy, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.training.losses import (
    dice_loss,
    focal_loss,
    grouping_loss,
    mask_iou,
    matching_loss,
    prompt_losses,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 3, 6, 5)).astype(np.float32)
TARGET = (RNG.random((2, 6, 5)) > 0.6).astype(np.float32)


def test_focal_loss_is_the_papers_formula():
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    t = TARGET[:, None].astype(np.float64)
    pt = np.where(t == 1, p, 1 - p)
    alpha = np.where(t == 1, 0.25, 0.75)
    expected = (-alpha * (1 - pt) ** 2 * np.log(pt)).mean((-2, -1))
    np.testing.assert_allclose(focal_loss(LOGITS, TARGET[:, None]), expected, rtol=1e-5)


def test_focal_loss_without_focus_or_weights_is_cross_entropy():
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    t = TARGET[:, None]
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean((-2, -1))
    np.testing.assert_allclose(focal_loss(LOGITS, t, alpha=-1, gamma=0.0), expected, rtol=1e-5)


def test_dice_loss():
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    t = np.broadcast_to(TARGET[:, None], LOGITS.shape)
    expected = 1 - (2 * (p * t).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + t.sum((-2, -1)) + 1)
    np.testing.assert_allclose(dice_loss(LOGITS, TARGET[:, None]), expected, rtol=1e-5)
    sure = (TARGET * 2 - 1) * 50
    np.testing.assert_allclose(dice_loss(sure, TARGET), 0, atol=1e-6)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_logits_give_finite_losses_and_gradients(value):
    logits = jnp.full((4, 4), value)
    for loss in (focal_loss, dice_loss):
        grad = jax.grad(lambda x, f=loss: f(x, jnp.ones((4, 4))))(logits)
        assert np.isfinite(loss(logits, jnp.ones((4, 4))))
        assert np.isfinite(grad).all()


def test_iou_of_masks():
    a = jnp.array([[1.0, 1, -1, -1]])
    assert mask_iou(a, jnp.array([[1.0, 0, 1, 0]])) == pytest.approx(1 / 3)
    assert mask_iou(-jnp.ones((2, 2)), jnp.zeros((2, 2))) == 1.0


def test_only_the_best_mask_gets_gradient():
    good = (TARGET[0] * 2 - 1) * 4
    logits = jnp.stack([-good, good, 0 * good])
    iou = jnp.array([0.2, 0.5, 0.9])

    def total(logits, iou):
        return prompt_losses(logits, iou, jnp.asarray(TARGET[0]))["total"]

    grad, iou_grad = jax.grad(total, (0, 1))(logits, iou)
    assert np.abs(grad[1]).max() > 0
    assert np.abs(grad[0]).max() == np.abs(grad[2]).max() == 0
    np.testing.assert_allclose(iou_grad, [0, 2 * (0.5 - 1.0), 0], atol=1e-6)


def test_weights_of_the_paper():
    losses = prompt_losses(LOGITS[0], jnp.array([0.1, 0.2, 0.3]), jnp.asarray(TARGET[0]))
    expected = 20 * losses["focal"] + losses["dice"] + losses["iou_error"]
    np.testing.assert_allclose(losses["total"], expected, rtol=1e-6)


def test_iou_of_every_mask_is_trained_when_asked():
    iou = jnp.array([0.1, 0.2, 0.3])
    losses = prompt_losses(LOGITS[0], iou, jnp.asarray(TARGET[0]), iou_on_all=True)
    true = mask_iou(LOGITS[0], TARGET[0])
    np.testing.assert_allclose(losses["iou_error"], ((iou - true) ** 2).mean(), rtol=1e-5)


def test_where_all_masks_count_it_is_their_mean():
    logits, target = jnp.stack([LOGITS[0]] * 2), jnp.stack([jnp.asarray(TARGET[0])] * 2)
    iou = jnp.tile(jnp.array([0.1, 0.2, 0.3]), (2, 1))
    losses = prompt_losses(logits, iou, target, on_all=jnp.array([True, False]))
    one_by_one = [
        prompt_losses(LOGITS[0][k : k + 1], iou[0, k : k + 1], TARGET[0]) for k in (0, 1, 2)
    ]
    for name, (mean, least) in losses.items():
        each = np.array([one[name] for one in one_by_one])
        np.testing.assert_allclose(mean, each.mean(), rtol=1e-5)
        assert np.isclose(each, least, rtol=1e-5).any()


def test_grouping_loss_falls_as_a_masks_pixels_become_alike():
    target = np.zeros((1, 2, 16, 16), np.float32)
    target[0, 0, :8, :8], target[0, 1, 8:, 4:] = 1, 1
    content = np.ones((1, 1, 16, 16), bool)
    noise = jax.random.normal(jax.random.key(0), (1, 4, 4, 6))
    grouped = noise * 0.05
    grouped = grouped.at[0, :2, :2, 0].add(3.0).at[0, 2:, 1:, 1].add(3.0)
    apart = grouping_loss(noise, target, content)
    together = grouping_loss(grouped, target, content)
    assert apart.shape == (1, 2)
    assert (together < 0.25 * apart).all()


def test_grouping_loss_leaves_out_what_is_no_photo():
    target = np.zeros((1, 1, 8, 8), np.float32)
    target[0, 0, :4, :4] = 1
    content = np.zeros((1, 1, 8, 8), bool)
    content[..., :6, :] = True
    a = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    b = a.at[:, 3].set(100.0)
    np.testing.assert_allclose(
        grouping_loss(a, target, content), grouping_loss(b, target, content), rtol=1e-5
    )


def test_grouping_loss_by_given_directions_asks_for_those():
    """With each mask's own mean as direction it is the same loss; with another's it is larger."""
    rng = np.random.default_rng(0)
    target = np.zeros((1, 2, 16, 16), np.float32)
    target[0, 0, :8], target[0, 1, 8:] = 1, 1
    embedding = rng.normal(size=(1, 4, 4, 6)).astype(np.float32)
    embedding[0, :2] += np.float32([3, 0, 0, 0, 0, 0])
    content = np.ones((1, 1, 16, 16), bool)
    x = embedding.reshape(16, 6) - embedding.reshape(16, 6).mean(0)
    x /= np.sqrt((x * x).sum(-1, keepdims=True) + 1e-3)
    own = np.stack([x[:8].sum(0), x[8:].sum(0)])[None]
    plain = grouping_loss(embedding, target, content)
    np.testing.assert_allclose(grouping_loss(embedding, target, content, own), plain, rtol=1e-4)
    other = grouping_loss(embedding, target, content, own[:, ::-1])
    assert (np.asarray(other) > 2 * np.asarray(plain)).all()


def test_matching_loss_tells_each_masks_token_from_the_others():
    """Low for the own tokens, higher for one token for all, and blind to masks that are absent."""
    rng = np.random.default_rng(0)
    target = np.zeros((2, 3, 16, 16), np.float32)
    target[:, 0, :8], target[:, 1, 8:, :8] = 1, 1
    valid = np.array([[True, True, False]] * 2)
    embedding = 0.01 * rng.normal(size=(2, 4, 4, 6)).astype(np.float32)
    own = np.zeros((2, 3, 6), np.float32)
    for image in range(2):
        for mask, where in enumerate((np.s_[:2], np.s_[2:, :2])):
            own[image, mask, 2 * image + mask] = 1
            embedding[image][where] += 3 * own[image, mask]
    content = np.ones((2, 1, 16, 16), bool)

    low = np.asarray(matching_loss(embedding, target, content, own, valid))
    assert (low < 0.01).all() and not low[~valid].any()
    alike = np.ones_like(own)
    same = np.asarray(matching_loss(embedding, target, content, alike, valid))
    assert same[valid].min() > 0.5
    wrong = np.asarray(matching_loss(embedding, target, content, own[::-1], valid))
    assert wrong[valid].min() > 5
    strange = own.copy()
    strange[:, 2] = 7  # of masks that are not there
    np.testing.assert_array_equal(matching_loss(embedding, target, content, strange, valid), low)
