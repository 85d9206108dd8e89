"""Masks for names: shifted answers, runs that stop and go on, and data without categories."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from sam_jax.cli import main
from sam_jax.evaluation import models
from sam_jax.evaluation.coco_scores import Truth
from sam_jax.ops.rle import decode
from tests.evaluation.fakes import HW, write_sa1b
from tests.evaluation.test_coco_tables import write_coco


class Reads:
    """Answers an embedding [k] with the union of category k in the image embedded last.

    Args:
      truth: what it knows.
      moved: pixels to the right of the likeliest mask; the third is never moved.
    """

    config = types.SimpleNamespace(text_width=1)

    def __init__(self, truth: Truth, moved: int = 0):
        self.records = [r for r in map(truth.__getitem__, range(len(truth))) if r["truth"]]
        self.moved, self.embedded, self.stop_at = moved, 0, None

    def embed(self, image):
        if self.embedded == self.stop_at:
            raise KeyboardInterrupt
        self.embedded += 1
        return next(r for r in self.records if (r["image"] == image).all())

    def predict(self, embedding, text=None, multimask=True):
        own = [a for a in embedding["truth"] if a["category_id"] == int(text[0])]
        true = np.any([decode(one["segmentation"]) for one in own], 0)
        moved = np.zeros_like(true)
        moved[:, self.moved :] = true[:, : HW[1] - self.moved]
        masks = np.stack([~true, moved, true])
        return types.SimpleNamespace(masks=masks, scores=np.float32([0.1, 0.9, 0.5]))


def setting(folder, monkeypatch, moved=0):
    """Data, its embeddings, a model that knows it; and the command's arguments up to --out."""
    data, path = write_coco(folder / "d"), folder / "names.npz"
    np.savez(path, **{f"thing {k}": np.float32([k]) for k in (1, 2, 3)})
    model = Reads(Truth(str(data)), moved)
    monkeypatch.setattr(models, "open_model", lambda name: (model, {"model": name}))
    arguments = ["evaluate", "text", "--data", str(data), "--model", "knows"]
    return model, path, [*arguments, "--embeddings", str(path), "--out"]


def unions(truth):
    """The union of each category of each image, crowds included."""
    found = {}
    for record in map(truth.__getitem__, range(len(truth))):
        for one in record["truth"]:
            key = record["name"], one["category_id"]
            mask = decode(one["segmentation"])
            found[key] = found.get(key, False) | mask
    return found


@pytest.mark.parametrize("moved", [0, 3])
def test_the_truth_scores_1_and_moved_as_computed_from_pixels(tmp_path, monkeypatch, moved):
    model, _, arguments = setting(tmp_path, monkeypatch, moved)
    assert main([*arguments, str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    ious = {}
    for (_, category), true in unions(Truth(str(tmp_path / "d" / "truth.json"))).items():
        columns = np.pad(true, ((0, 0), (moved, 0)))[:, : HW[1]]
        iou = (true & columns).sum() / (true | columns).sum()
        ious.setdefault(f"thing {category}", []).append(iou)
    pairs = [iou for own in ious.values() for iou in own]
    assert scores["pairs"] == len(pairs) == 9 and scores["oracle"] == 1
    assert scores["iou"] == pytest.approx(np.mean(pairs), abs=1e-12)
    assert scores["by category"] == pytest.approx({k: np.mean(v) for k, v in ious.items()})
    assert scores["over categories"] == pytest.approx(np.mean(list(scores["by category"].values())))
    assert scores["iou"] == 1 if moved == 0 else 0.5 < scores["iou"] < 0.95


def test_a_run_that_is_stopped_goes_on_to_the_numbers_of_one_run(tmp_path, monkeypatch, capsys):
    model, path, arguments = setting(tmp_path, monkeypatch, 2)
    model.stop_at = 2
    assert main([*arguments, str(tmp_path / "two")]) == 130
    assert not (tmp_path / "two" / "scores.json").exists()
    model.stop_at = None
    assert main([*arguments, str(tmp_path / "two")]) == 0
    assert model.embedded == 3  # three images have masks
    assert main([*arguments, str(tmp_path / "one")]) == 0
    for name in ("scores.json", "rows.csv", "table.md", "text.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    np.savez(path, **{f"thing {k}": np.float32([k + 0.5]) for k in (1, 2, 3)})
    assert main([*arguments, str(tmp_path / "one")]) == 2
    assert "holds another evaluation (embeddings was" in capsys.readouterr().err


def test_data_that_has_no_categories(tmp_path, monkeypatch, capsys):
    _, _, arguments = setting(tmp_path, monkeypatch)
    (tmp_path / "empty").mkdir()
    for place, message in (
        (write_sa1b(tmp_path / "s"), "expected a COCO file with categories, got Sa1bFolder"),
        (tmp_path / "empty", "holds none of the forms that are read"),
    ):
        changed = [str(place) if a == str(tmp_path / "d/truth.json") else a for a in arguments]
        assert changed != arguments and main([*changed, str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
