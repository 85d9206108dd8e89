"""Two models on the same clicks."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from sam_jax.cli import main
from sam_jax.data.open_source import open_source
from sam_jax.evaluation import compare
from sam_jax.evaluation.clicks import Protocol
from sam_jax.evaluation.journal import Journal
from tests.evaluation.fakes import Cut, Knows, small_models, write_sa1b


def measure(predictors, source, protocol=None, **more):
    return compare.measure(predictors, source, protocol or Protocol(3), Journal(None, {}), **more)


class Watched(Cut):
    """Remembers where it was clicked last."""

    def predict(self, embedding, points_xy=None, labels=None, **more):
        if points_xy is not None:
            self.clicked = np.array(points_xy)
        return super().predict(embedding, points_xy, labels, **more)


def test_a_model_and_itself_differ_by_nothing(tmp_path):
    source = open_source(write_sa1b(tmp_path / "d"))
    figures = compare.summarise({"d": measure([Knows(), Knows()], source)})
    for one in figures["d"].values():
        assert one["a"] == one["b"] == 1.0 and one["difference"] == 0
        assert one["interval"] == [0, 0]
    text = compare.table(figures, ["x", "x"])
    assert (
        "| d | 4 | 1 click | 1.0000 | 1.0000 | +0.0000 | +0.0000 to +0.0000 | not clear |" in text
    )


def test_the_difference_by_hand_and_who_is_better(tmp_path):
    source = open_source(write_sa1b(tmp_path / "d"))
    rows = measure([Knows(moved=6), Knows()], source)
    figures = compare.summarise({"d": rows, "e": rows[:2]})
    for name in ("1", "3", "box"):
        assert figures["d"][name]["difference"] == pytest.approx(1 - 24 / 36)
        assert figures["mean"][name]["difference"] == pytest.approx(1 - 24 / 36)
    lines = compare.table(figures, ["x", "y"]).splitlines()
    assert "| B |" in lines[2]
    for name in ("e", "mean"):
        line = next(line for line in lines if line.startswith(f"| {name}"))
        assert "one image" in line and "not clear" in line
    back = compare.summarise({"d": measure([Knows(), Knows(moved=6)], source)})
    assert "| A |" in compare.table(back, ["y", "x"]).splitlines()[2]


def test_b_is_clicked_where_a_errs_or_each_where_it_does(tmp_path):
    source = open_source(write_sa1b(tmp_path / "d", ("a",)))
    a, b = Watched(), Watched(moved=9)
    measure([a, b], source)
    np.testing.assert_array_equal(a.clicked, b.clicked)
    measure([a, b], source, own_clicks=True)
    np.testing.assert_array_equal(a.clicked[:, 0], b.clicked[:, 0])
    assert (a.clicked[:, 1:] != b.clicked[:, 1:]).any()


def test_the_command_and_a_second_run(tmp_path, capsys, monkeypatch):
    small_models(monkeypatch)
    write_sa1b(tmp_path / "d", broken=("bad",))
    out = tmp_path / "out"
    arguments = ["evaluate", "compare", "tiny", "tiny@bfloat16", "--data", str(tmp_path / "d")]
    arguments += ["--clicks", "2", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "skipped bad.json" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores["d"]) == {"1", "1 oracle", "2", "box"}
    assert scores["d"]["1"]["a"] > 0
    assert any(one["difference"] != 0 for one in scores["d"].values()), "bfloat16 is not float32"
    with open(out / "masks.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    difference = np.mean([float(r["B 1"]) - float(r["A 1"]) for r in rows])
    assert difference == pytest.approx(scores["d"]["1"]["difference"])
    assert (out / "differences.png").stat().st_size > 5000
    before = (out / "rows" / "d.jsonl").read_text()
    assert main(arguments) == 0
    assert (out / "rows" / "d.jsonl").read_text() == before
    assert main([*arguments, "--own-clicks"]) == 2
    assert "own clicks was False, is True" in capsys.readouterr().err
