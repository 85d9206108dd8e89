"""What is measured during a run, on a small model and photographs with masks of its own."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.evaluation.single_point import measure_source
from sam_jax.inference.predictor import Predictor
from sam_jax.training.config import ValidationConfig
from tests.evaluation.fakes import write_sa1b
from tests.small import photo, small_sam
from train.validation import automatic_recall, open_data, prediction_sheet, validate


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three photographs of two masks each, the second unreadable."""
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (root / "own" / name).mkdir(parents=True)
    for k in range(3):
        labels = np.zeros((48, 64), np.uint8)
        labels[4:20, 6:30], labels[25:44, 30 + k : 60] = 1, 2
        Image.fromarray(photo((48, 64), k)).save(root / "own" / "images" / f"{k}.png")
        Image.fromarray(labels).save(root / "own" / "masks" / f"{k}.png")
    (root / "own" / "images" / "1.png").write_bytes(b"no picture")
    return root


def test_the_numbers_are_the_means_of_what_is_measured(root):
    config = ValidationConfig(data=("own",), clicks=2, automatic=1, points_per_side=2)
    sources, sam = open_data(config, str(root)), small_sam()
    row = validate(sam, sources, config)
    assert set(row) == {
        f"val/own/{name}" for name in ("1", "1 oracle", "2", "box", "automatic", "automatic masks")
    }
    rows = measure_source(Predictor(sam), sources["own"], 2)
    assert len(rows) == 4, "two photographs of two masks"
    for name in ("1", "1 oracle", "2", "box"):
        assert row[f"val/own/{name}"] == pytest.approx(np.mean([r[name] for r in rows]))


def test_a_mask_that_cannot_be_decoded_is_left_out(tmp_path, capsys):
    folder = write_sa1b(tmp_path / "d", ("a", "b"))
    document = json.loads((folder / "a.json").read_text())
    document["annotations"][1]["segmentation"]["counts"] = "1"
    (folder / "a.json").write_text(json.dumps(document))
    config = ValidationConfig(data=("d",), clicks=1, automatic=2, points_per_side=1)
    sources, sam = open_data(config, str(tmp_path)), small_sam()
    row = validate(sam, sources, config)
    assert "skipped a.json: mask 1: " in capsys.readouterr().out
    (folder / "a.json").unlink()
    assert row == validate(sam, open_data(config, str(tmp_path)), config)


def test_recall_counts_the_best_mask_of_each(root):
    config = ValidationConfig(data=("own",))
    source = open_data(config, str(root))["own"]
    recall, masks = automatic_recall(Predictor(small_sam()), source, 2, 2)
    assert 0 <= recall <= 1 and masks >= 0


def test_the_sheet_has_a_row_a_photo(root):
    source = open_data(ValidationConfig(data=("own",)), str(root))["own"]
    sheet = prediction_sheet(small_sam(), source, count=5, side=40)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert sheet.shape[1] >= 3 * 40 and 2 * 40 <= sheet.shape[0] < 3 * 40


def test_what_is_not_there_is_said(root):
    with pytest.raises(ValueError, match="validation.data: .*nothing"):
        open_data(ValidationConfig(data=("nothing",)), str(root))
    with pytest.raises(ValueError, match="two are called own"):
        open_data(ValidationConfig(data=("own", "./own")), str(root))
