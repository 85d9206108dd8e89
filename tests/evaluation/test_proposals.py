"""Proposals: which masks count and in which order, and runs that stop and go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sam_jax
from sam_jax.cli import main
from sam_jax.evaluation import proposals
from sam_jax.evaluation.coco_scores import Truth
from sam_jax.inference.predictor import Predictor
from sam_jax.ops.boxes import point_grid
from sam_jax.ops.rle import encode
from tests.evaluation.fakes import TRUE, rectangle, small_models, write_sa1b
from tests.evaluation.test_coco_tables import write_coco
from tests.small import photo, small_sam

PHOTO = Path(sam_jax.__file__).parent / "assets" / "photo.jpg"


def record(hw=(48, 72)):
    return {"image": photo(hw), "name": "a", "image_id": 0, "truth": []}


def test_the_best_by_score_count(tmp_path):
    truth = Truth(str(write_sa1b(tmp_path, ("a",))))
    results = [
        {"segmentation": encode(rectangle(0, 0, 9, 9)), "score": 0.3},
        {"segmentation": encode(TRUE[0]), "score": 0.1},
        {"segmentation": encode(TRUE[1]), "score": 0.2},
    ]
    for most, right in ((1, 0), (2, 1), (3, 2)):
        value = proposals.measure(truth, lambda _: results, most)(truth[0])
        assert value["proposals"] == most
        assert value["counts"]["all"] == [2, [right] * 10]


def test_three_masks_a_point_are_ranked_by_the_mean_of_both_scores(monkeypatch):
    """The generator has no filters; a mask without stability (nothing is set at +1) has 0."""
    from sam_jax.inference.generator import MaskGenerator

    made = []

    def generate(self, image):
        made.append(self)
        scores = ((0.9, 0.5), (0.6, 1.0), (0.8, float("nan")))
        return [
            {"segmentation": k, "predicted_iou": iou, "stability_score": stability}
            for k, (iou, stability) in enumerate(scores)
        ]

    monkeypatch.setattr(MaskGenerator, "generate", generate)
    found = proposals._multi(Predictor(small_sam()), 3, 0.85)(record())
    assert [one["segmentation"] for one in found] == [0, 1, 2]
    assert [one["score"] for one in found] == pytest.approx([0.7, 0.8, 0.4])
    (generator,) = made
    assert (len(generator.point_grids[0]), generator.box_nms_thresh) == (9, 0.85)
    assert generator.limits.pred_iou_thresh == generator.limits.stability_score_thresh == 0
    assert (generator.crop_n_layers, generator.output_mode) == (0, "coco_rle")


def test_single_masks_are_those_of_the_predictor_in_an_order_by_the_seed():
    predictor, one = Predictor(small_sam()), record()
    points = point_grid(5) * np.array(one["image"].shape[1::-1])
    embedding = predictor.embed(one["image"])
    wanted = [
        predictor.predict(embedding, points_xy=[xy], labels=[1], multimask=False).masks[0]
        for xy in points
    ]
    wanted = sorted(encode(mask)["counts"] for mask in wanted if mask.any())
    found = [proposals._single(predictor, 5, 1.0, seed)(one) for seed in (0, 0, 1)]
    orders = [[mask["segmentation"]["counts"] for mask in masks] for masks in found]
    distinct = set(wanted)  # NMS at 1 drops nothing but what is above 1
    assert len(distinct) > 5 and sorted(orders[0]) == wanted
    assert orders[0] == orders[1] != orders[2] and sorted(orders[2]) == wanted
    scores = [mask["score"] for mask in found[0]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)


def test_a_run_that_is_stopped_goes_on_to_the_numbers_of_one_run(tmp_path, monkeypatch):
    small_models(monkeypatch)
    data = write_sa1b(tmp_path / "d", ("a", "b", "c"), TRUE)
    asked, stop_at = [], ["b.json"]

    def multi(predictor, side, nms):
        def propose(one):
            if one["name"] in stop_at:
                raise KeyboardInterrupt
            asked.append(one["name"])
            moved = np.roll(TRUE[0], 3 * len(one["name"] + str(one["image_id"])), 1)
            return [{"segmentation": encode(moved), "score": 1.0}]

        return propose

    monkeypatch.setattr(proposals, "_multi", multi)
    arguments = ["evaluate", "proposals", "--data", str(data), "--out"]
    assert main([*arguments, str(tmp_path / "two")]) == 130
    assert asked == ["a.json"] and not (tmp_path / "two" / "scores.json").exists()
    stop_at.clear()
    assert main([*arguments, str(tmp_path / "two")]) == 0
    assert asked == ["a.json", "b.json", "c.json"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    assert len(asked) == 6
    for name in ("scores.json", "table.md", "proposals.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


@pytest.mark.slow
def test_the_bundled_model_finds_its_own_masks_on_its_photo(tmp_path, capsys):
    """The truth: a click's likeliest mask and its single mask; each kind of run must find one."""
    image = Image.open(PHOTO).resize((300, 200))
    predictor = Predictor(sam_jax.load("tiny"))
    embedding = predictor.embed(np.asarray(image))
    point = dict(points_xy=[[150.0, 100.0]], labels=[1])
    three = predictor.predict(embedding, **point, multimask=True)
    one = predictor.predict(embedding, **point, multimask=False)
    true = np.stack([three.masks[three.scores.argmax()], one.masks[0]])
    data = write_sa1b(tmp_path / "d", ("a",), true)
    image.save(data / "a.png")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["evaluate", "proposals", "--data", str(data)]
    arguments += ["--points-per-side", "3", "--nms", "1"]
    for more, most in (([], 27), (["--single"], 9)):
        assert main([*arguments, *more]) == 0
        printed = capsys.readouterr().out.splitlines()
        cells = [cell.strip() for cell in printed[2].split("|")]
        assert cells[1:3] == ["tiny (1 images)", str(most)] and float(cells[3]) >= 50
        assert "| 59.3 | 45.5 | 81.6 | 86.9 | 59.1 | 63.9 | 65.8 |" in printed[3]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_data_and_results_that_change(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", "proposals", "--data", str(tmp_path / "empty")]) == 2
    error = capsys.readouterr().err
    assert "--data: path: " in error and "in SA-1B form" in error and "COCO instances JSON" in error
    data, path = write_coco(tmp_path / "d"), tmp_path / "results.json"
    arguments = ["evaluate", "proposals", "--data", str(data), "--results", str(path)]
    arguments += ["--out", str(tmp_path / "out")]
    one = {"image_id": 10, "segmentation": encode(TRUE[0]), "score": 1}
    path.write_text(json.dumps([one]))
    assert main(arguments) == 0
    path.write_text(json.dumps([one | {"score": 0.5}]))
    assert main(arguments) == 2
    assert "holds another evaluation (results was" in capsys.readouterr().err
