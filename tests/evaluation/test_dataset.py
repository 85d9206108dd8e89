"""Statistics of data sets against numbers by hand."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from sam_jax.cli import main
from sam_jax.data.sources import RecordError
from sam_jax.evaluation.dataset import hull_area, mask_shape, measure, size_matched, summarise
from sam_jax.ops import rle


def rectangle(hw, rows: slice, columns: slice) -> dict:
    mask = np.zeros(hw, bool)
    mask[rows, columns] = True
    return rle.encode(mask)


class Listed:
    """A source out of a list; None cannot be read."""

    def __init__(self, *records) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        if self.records[index] is None:
            raise RecordError(f"{index}: torn")
        return {"name": str(index), "rles": self.records[index]}


def test_the_shape_of_a_mask_by_hand():
    area, relative, concavity, x, y = mask_shape(rectangle((20, 50), np.s_[5:10], np.s_[10:30]))
    assert (area, relative) == (100, pytest.approx((100 / 1000) ** 0.5))
    assert concavity == pytest.approx(0) and (x, y) == (20 / 50, 7.5 / 20)
    corner = np.zeros((4, 4), bool)  # three quarters of a square: the hull cuts the fourth in half
    corner[:2], corner[:, :2] = True, True
    assert hull_area(corner) == pytest.approx(14)
    assert mask_shape(rle.encode(corner))[2] == pytest.approx(1 - 12 / 14)
    assert hull_area(np.ones((1, 1), bool)) == pytest.approx(1)
    assert mask_shape(rle.encode(np.zeros((4, 4), bool))) is None


def test_hulls_hold_every_pixel():
    from scipy.spatial import ConvexHull

    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = rng.random(rng.integers(1, 12, 2)) < 0.3
        mask[rng.integers(len(mask)), rng.integers(mask.shape[1])] = True
        y, x = np.nonzero(mask)
        corners = np.concatenate([np.stack([x + i, y + j], 1) for i in (0, 1) for j in (0, 1)])
        assert hull_area(mask) == pytest.approx(ConvexHull(corners).volume)


def test_figures_by_hand(capsys):
    hw = (100, 100)
    small, large = np.s_[:10], np.s_[20:81]
    many = [rectangle(hw, small, small)] * 11
    one = Listed(many, None, [rectangle(hw, large, large), rectangle(hw, small, large)])
    masks = measure(one)
    assert "1: torn" in capsys.readouterr().out
    np.testing.assert_array_equal(masks.photos, [11, 2])
    figures = summarise({"one": masks})["one"]
    assert (figures["photos"], figures["masks"]) == (2, 13)
    assert figures["masks a photo"] == 6.5
    np.testing.assert_allclose(figures["photos by masks"], [0.5, 0.5, 0, 0, 0])
    # Relative sizes 0.1 (eleven, at an edge, which belongs to the upper bin), 0.247 and 0.61.
    np.testing.assert_allclose(
        figures["masks by relative size"], np.array([0, 11, 1, 0, 0, 0, 1, 0, 0, 0]) / 13
    )
    assert figures["centres in the middle ninth"] == pytest.approx(1 / 13)
    centres = np.array(figures["centres"])
    assert centres[0, 0] == pytest.approx(11 / 13) and centres[0, 5] == pytest.approx(1 / 13)
    assert measure(one, images=1).photos.tolist() == [11]


def test_sizes_are_matched():
    hw = (100, 100)

    def squares(*sides):
        return [rectangle(hw, np.s_[:side], np.s_[:side]) for side in sides]

    a = measure(Listed(squares(15, 15, 15, 45, 45), squares(95)))
    b = measure(Listed(squares(15, 45, 45, 45, 75)))
    rows = size_matched([a, b])
    assert [sorted(m.area[r]) for m, r in zip((a, b), rows, strict=True)] == [
        [225, 2025, 2025],
        [225, 2025, 2025],
    ]


def test_the_command(tmp_path, capsys):
    from PIL import Image

    pytest.importorskip("matplotlib")
    for name, side in (("a", 10), ("b", 30)):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (60, 40)).save(folder / "1.jpg")
        annotation = {"segmentation": rectangle((40, 60), np.s_[:side], np.s_[:side])}
        about = {"file_name": "1.jpg", "height": 40, "width": 60}
        document = {"image": about, "annotations": [annotation]}
        (folder / "1.json").write_text(json.dumps(document))
    data = ["--data", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["evaluate", "dataset", *data, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "| | a | b |" in said and "| masks | 1 | 1 |" in said
    with open(tmp_path / "out" / "masks.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["area"] for row in rows] == ["100", "900"] and rows[1]["data"] == "b"
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["a"]["photos"] == 1
    with Image.open(tmp_path / "out" / "figures.png") as picture:
        assert picture.size[0] > 500
    assert main(["evaluate", "dataset", "--data", str(tmp_path / "none")]) == 2
    assert "--data" in capsys.readouterr().err


def test_a_second_run_measures_nothing_again(tmp_path, monkeypatch):
    from sam_jax.evaluation import dataset
    from tests.evaluation.fakes import write_sa1b

    write_sa1b(tmp_path / "d")
    arguments = ["evaluate", "dataset", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "o")]
    assert main([*arguments, "--images", "1"]) == 0
    assert main(arguments) == 0
    figures = (tmp_path / "o" / "figures.json").read_text()
    monkeypatch.setattr(dataset, "mask_shape", None)
    assert main(arguments) == 0
    assert (tmp_path / "o" / "figures.json").read_text() == figures
