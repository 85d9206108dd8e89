"""The predictor: forms of prompts, errors, compilations."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from sam_jax.inference import compiled
from sam_jax.inference.compiled import bucket, use_compilation_cache
from sam_jax.inference.predictor import Predictor
from sam_jax.ops.masks import upscale_masks
from tests.small import CONFIG, photo, reading_sam, small_sam

pytestmark = pytest.mark.optimised

H, W = 45, 80


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(small_sam(), cache=False)


@pytest.fixture(scope="module")
def embedding(predictor):
    return predictor.embed(photo((H, W)))


def test_embed_takes_arrays_files_and_pil_images(predictor, embedding, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo((H, W))).save(path)
    assert embedding.features.shape == (1, 4, 4, 32) and not embedding.is_batch
    assert (embedding.image_hw, embedding.input_hw) == (((H, W),), ((36, 64),))
    for source in (path, str(path), Image.open(path)):
        np.testing.assert_array_equal(predictor.embed(source).features, embedding.features)
    moved = jax.tree.map(lambda x: x + 1, embedding)  # a pytree
    assert moved.image_hw == embedding.image_hw


def test_one_prompt(predictor, embedding):
    out = predictor.predict(embedding, points_xy=[[40, 20]], labels=[1])
    assert out.masks.shape == (3, H, W) and out.masks.dtype == bool
    assert out.scores.shape == (3,) and out.logits.shape == (3, 16, 16)
    np.testing.assert_array_equal(out.masks, upscale_masks(out.logits, (36, 64), (H, W), 64))
    single = predictor.predict(embedding, points_xy=[[40, 20]], labels=[1], multimask=False)
    assert single.masks.shape == (1, H, W)
    again = predictor.predict(embedding, points_xy=np.array([[40, 20]]))  # labels: foreground
    np.testing.assert_array_equal(again.logits, out.logits)
    not_it = predictor.predict(embedding, points_xy=[[40, 20]], labels=[0])
    assert np.abs(not_it.logits - out.logits).max() > 1e-3


def test_truth_of_numpy_s_kind(predictor, embedding):
    for value, masks in ((np.True_, 3), (1, 3), (np.False_, 1), (0, 1)):
        ours = predictor.predict(embedding, points_xy=[[40, 20]], multimask=value)
        plain = predictor.predict(embedding, points_xy=[[40, 20]], multimask=bool(value))
        assert len(ours.masks) == masks
        np.testing.assert_array_equal(ours.logits, plain.logits)
    for value in ("yes", 2, None, [True]):
        with pytest.raises(ValueError, match="multimask: expected True, False or 'auto'"):
            predictor.predict(embedding, points_xy=[[40, 20]], multimask=value)


@pytest.mark.parametrize(
    "prompt, masks",
    [
        (dict(points_xy=[[40, 20]]), 3),
        (dict(boxes_xyxy=[5, 5, 60, 40]), 3),
        (dict(mask_logits=np.ones((16, 16))), 3),
        (dict(points_xy=[[40, 20], [10, 10]], labels=[1, 0]), 1),
        (dict(points_xy=[[40, 20]], boxes_xyxy=[5, 5, 60, 40]), 1),
        (dict(points_xy=[[40, 20]], mask_logits=np.ones((1, 16, 16))), 1),
    ],
)
def test_auto_gives_three_masks_only_where_there_is_doubt(predictor, embedding, prompt, masks):
    assert predictor.predict(embedding, **prompt).masks.shape == (masks, H, W)
    assert predictor.predict(embedding, **prompt, multimask=True).masks.shape == (3, H, W)
    assert predictor.predict(embedding, **prompt, multimask=False).masks.shape == (1, H, W)


def test_several_prompts_are_each_what_they_are_alone(predictor, embedding):
    boxes = [[5, 5, 60, 40], [1, 2, 30, 44], [-5, 10, 90, 30]]
    out = predictor.predict(embedding, boxes_xyxy=boxes)
    assert out.masks.shape == (3, 3, H, W) and out.scores.shape == (3, 3)
    for i, box in enumerate(boxes):
        alone = predictor.predict(embedding, boxes_xyxy=box)
        np.testing.assert_allclose(out.logits[i], alone.logits, atol=2e-5)
    points = np.array([[[40, 20], [3, 4]], [[10, 10], [70, 40]]])
    out = predictor.predict(embedding, points, [[1, 0], [1, 1]])
    assert out.masks.shape == (2, 1, H, W)
    alone = predictor.predict(embedding, points[1], [1, 1])
    np.testing.assert_allclose(out.logits[1], alone.logits, atol=2e-5)


def test_ragged_prompts_and_boxes_for_some(predictor, embedding):
    points = [[[40, 20]], [[10, 10], [70, 40], [30, 5]], []]
    labels = [[1], [1, 0, 1], []]
    boxes = [None, [5, 5, 60, 40], [5, 5, 60, 40]]
    out = predictor.predict(embedding, points, labels, boxes)
    assert out.masks.shape == (3, 1, H, W)
    # Lone prompts in mixed company get the best of their three masks.
    lone = predictor.predict(embedding, points[0], labels[0])
    best = lone.scores.argmax()
    np.testing.assert_allclose(out.logits[0, 0], lone.logits[best], atol=2e-5)
    np.testing.assert_allclose(out.scores[0, 0], lone.scores[best], atol=2e-5)
    pair = predictor.predict(embedding, points[1], labels[1], boxes[1])
    np.testing.assert_allclose(out.logits[1], pair.logits, atol=2e-5)
    three = predictor.predict(embedding, points, labels, boxes, multimask=True)
    box = predictor.predict(embedding, boxes_xyxy=boxes[2])
    np.testing.assert_allclose(three.logits[2], box.logits, atol=2e-5)


def test_masks_for_some_prompts(predictor, embedding):
    low = np.random.default_rng(0).standard_normal((16, 16))
    out = predictor.predict(
        embedding, [[[40, 20]], [[40, 20]]], mask_logits=[low, None], multimask=False
    )
    with_mask = predictor.predict(embedding, [[40, 20]], mask_logits=low, multimask=False)
    without = predictor.predict(embedding, [[40, 20]], multimask=False)
    np.testing.assert_allclose(out.logits[0], with_mask.logits, atol=2e-5)
    np.testing.assert_allclose(out.logits[1], without.logits, atol=2e-5)
    assert np.abs(with_mask.logits - without.logits).max() > 1e-3


def test_a_batch_of_photos(predictor):
    photos = [photo((H, W)), photo((90, 41), 1), photo((64, 64), 2)]
    batch = predictor.embed(photos)
    assert len(batch) == 3 and batch.is_batch and batch.features.shape == (3, 4, 4, 32)
    out = predictor.predict(
        batch,
        points_xy=[[[40, 20]], [[[1, 2]], [[40, 80]]], None],
        boxes_xyxy=[None, None, [3, 3, 50, 60]],
    )
    assert [o.masks.shape for o in out] == [(3, H, W), (2, 3, 90, 41), (3, 64, 64)]
    alone = predictor.predict(predictor.embed(photos[2]), boxes_xyxy=[3, 3, 50, 60])
    np.testing.assert_allclose(out[2].logits, alone.logits, atol=2e-5)
    assert isinstance(predictor.predict(predictor.embed(photos[:1]), [[[1, 2]]]), list)
    with pytest.raises(ValueError, match="points_xy: expected a list with one entry for each of 3"):
        predictor.predict(batch, points_xy=[[[40, 20]]])
    with pytest.raises(ValueError, match="empty list"):
        predictor.embed([])


@pytest.mark.parametrize("hw", [(1, 300), (300, 1), (2, 2)])
def test_extreme_photos(predictor, hw):
    out = predictor.predict(predictor.embed(photo(hw)), points_xy=[[0, 0]])
    assert out.masks.shape == (3, *hw)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ({}, "no prompt: expected points_xy, boxes_xyxy"),
        (dict(points_xy=[]), "no prompt"),
        (
            dict(points_xy=[[80, 20]]),
            r"points_xy: the point \(80, 20\) is outside the photo, which",
        ),
        (dict(points_xy=[[-1, 20]]), "outside the photo"),
        (dict(points_xy=[[np.nan, 20]]), "points_xy: expected finite numbers, got NaN"),
        (dict(points_xy=[[np.inf, 20]]), "finite"),
        (dict(points_xy=[["a", 20]]), "expected numbers"),
        (dict(points_xy=[[1, 2, 3]]), r"points_xy: expected \[P, 2\]"),
        (
            dict(points_xy=[1, 2]),
            "points_xy: expected 2 axes for one prompt or 3 for several, got 1",
        ),
        (
            dict(points_xy=[[1, 2]], labels=[1, 0]),
            "labels: expected one for each .*, 1 in all, got 2",
        ),
        (dict(points_xy=[[1, 2]], labels=[2]), "labels: expected 1 .foreground. or 0"),
        (dict(points_xy=[[1, 2]], labels=[-1]), "foreground"),
        (dict(labels=[1]), "labels: given without points_xy"),
        (dict(boxes_xyxy=[5, 5, 5, 40]), r"boxes_xyxy: the box \(5, 5, 5, 40\) has no area"),
        (dict(boxes_xyxy=[9, 5, 5, 40]), "no area"),
        (dict(boxes_xyxy=[[1, 2, 3, 4], [9, 5, 5, 40]]), "boxes_xyxy of prompt 1: .* no area"),
        (dict(boxes_xyxy=[80, 5, 90, 40]), "outside the photo"),
        (dict(boxes_xyxy=[1, 2, 3]), "x0, y0, x1, y1"),
        (dict(boxes_xyxy=[1, 2, 3, np.nan]), "finite"),
        (dict(mask_logits=np.zeros((45, 80))), r"mask_logits: .* \[16, 16\], got shape \[45, 80\]"),
        (dict(mask_logits=np.full((16, 16), np.nan)), "finite"),
        (dict(text="a cat"), "text: this model has no text head"),
        (
            dict(points_xy=[[1, 2]], boxes_xyxy=[[1, 2, 3, 4], [1, 2, 5, 6]]),
            "same number of prompts",
        ),
        (
            dict(points_xy=[[[1, 2]]], boxes_xyxy=[[1, 2, 3, 4], [1, 2, 5, 6]]),
            "same number of prompts",
        ),
        (dict(points_xy=[[[1, 2]], []], labels=[[1], []]), "no prompt of prompt 1"),
        (dict(points_xy=[[1, 2]], multimask="yes"), "multimask"),
    ],
)
def test_bad_prompts(predictor, embedding, prompt, message):
    with pytest.raises(ValueError, match=message) as caught:
        predictor.predict(embedding, **prompt)
    assert "\n" not in str(caught.value)


def test_bad_image_size():
    with pytest.raises(ValueError, match="image_size: expected a positive multiple"):
        Predictor(small_sam(), image_size=60, cache=False)


def test_another_frame():
    predictor = Predictor(small_sam(), image_size=96, cache=False)
    embedding = predictor.embed(photo((H, W)))
    assert embedding.features.shape == (1, 6, 6, 32) and embedding.input_hw == ((54, 96),)
    out = predictor.predict(embedding, [[40, 20]])
    assert out.masks.shape == (3, H, W) and out.logits.shape == (3, 24, 24)


def test_text_prompts_where_the_model_has_a_head():
    predictor = Predictor(small_sam(CONFIG.replace(text_width=8)), cache=False)
    embedding = predictor.embed(photo((H, W)))
    text = np.random.default_rng(0).standard_normal((2, 8))
    out = predictor.predict(embedding, text=text)
    assert out.masks.shape == (2, 3, H, W) and np.abs(out.logits[0] - out.logits[1]).max() > 1e-3
    with pytest.raises(ValueError, match=r"text: expected an embedding \[8\], got \[5\]"):
        predictor.predict(embedding, text=text[0, :5])
    with pytest.raises(ValueError, match="text: this model's file came without the text tower"):
        predictor.predict(embedding, text="a cat")


def test_phrases_are_what_their_embeddings_are(monkeypatch):
    predictor = Predictor(reading_sam(), cache=False)
    embedding = predictor.embed(photo((H, W)))
    phrases = ["the red circle", "a green square"]
    vectors = predictor.text_tower.embed(phrases)
    calls = []
    embed = predictor.text_tower.embed
    monkeypatch.setattr(
        predictor.text_tower, "embed", lambda new, called: calls.append(new) or embed(new)
    )

    def same(a, b):
        np.testing.assert_array_equal(a.masks, b.masks)
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)

    one = predictor.predict(embedding, text=phrases[0])
    assert one.masks.shape == (3, H, W), "a lone phrase is ambiguous"
    same(one, predictor.predict(embedding, text=vectors[0]))
    two = predictor.predict(embedding, text=phrases)
    assert np.abs(two.logits[0] - two.logits[1]).max() > 1e-3
    same(two, predictor.predict(embedding, text=vectors))
    click = {"points_xy": [[40, 20]], "labels": [0]}
    both = predictor.predict(embedding, text=phrases[1], **click)
    assert both.masks.shape == (1, H, W), "with a click it is not"
    same(both, predictor.predict(embedding, text=vectors[1], **click))
    mixed = predictor.predict(embedding, text=[phrases[0], None], boxes_xyxy=[None, [3, 4, 30, 31]])
    np.testing.assert_allclose(mixed.logits[0], two.logits[0], atol=1e-5)
    batch = predictor.embed([photo((H, W)), photo((W, H), 1)])
    first, _ = predictor.predict(batch, text=phrases)
    np.testing.assert_allclose(first.logits, one.logits, atol=1e-5)
    assert calls == [[phrases[0]], [phrases[1]]], "every phrase is embedded once"
    same(two, predictor.predict(embedding, text=np.array(phrases)))
    with pytest.raises(ValueError, match="text: expected a list with one entry for each of 2 pho"):
        predictor.predict(batch, text="ab")


def test_clicks_after_a_text_are_those_of_training():
    from sam_jax.inference.prompts import gather, to_slots

    sizes = {"image_hw": (H, W), "mask_hw": (24, 24), "text_width": 4}
    prompts, _ = gather([[40, 20]], [0], None, None, [1.0, 0, 0, 0], **sizes)
    slots = to_slots(prompts, (H, W), 96)
    assert slots.labels.tolist() == [[[0]]], "no token that says: not a point"
    assert slots.has_text.tolist() == [[True]]
    prompts, _ = gather(None, None, None, None, [1.0, 0, 0, 0], **sizes)
    assert to_slots(prompts, (H, W), 96).labels.shape == (1, 1, 0)


@pytest.mark.parametrize(
    "phrase, message",
    [
        ("", "text: expected a phrase, got ''"),
        ("the fluffy circle", "text: the model does not know 'fluffy'"),
        ("red " * 19, r"text: 'red .*'\.\.\. has 21 tokens, begin and end included, expected at"),
    ],
)
def test_phrases_that_cannot_be_read(phrase, message):
    predictor = Predictor(reading_sam(), cache=False)
    with pytest.raises(ValueError, match=message):
        predictor.predict(predictor.embed(photo((H, W))), text=phrase)


def test_empty_slots_change_nothing(predictor, embedding):
    from sam_jax.inference.prompts import gather, to_slots

    prompts, _ = gather(
        [[40, 20], [10, 10]],
        [1, 0],
        None,
        None,
        None,
        image_hw=(H, W),
        mask_hw=(16, 16),
        text_width=0,
    )
    slots = to_slots(prompts, (H, W), 64)
    first, *others = [
        predictor.compiled.decode(embedding.features, slots, point_slots=(p,), prompt_slots=(n,))
        for p, n in ((3, 1), (8, 1), (32, 4))
    ]
    for logits, scores in others:  # sums of other lengths may be rounded otherwise
        np.testing.assert_allclose(logits, first[0], atol=3e-6 * np.abs(first[0]).max())
        np.testing.assert_allclose(scores, first[1], atol=3e-6 * np.abs(first[1]).max())


def test_other_numbers_of_points_and_photos_compile_nothing(predictor, embedding):
    """Counts what XLA compiles, through JAX's own monitoring."""
    rng = np.random.default_rng(0)

    def clicks(count: int, prompts: int | None = None):
        shape = (count, 2) if prompts is None else (prompts, count, 2)
        return rng.uniform(0, (W, H), shape)

    for prompts in (1, 4, 8):  # each bucket of prompts once
        predictor.warm_up(prompts=prompts)
    predictor.warm_up(points=20)
    compilations = []

    def listen(event: str, *_, **__):
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        before = len(compiled._executables)
        for count in (1, 2, 3, 7, 8, 15, 31):
            predictor.predict(embedding, clicks(count))
        for prompts in (2, 3, 5, 8, 11, 30):
            predictor.predict(embedding, clicks(3, prompts))
        predictor.predict(embedding, boxes_xyxy=[[1, 2, 30, 40]] * 6)
        other = predictor.embed(photo((31, 17), 5))
        predictor.predict(other, [[3, 4]])
        Predictor(small_sam(), cache=False).predict(embedding, clicks(2))
        assert compilations == [] and len(compiled._executables) == before
        predictor.predict(embedding, clicks(60))  # the next bucket
        assert len(compiled._executables) == before + 1 and len(compilations) >= 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_buckets():
    assert [bucket(n, (8, 32, 128)) for n in (0, 1, 8, 9, 128, 129, 512, 513)] == [
        8,
        8,
        8,
        32,
        128,
        512,
        512,
        2048,
    ]


def test_many_points_fall_into_a_larger_bucket(predictor, embedding):
    points = np.tile([[[40.0, 20.0]]], (1, 600, 1))[0]
    assert predictor.predict(embedding, points).masks.shape == (1, H, W)


def test_the_cache_is_the_user_s_if_there_is_one(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("SAM_JAX_CACHE", str(tmp_path / "ours"))
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
        assert use_compilation_cache() == tmp_path / "theirs"
        assert not (tmp_path / "ours").exists()
        jax.config.update("jax_compilation_cache_dir", None)
        assert use_compilation_cache() == tmp_path / "ours" / "xla"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "ours" / "xla")
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("SAM_JAX_CACHE", str(tmp_path / "file"))
        assert use_compilation_cache() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        from jax.experimental.compilation_cache import compilation_cache

        compilation_cache.reset_cache()
