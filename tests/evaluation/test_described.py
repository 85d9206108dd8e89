"""Text prompts on drawn scenes: a model that knows the truth, one that is wrong, the command."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from sam_jax.cli import main
from sam_jax.data.described import DescribedScenes
from sam_jax.data.descriptions import matches, read_phrase
from sam_jax.evaluation import described, models
from sam_jax.ops.rle import decode
from tests.clips import word_clip
from tests.small import small_sam


class Knows:
    """Answers a phrase with the object that it is true of; a crop with what it was cut around.

    Args:
      wrong: of phrases that name a colour, the likeliest mask is another one than the third.
    """

    reads, text_tower = True, None

    def __init__(self, wrong: bool = False):
        self.wrong = wrong

    def embed(self, image):
        scenes = DescribedScenes(3, 256, described.SEED)
        return next(s for s in map(scenes.__getitem__, range(3)) if (s["image"] == image).all())

    def predict(self, scene, text, multimask):
        masks = [decode(rle) for rle in scene["rles"]]
        query = read_phrase(text)
        (true,) = (m for m, a in zip(masks, scene["attributes"], strict=True) if matches(query, a))
        scores = [0.9, 0.2, 0.1] if self.wrong and query.colour else [0.1, 0.2, 0.9]
        out = np.stack([np.zeros_like(true), ~true, true])
        return types.SimpleNamespace(masks=out, scores=np.float32(scores))


def test_the_truth_scores_1_and_phrases_of_looks_tell_no_place():
    rows = described.measure(Knows(), 3)
    scenes = [DescribedScenes(3, 256, described.SEED)[i] for i in range(3)]
    assert len(rows) == sum(len(scene["rles"]) for scene in scenes)
    for row in rows:
        assert row.get("iou", 1) == row.get("iou any", 1) == row.get("oracle", 1) == 1
        assert ("iou" in row) == bool(row["phrase"]) == (row.get("iou all") == 1)
        assert "iou crop" not in row
        query = read_phrase(row["phrase"])
        assert query.size is None and not query.place
        found = [matches(query, one) for one in scenes[row["scene"]]["attributes"]]
        assert not row["phrase"] or np.flatnonzero(found).tolist() == [row["object"]]
    assert sum(bool(row["phrase"]) for row in rows) < sum(bool(row["any phrase"]) for row in rows)


def test_figures_are_means_over_what_was_asked():
    rows = described.measure(Knows(wrong=True), 3)
    figures = described.summarise(rows)
    asked = [read_phrase(row["phrase"]) for row in rows if row["phrase"]]
    share = np.mean([query.colour is None for query in asked])
    assert 0 < share < 1 and figures["iou"]["mean"] == pytest.approx(share)
    assert figures["oracle"]["mean"] == 1 and figures["iou"]["objects"] == len(asked)
    text = described.table("m", figures)
    assert f"| m: phrases of colour, texture, shape | {len(asked)} | {share:.3f}" in text


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "open_model", lambda name: (Knows(), {"model": name}))
    out = tmp_path / "out"
    command = ["evaluate", "text", "--model", "knows", "--data"]
    assert main([*command, "drawn:2", "--out", str(out)]) == 0
    assert json.loads((out / "scores.json").read_text())["iou"]["mean"] == 1
    assert (out / "rows.csv").read_text().startswith("scene,object,phrase")
    assert main([*command, "drawn:many"]) == 2
    assert "--data: expected drawn:NUMBER" in capsys.readouterr().err


def test_crops_are_prompts_too():
    from sam_jax.inference.predictor import Predictor
    from tests.small import CONFIG, dataclasses

    clip = word_clip(("red", "green"))
    sam = small_sam(CONFIG.replace(text_width=clip.config.embed_dim))
    predictor = Predictor(dataclasses.replace(sam, text=clip.text_tower()), cache=False)
    asked = []
    predict = predictor.predict

    def listen(embedding, text, multimask):
        if isinstance(text, str):
            text = np.eye(clip.config.embed_dim, dtype=np.float32)[0]
        else:
            asked.append(text)
        return predict(embedding, text=text, multimask=multimask)

    predictor.predict = listen
    rows = described.measure(predictor, 1, clip)
    assert len(asked) == sum("iou crop" in row for row in rows) > 0
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), 1, rtol=1e-5)
