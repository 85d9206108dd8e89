"""Masks of boxes: chunks, runs that stop and go on, the bundled model, and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sam_jax
from sam_jax.cli import main
from sam_jax.evaluation import instances, models
from sam_jax.evaluation.coco_scores import Truth, average_precision
from sam_jax.ops.rle import decode, encode
from tests.evaluation.fakes import Knows, rectangle, write_sa1b
from tests.evaluation.test_coco_tables import write_coco

PHOTO = Path(sam_jax.__file__).parent / "assets" / "photo.jpg"
APART = np.stack([rectangle(4 * k, 3 * k, 4 * k + 4, 3 * k + 3) for k in range(20)])


def test_boxes_go_in_chunks_and_come_back_in_order(tmp_path):
    asked = []

    class Watch(Knows):
        def predict(self, embedding, boxes_xyxy=None, **more):
            asked.append(len(boxes_xyxy))
            return super().predict(embedding, boxes_xyxy=boxes_xyxy, **more)

    truth = Truth(str(write_sa1b(tmp_path, ("a",), APART)))
    results = instances._from_boxes(Watch(APART), None, True)(truth[0])
    assert asked == [16, 16, 4, 4]
    assert len(results) == 20
    for one, mask in zip(results, APART, strict=True):
        assert (decode(one["segmentation"]) == mask).all()


@pytest.mark.parametrize(("moved", "expected"), [(0, 100), (1, 60), (3, 0)])
def test_masks_beside_the_truth_score_as_computed_by_hand(tmp_path, moved, expected):
    """A square of 8 moved by 1 has IoU 56 / 72 = .78, right at .50 to .75; by 3 it has .45."""
    masks = np.stack([rectangle(10, 10, 18, 18), rectangle(50, 20, 58, 28)])
    truth = Truth(str(write_sa1b(tmp_path, ("a",), masks)))
    of = instances.measure(truth, instances._from_boxes(Knows(masks, moved), None, True))
    found = of(truth[0])
    precision = average_precision(truth, found["truth"], found["results"], [0])
    assert precision["AP"] == precision["S"] == pytest.approx(expected, abs=1e-9)


def test_a_run_that_is_stopped_goes_on_to_the_numbers_of_one_run(tmp_path, monkeypatch, capsys):
    masks = np.stack([rectangle(10, 10, 40, 40), rectangle(50, 20, 80, 50)])
    data = write_sa1b(tmp_path / "d", ("a", "b", "d"), masks, broken=("c",))
    model = Knows(masks, 4)
    stop = [True]

    def embed(image):
        if stop and model.embedded == 1:
            raise KeyboardInterrupt
        model.embedded += 1

    model.embed = embed
    monkeypatch.setattr(models, "open_model", lambda name: (model, {"model": name}))
    arguments = ["evaluate", "instances", "--data", str(data), "--boxes", "truth", "--out"]
    assert main([*arguments, str(tmp_path / "two")]) == 130
    stop.clear()
    assert main([*arguments, str(tmp_path / "two")]) == 0
    assert model.embedded == 3
    printed = capsys.readouterr().out
    assert "skipped c.json" in printed and "tiny (3 images)" in printed
    assert main([*arguments, str(tmp_path / "one")]) == 0
    for name in ("scores.json", "results.json", "table.md", "instances.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    # 30 moved by 4: IoU 26 / 34 = .76, right at .50 to .75
    scores = json.loads((tmp_path / "one" / "scores.json").read_text())["precision"]
    assert scores["AP"] == pytest.approx(60) and scores["AP75"] == pytest.approx(100)
    assert scores["L"] is None


@pytest.mark.slow
def test_the_bundled_model_on_its_photo(tmp_path, capsys):
    """results.json gives the same numbers when it is scored as somebody's results."""
    image = Image.open(PHOTO).resize((300, 200))
    boxes = np.stack([rectangle(60, 50, 160, 150, (200, 300)), rectangle(9, 9, 40, 60, (200, 300))])
    data, out = write_sa1b(tmp_path / "d", ("a",), boxes), tmp_path / "out"
    image.save(data / "a.png")
    arguments = ["evaluate", "instances", "--data", str(data)]
    assert main([*arguments, "--boxes", "truth", "--out", str(out)]) == 0
    again = tmp_path / "again"
    results = out / "results.json"
    assert main([*arguments, "--results", str(results), "--out", str(again)]) == 0
    assert len(json.loads(results.read_text())) == 2
    assert (out / "scores.json").read_text() == (again / "scores.json").read_text()
    assert "| SAM (ViT-H), COCO, the paper |  | 46.5 |  |  | 30.8 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "expected [x, y, width, height] as bbox, got [1, 2, 3]"),
        ({"bbox": [1, 2, 3, "4"]}, "expected [x, y, width, height] as bbox"),
        ({"score": float("nan")}, "entry 0: expected a number as score"),
        ({"image_id": 99}, "no image_id of its 1 entries is one of the data's"),
        ({"category_id": 99}, "no category_id of its 1 entries is one of the data's"),
    ],
)
def test_boxes_of_another_form_or_of_other_data(change, message, tmp_path, capsys):
    data, path = write_coco(tmp_path / "d"), tmp_path / "boxes.json"
    box = {"image_id": 10, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}
    path.write_text(json.dumps([box | change]))
    assert main(["evaluate", "instances", "--data", str(data), "--boxes", str(path)]) == 2
    error = capsys.readouterr().err
    assert "--boxes: " in error and message in error


def test_a_folder_without_data_and_results_that_change(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    data = ["--data", str(tmp_path / "empty")]
    assert main(["evaluate", "instances", *data, "--boxes", "truth"]) == 2
    assert "holds none of the forms that are read" in capsys.readouterr().err
    path = tmp_path / "results.json"
    arguments = ["evaluate", "instances", "--data", str(write_coco(tmp_path / "d"))]
    arguments += ["--results", str(path), "--out", str(tmp_path / "out")]
    one = {"image_id": 10, "category_id": 1, "score": 1}
    one["segmentation"] = encode(rectangle(1, 1, 9, 9))
    path.write_text(json.dumps([one]))
    assert main(arguments) == 0
    path.write_text(json.dumps([one | {"score": 0.5}]))
    assert main(arguments) == 2
    assert "holds another evaluation (results was" in capsys.readouterr().err
