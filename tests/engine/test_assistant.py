"""The model behind the page: prompts, what is ready when, the cache on disk, reloading."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sam_jax import Predictor
from sam_jax.engine.assistant import Assistant, NotReady, drawn_logits
from sam_jax.ops.rle import decode
from tests.engine.conftest import rectangle
from tests.small import CONFIG, small_sam


def test_candidates_are_the_predictors(assistant, photos):
    found = assistant.predict("a.png", [[20, 30]], [1])
    predictor = Predictor(small_sam())
    embedding = predictor.embed(photos / "a.png")
    out = predictor.predict(embedding, [[20, 30]], [1], multimask=True)
    order = np.argsort(-out.scores)
    assert len(found) == 3
    for candidate, k in zip(found, order, strict=True):
        np.testing.assert_array_equal(decode(candidate.rle), out.masks[k])
        assert candidate.score == pytest.approx(out.scores[k], abs=1e-6)
        assert 0 <= candidate.stability <= 1
    more = assistant.predict("a.png", [[20, 30], [5, 5]], [1, 0], previous=found[1].token)
    again = predictor.predict(
        embedding, [[20, 30], [5, 5]], [1, 0], mask_logits=out.logits[order[1]], multimask=False
    )
    (candidate,) = more
    np.testing.assert_array_equal(decode(candidate.rle), again.masks[0])
    (boxed,) = assistant.predict("a.png", [[20, 30]], [1], [10, 10, 40, 40])
    both = predictor.predict(embedding, [[20, 30]], [1], [10, 10, 40, 40], multimask=False)
    np.testing.assert_array_equal(decode(boxed.rle), both.masks[0])
    assert len(assistant.predict("a.png", [], [], [10, 10, 40, 40])) == 3


def test_a_painted_mask_goes_into_the_decoder(assistant, photos):
    mask = rectangle(8, 8, 40, 32)
    embedding = Predictor(small_sam()).embed(photos / "a.png")
    logits = drawn_logits(mask, embedding, Predictor(small_sam()))
    assert logits.shape == (CONFIG.grid * 4,) * 2 if hasattr(CONFIG, "grid") else logits.ndim == 2
    scale = logits.shape[0] / 64
    inside = logits[int(10 * scale) : int(30 * scale), int(10 * scale) : int(38 * scale)]
    assert (inside == 8).all() and logits[-1, -1] == -8
    area = (logits > 0).sum() / scale**2
    assert abs(area - mask.sum()) < 0.1 * mask.sum()
    plain = assistant.predict("a.png", [[20, 20]], [1])
    painted = assistant.predict("a.png", [[20, 20]], [1], mask=mask)
    assert len(painted) == 1 and painted[0].rle != plain[0].rle


def test_a_token_of_another_photo_is_refused(assistant):
    token = assistant.predict("a.png", [[1, 1]], [1])[0].token
    assert assistant.ready("deep/b.jpg", 60)[0]
    for photo, given in (("deep/b.jpg", token), ("a.png", "none")):
        with pytest.raises(ValueError, match="no such candidate"):
            assistant.predict(photo, [[1, 1]], [1], previous=given)


def test_it_says_what_it_is_doing(photos):
    go = threading.Event()

    def slow():
        go.wait(60)
        return small_sam()

    assistant = Assistant(slow, photos)
    assistant.start()
    assert assistant.ready("a.png", 0.1) == (False, "loading the model")
    with pytest.raises(NotReady, match="loading the model"):
        assistant.predict("a.png", [[1, 1]], [1])
    go.set()
    assert assistant.ready("a.png", 60) == (True, "ready")
    ready, why = assistant.ready("c.jpg", 60)
    assert not ready and why.startswith("the photo can't be read")
    assert assistant.ready("a.png", 60)[0], "one broken photo stops no other"
    assistant.stop()


def test_a_model_that_cannot_be_loaded(photos):
    def broken():
        raise ValueError("the file is damaged")

    assistant = Assistant(broken, photos)
    assistant.start()
    for _ in range(100):
        ready, why = assistant.ready("a.png", 0.05)
        if "damaged" in why:
            break
    assert not ready and why == "the model can't be loaded: the file is damaged"
    assistant.stop()


def test_embeddings_are_kept_on_disk_under_picture_and_weights(photos, store, monkeypatch):
    cache = store.path / "embeddings"

    def run(model, encodes):
        assistant = Assistant(model, photos, cache)
        if not encodes:
            monkeypatch.setattr(Predictor, "embed", None)
            monkeypatch.setattr(Predictor, "warm_up", lambda self, **more: None)
        assistant.start()
        assert assistant.ready("a.png", 60)[0]
        found = assistant.predict("a.png", [[20, 30]], [1])
        assistant.stop()
        monkeypatch.undo()
        return [candidate.rle for candidate in found]

    first = run(small_sam, True)
    assert run(small_sam, False) == first
    (file,) = cache.glob("*/*.npz")
    assert run(lambda: small_sam(seed=1), True) != first
    assert len(list(cache.glob("*/*.npz"))) == 2
    file.write_bytes(b"damaged")
    assert run(small_sam, True) == first


def test_reloading_takes_the_new_weights_and_goes_on(photos):
    seeds = [0]
    assistant = Assistant(lambda: small_sam(seed=seeds[0]), photos)
    assistant.start()
    assert assistant.ready("a.png", 60)[0]
    before, old = assistant.predict("a.png", [[20, 30]], [1]), assistant.hash
    seeds[0] = 1
    assistant.reload()
    assert not assistant.ready("a.png")[0]
    assert assistant.ready("a.png", 60)[0]
    after = assistant.predict("a.png", [[20, 30]], [1])
    assert assistant.hash != old and after[0].rle != before[0].rle
    assistant.stop()


def test_photos_are_encoded_ahead_but_not_while_prompts_come(photos, assistant):
    assert "deep/b.jpg" not in assistant._embeddings
    ahead = Assistant(small_sam, photos)
    ahead.start(["a.png", "deep/b.jpg"])
    with ahead._changed:
        ahead._changed.wait_for(lambda: len(ahead._embeddings) == 2, 60)
    assert set(ahead._embeddings) == {"a.png", "deep/b.jpg"}
    ahead.stop()
