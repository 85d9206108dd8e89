"""Groups from a CSV: who is measured, means and intervals, which differences are significant."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sam_jax.cli import main
from sam_jax.data.open_source import open_source
from sam_jax.evaluation import fairness
from sam_jax.evaluation.clicks import Protocol
from sam_jax.evaluation.journal import Journal
from sam_jax.evaluation.single_point import measure
from tests.evaluation.fakes import Knows, write_sa1b


def write(path, text):
    path.write_text(text)
    return path


def rows_of(groups, seed=0):
    """Masks of many images, one a group in each, with given mean IoU of each group."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(150):
        for name, mean in groups.items():
            value = float(np.clip(rng.normal(mean, 0.1), 0, 1))
            row = {"image": str(image), "1": value, "3": 0.9, "groups": {"kind": name}}
            rows.append(row)
    return rows


def test_groups_are_those_of_the_csv(tmp_path):
    path = write(
        tmp_path / "g.csv", "\ufeffimage, mask,age,kind\na,0,young,\na,1,old,x\nb,,old,y\nb,1,,z\n"
    )
    groups = fairness.read_groups(path)
    assert groups.attributes == ["age", "kind"]
    assert groups.of("deep/a.json", 0) == {"age": "young"}
    assert groups.of("a.jpg", 1) == {"age": "old", "kind": "x"}
    assert groups.of("b", 0) == {"age": "old", "kind": "y"}
    assert groups.of("b", 1) == {"age": "old", "kind": "z"}
    assert groups.of("c", 0) == {}


def test_only_masks_of_a_group_are_measured_and_the_truth_scores_one(tmp_path):
    source = open_source(write_sa1b(tmp_path / "d"))
    groups = fairness.Groups([{"image": "a", "mask": "1", "kind": "x"}], ["kind"])
    wanted = fairness._Wanted(source, groups)
    rows = measure(Knows(), wanted, Protocol(3, "random", boxes=False), Journal(None, {}))
    assert [(row["image"], row["mask"], row["1"], row["3"]) for row in rows] == [
        ("a.json", 1, 1, 1)
    ]


def test_a_difference_is_significant_or_not():
    figures = fairness.summarise(rows_of({"a": 0.5, "b": 0.5, "c": 0.7}), ["kind"])
    one = figures["kind"]["groups"]["a"]
    assert one["masks"] == one["images"] == 150
    mean, low, high = one["1"]
    assert low < mean < high and (high - low) / 2 == pytest.approx(1.96 * 0.1 / 150**0.5, rel=0.15)
    clear = {(*d["pair"], d["clicks"]) for d in figures["kind"]["differences"] if d["significant"]}
    assert clear == {("a", "c", 1), ("b", "c", 1)}
    lines = fairness.statements(figures)
    assert len(lines) == 2
    assert lines[0].startswith("kind: c is significantly better than a after 1 click, by 2")
    same = fairness.summarise(rows_of({"a": 0.5, "b": 0.5}, seed=3), ["kind"])
    assert fairness.statements(same) == ["kind: no significant difference between any two groups."]
    table = fairness.table(figures)
    assert "| kind | c | 150 | " in table and "| gender, published | feminine |" in table


def test_equal_groups_seldom_differ():
    """Of 30 comparisons of three equal groups about one in 20 is wrong in at least one pair."""
    wrong = 0
    for seed in range(30):
        rows = rows_of({"a": 0.5, "b": 0.5, "c": 0.5}, seed)
        figures = fairness.summarise([r for r in rows if int(r["image"]) < 60], ["kind"])
        wrong += any(d["significant"] for d in figures["kind"]["differences"])
    assert wrong <= 5


def test_one_image_is_no_sample():
    figures = fairness.summarise(rows_of({"a": 0.5, "b": 0.9})[:2], ["kind"])
    assert fairness.statements(figures)[0].endswith("no comparison.")
    assert "| kind | a | 1 |" in fairness.table(figures)
    assert "+-" not in fairness.table(figures).splitlines()[2]


def test_the_command(tmp_path, capsys):
    write_sa1b(tmp_path / "d", ("a", "b", "c"), broken=("bad",))
    path = write(
        tmp_path / "g.csv",
        "image,mask,side\n"
        + "".join(
            f"{name},{mask},{'left' if mask == 0 else 'right'}\n"
            for name in "abc"
            for mask in (0, 1)
        ),
    )
    out = tmp_path / "out"
    arguments = ["evaluate", "fairness", "--data", str(tmp_path / "d"), "--groups", str(path)]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "skipped bad.json" in printed and "| side | left | 3 |" in printed
    assert "side: " in printed.splitlines()[-2]
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores["side"]["groups"]) == {"left", "right"}
    assert (out / "groups.png").stat().st_size > 5000
    before = (out / "rows" / "d.jsonl").read_text()
    assert len(before.splitlines()) == 4
    assert main([*arguments, "--out", str(out)]) == 0
    assert (out / "rows" / "d.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,age\na,1\n", "expected the columns image"),
        ("image\na\n", "expected the columns image"),
        ("", "none"),
        ("image,mask,age\na,x,old\n", "line 2: mask must be a number from 0 on, got 'x'"),
        ("image,age\nz,old\n", "none of the images and masks"),
        (None, "can't read"),
    ],
)
def test_a_bad_csv_says_what_is_wrong(tmp_path, capsys, text, message):
    write_sa1b(tmp_path / "d")
    path = tmp_path / "g.csv"
    if text is not None:
        path.write_text(text)
    arguments = ["--data", str(tmp_path / "d"), "--groups", str(path)]
    assert main(["evaluate", "fairness", *arguments]) == 2
    assert message in capsys.readouterr().err
