"""The single-point table: with a predictor whose answers are known, and the bundled model's own."""

from __future__ import annotations

import csv
import json
import types

import numpy as np
import pytest
from PIL import Image

from sam_jax.cli import main
from sam_jax.evaluation import single_point
from sam_jax.ops.rle import encode

HW = (60, 90)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros(HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


TRUE = np.stack([rectangle(10, 10, 40, 40), rectangle(50, 20, 80, 50)])


class Knows:
    """Answers with masks that are right but for columns on the right, fewer with each click."""

    def embed(self, image):
        return None

    def predict(
        self,
        embedding,
        points_xy=None,
        labels=None,
        boxes_xyxy=None,
        mask_logits=None,
        multimask=True,
    ):
        count = len(boxes_xyxy if points_xy is None else points_xy)
        clicks = 1 if points_xy is None else np.shape(points_xy)[1]
        if points_xy is not None:
            where = np.asarray(points_xy)[:, 0].astype(int)
            index = [next(i for i, t in enumerate(TRUE) if t[y, x]) for x, y in where]
        else:
            index = range(count)
        masks = TRUE[list(index)].copy()
        for mask in masks:
            right = np.flatnonzero(mask.any(0))[-1]
            mask[:, right - (15 - 5 * clicks) + 1 : right + 1] = False
        if multimask:
            masks = np.stack([masks, TRUE[list(index)], ~masks], 1)
            scores = np.tile([0.9, 0.5, 0.1], (count, 1))
        else:
            masks, scores = masks[:, None], np.ones((count, 1))
        return types.SimpleNamespace(masks=masks, scores=scores, logits=masks * 20.0 - 10)


def test_clicks_oracle_and_boxes():
    scores = single_point.measure_masks(Knows(), None, TRUE, clicks=3)
    np.testing.assert_allclose(scores["1"], 20 / 30)  # ten of thirty columns are missing
    np.testing.assert_allclose(scores["1 oracle"], 1)
    np.testing.assert_allclose(scores["2"], 25 / 30)
    np.testing.assert_allclose(scores["3"], 1)
    boxes = single_point.measure_boxes(Knows(), None, TRUE, np.zeros((*HW, 3), np.uint8), False)
    np.testing.assert_allclose(boxes["box"], 20 / 30)
    np.testing.assert_allclose(boxes["filled box"], 1)


@pytest.fixture
def folder(tmp_path):
    """Two photographs in SA-1B form, and one whose picture is broken."""
    for name in ("a", "b", "broken"):
        image = np.full((*HW, 3), 40, np.uint8)
        image[TRUE.any(0)] = 220
        Image.fromarray(image).save(tmp_path / f"{name}.jpg")
        rles = [{"id": i, "segmentation": encode(mask)} for i, mask in enumerate(TRUE)]
        record = {
            "image": {"file_name": f"{name}.jpg", "height": HW[0], "width": HW[1]},
            "annotations": rles,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


def test_a_folder_is_read_and_what_is_broken_is_skipped_by_name(folder, capsys):
    rows = list(single_point.measure_folder(Knows(), folder, 2))
    assert [(row["image"][0], row["mask"]) for row in rows] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]
    assert rows[0]["area"] == 900
    assert "broken" in capsys.readouterr().out
    single_point.print_row("data", rows, header=True)
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| data | masks | 1 click | 1 oracle | 2 clicks | box | filled box |"
    assert table[2] == "| data | 4 | 0.667 | 1.000 | 0.833 | 0.667 | 1.000 |"
    single_point.write_rows(folder / "out" / "rows.csv", {folder: rows})
    with open(folder / "out" / "rows.csv") as file:
        assert [float(row["2"]) for row in csv.DictReader(file)] == [pytest.approx(25 / 30)] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "no such folder: nowhere"),
        (["--data", "."], "no .json records"),
        (["--data", "data", "--clicks", "0"], "at least 1, got 0"),
        (["--data", "data", "--model", "vit_x"], "vit_x"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments, message, folder, tmp_path_factory, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    arguments = [str(folder) if a == "data" else a for a in arguments]
    assert main(["evaluate", "single-point", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco_cc", "davis2016_val", "dsb2018_bbbc038"])
def test_the_bundled_model_on_held_out_photographs(shared, name):
    """Clicks help, and boxes but for small things, as the README's table and the card say."""
    from sam_jax import Predictor, load

    rows = list(single_point.measure_folder(Predictor(load("tiny")), shared / "val" / name, 5, 10))
    mean = {k: np.mean([row[k] for row in rows]) for k in ("1", "3", "5")}
    assert mean["1"] < mean["3"] < mean["5"]
    large = [row for row in rows if row["area"] >= 1000 or name == "dsb2018_bbbc038"]
    assert np.mean([r["box"] for r in large]) > np.mean([r["filled box"] for r in large])


def test_a_folder_is_measured_once_with_what_is_below_it(tmp_path):
    made, sets = tmp_path / "made", tmp_path / "sets"
    for place in (made, made / "sub", sets / "a", sets / "b" / "deep"):
        place.mkdir(parents=True)
        (place / "1.json").write_text("{}")
    assert single_point.find_folders([str(made)]) == [made]
    assert single_point.find_folders([str(sets)]) == [sets / "a", sets / "b"]
    (made / "1.json").rename(made / ".settings.json")  # a hidden file is no record
    assert single_point.find_folders([str(made)]) == [made / "sub"]
