"""Boxes that are also given as masks (`SamConfig.draw_boxes`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.checkpoint.load import Sam, load, save
from sam_jax.compat import SamPredictor, sam_model_registry
from sam_jax.inference.predictor import Predictor
from sam_jax.models.config import MOBILE_SAM, TINY
from sam_jax.models.prompt_encoder import EMPTY, Prompts, draw_boxes
from sam_jax.models.sam import SamModel
from tests.small import photo, small_sam

H, W = 45, 80


def prompts() -> Prompts:
    """A box after a point, a point, and a box with a mask; frame of 64 pixels, patches of 16."""
    points = np.zeros((1, 3, 4, 2), np.float32)
    labels = np.full((1, 3, 4), EMPTY, np.int32)
    points[0, 0, :3], labels[0, 0, :3] = [[30, 20], [9, 14], [46, 37]], [1, 2, 3]
    points[0, 1, :2], labels[0, 1, :2] = [[30, 20], [0, 0]], [1, -1]
    points[0, 2, 2:], labels[0, 2, 2:] = [[0, 0], [63, 63]], [2, 3]
    masks = np.full((1, 3, 16, 16), 7.0, np.float32)
    return Prompts(points, labels, masks, np.array([[False, False, True]]))


def test_the_cells_of_the_box_are_positive_and_no_other():
    drawn = draw_boxes(prompts(), (4, 4), 16)
    np.testing.assert_array_equal(drawn.has_mask, [[True, False, True]])
    centre = np.arange(16) * 4 + 2
    columns, rows = (centre > 9) & (centre < 47), (centre > 14) & (centre < 38)
    np.testing.assert_array_equal(drawn.masks[0, 0] > 0, rows[:, None] & columns)
    assert drawn.masks.dtype == np.float32 and np.abs(drawn.masks[0, 0]).max() == 10
    assert drawn.masks[0, 0, 4, 2] == 2.5  # row 18, column 10: a pixel inside the left edge
    np.testing.assert_array_equal(drawn.masks[0, 2], 7.0)  # its own mask stays


def test_without_other_masks():
    bare = Prompts(prompts().points, prompts().labels)
    drawn = draw_boxes(bare, (4, 4), 16)
    np.testing.assert_array_equal(drawn.has_mask, [[True, False, True]])
    assert (drawn.masks[0, 2] > 0).all()
    points = jax.tree.map(lambda x: x[:, 1:2], bare)
    assert draw_boxes(points, (4, 4), 16) is points


def test_traced_boxes_are_drawn_alike():
    traced = jax.jit(lambda p: draw_boxes(p, (4, 4), 16))(prompts())
    expected = draw_boxes(prompts(), (4, 4), 16)
    np.testing.assert_array_equal(traced.has_mask, expected.has_mask)
    np.testing.assert_array_equal(traced.masks[:, ::2], expected.masks[:, ::2])


@pytest.fixture(scope="module")
def drawing() -> Sam:
    sam = small_sam()
    config = sam.config.replace(draw_boxes=True)
    return Sam(SamModel(config), sam.params, config, "drawing")


def test_the_predictor_draws_what_a_user_would_give_as_a_mask(drawing):
    plain, predictor = Predictor(small_sam(), cache=False), Predictor(drawing, cache=False)
    embedding = plain.embed(photo((H, W)))
    box = [10, 5, 60, 40]
    corners = np.array([[[[8, 4], [48, 32]]]], np.float32)  # in the frame, 0.8 of the photo
    drawn = draw_boxes(Prompts(corners, np.array([[[2, 3]]], np.int32)), (4, 4), 16).masks[0, 0]
    given = plain.predict(embedding, boxes_xyxy=box, mask_logits=drawn, multimask=True)
    got = predictor.predict(embedding, boxes_xyxy=box, multimask=True)
    np.testing.assert_array_equal(got.logits, given.logits)
    undrawn = plain.predict(embedding, boxes_xyxy=box, multimask=True)
    assert np.abs(got.logits - undrawn.logits).max() > 1e-3
    points = [x.predict(embedding, [[40, 20]]).logits for x in (plain, predictor)]
    np.testing.assert_array_equal(*points)


def test_the_bundled_model_draws_under_its_name(tmp_path):
    tiny = load("tiny")
    assert tiny.config.draw_boxes
    save(tiny, tmp_path / "tiny.pth")
    assert load(tmp_path / "tiny.pth").config == MOBILE_SAM  # the format can't say otherwise
    assert load(tmp_path / "tiny.pth", config=TINY).config.draw_boxes
    assert not small_sam().config.draw_boxes
    predictor = Predictor(tiny, cache=False)
    image = photo((96, 128))
    expected = predictor.predict(predictor.embed(image), boxes_xyxy=[20, 20, 90, 70])
    released = SamPredictor(sam_model_registry["tiny"](checkpoint=tmp_path / "tiny.pth"))
    released.set_image(image)
    masks, _, _ = released.predict(box=np.array([20, 20, 90, 70]))
    np.testing.assert_array_equal(masks, expected.masks)


def test_jax_prompts_without_boxes_have_no_masks():
    bare = Prompts(jnp.zeros((1, 1, 2, 2)), jnp.ones((1, 1, 2), jnp.int32))
    assert not draw_boxes(bare, (4, 4), 16).has_mask.any()
