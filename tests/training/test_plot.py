"""The picture of a run's metrics."""

import json

import pytest
from PIL import Image

from train.plot import main, read_metrics


def test_a_resumed_run_is_plotted_once(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install sam_jax[plots]")
    rows = [(2, 0.9), (4, 0.8), (4, 0.7), (6, 0.6)]
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step, dice in rows:
            file.write(json.dumps({"step": step, "dice": dice, "iou_first": 0.1, "iou_last": 0.2}))
            file.write("\n")
    assert [(row["step"], row["dice"]) for row in read_metrics(tmp_path)] == [
        (2, 0.9),
        (4, 0.7),
        (6, 0.6),
    ]
    assert main([str(tmp_path)]) == 0
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (810, 270)
    with open(tmp_path / "validation.jsonl", "w") as file:
        for step in (2, 6):
            row = {"step": step, "val/cells/1": 0.7, "val/cells/automatic masks": 40.0}
            file.write(json.dumps(row) + "\n")
    assert main([str(tmp_path), str(tmp_path / "more.png")]) == 0
    with Image.open(tmp_path / "more.png") as image:
        assert image.size == (1215, 270)
    assert main([str(tmp_path / "nothing")]) == 2
