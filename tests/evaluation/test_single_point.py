"""The single-point table: with predictors whose answers are known, and the bundled model's own."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.cli import main
from sam_jax.data.open_source import open_source
from sam_jax.evaluation import clicks, single_point
from sam_jax.evaluation.clicks import Protocol
from sam_jax.evaluation.data_sets import open_data
from sam_jax.evaluation.journal import Journal
from sam_jax.ops.rle import encode
from tests.evaluation.fakes import HW, TRUE, Cut, Knows, write_sa1b


def measure(predictor, source, protocol, images=0):
    return single_point.measure(predictor, source, protocol, Journal(None, {}), images)


def test_clicks_oracle_and_boxes(tmp_path):
    source = open_source(write_sa1b(tmp_path / "d"))
    rows = measure(Cut(), source, Protocol(3))
    assert len(rows) == 4
    for row in rows:
        assert row["1"] == pytest.approx(20 / 30)  # ten of thirty columns are missing
        assert row["1 oracle"] == 1
        assert row["2"] == pytest.approx(25 / 30)
        assert row["3"] == 1
        assert row["box"] == pytest.approx(20 / 30)
        assert row["filled box"] == 1
        assert row["area"] == 900
    assert [(r["image"], r["record"], r["mask"]) for r in rows] == [
        ("a.json", 0, 0),
        ("a.json", 0, 1),
        ("b.json", 1, 0),
        ("b.json", 1, 1),
    ]


@pytest.mark.parametrize("first", ["centre", "random"])
def test_the_truth_scores_exactly_one_and_moved_truth_what_it_must(tmp_path, first):
    source = open_source(write_sa1b(tmp_path / "d"))
    for moved, expected in ((0, 1.0), (6, 24 / 36)):  # 30 columns each, 24 in common
        for row in measure(Knows(moved=moved), source, Protocol(9, first)):
            values = {row[n] for n in ("1", "1 oracle", "2", "3", "5", "9", "box")}
            assert values == {expected}


def test_what_is_broken_is_named_and_the_rest_scored(tmp_path, capsys):
    source = open_source(write_sa1b(tmp_path / "d", broken=("broken",)))
    rows = measure(Cut(), source, Protocol(2))
    assert len(rows) == 4
    assert "skipped broken.json" in capsys.readouterr().out
    single_point.print_row("data", rows, header=True)
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| data | masks | 1 click | 1 oracle | 2 clicks | box | filled box |"
    assert table[2] == "| data | 4 | 0.667 | 1.000 | 0.833 | 0.667 | 1.000 |"


def test_a_stopped_run_goes_on(tmp_path):
    source = open_source(write_sa1b(tmp_path / "d", ("a", "b", "c")))
    whole = measure(Knows(moved=3), source, Protocol(2))

    class Stopped(Knows):
        def embed(self, image):
            if self.embedded == 2:
                raise KeyboardInterrupt
            return super().embed(image)

    def run(predictor):
        out, about = tmp_path / "out", {"model": "x"}
        return single_point.measure_all(predictor, {"d": source}, Protocol(2), out, about)["d"]

    with pytest.raises(KeyboardInterrupt):
        run(Stopped(moved=3))
    second = Knows(moved=3)
    assert run(second) == whole
    assert second.embedded == 1
    with pytest.raises(ValueError, match="clicks was 2, is 3"):
        single_point.measure_all(
            second, {"d": source}, Protocol(3), tmp_path / "out", {"model": "x"}
        )


def test_means_over_sets_weigh_each_alike():
    def rows(values):
        facts = dict.fromkeys(clicks.FACTS + clicks.CANDIDATES, 0)
        return [facts | {"image": str(i), "1": v, "1 oracle": v} for i, v in enumerate(values)]

    figures = single_point.summarise({"a": rows([0.2] * 9), "b": rows([0.8, 1.0, 0.6])})
    assert figures["a"]["iou"]["1"] == pytest.approx(0.2)
    assert figures["mean"]["iou"]["1"] == pytest.approx(0.5)
    assert figures["mean"]["masks"] == 12
    low, high = figures["mean"]["interval"]["1"]
    assert 0.4 <= low < 0.46 and 0.54 < high <= 0.6
    assert figures["a"]["interval"]["1"] == pytest.approx([0.2, 0.2])
    tables = {"a": rows([0.2] * 9), "b": rows([0.8, 1.0, 0.6])}
    lines = single_point.table_rows(tables, single_point.summarise(tables))
    assert lines[2] == ["**mean**", "12", "0.500", "0.500"]
    assert lines[3][0] == "+-" and 0.04 < float(lines[3][2]) <= 0.1
    assert lines[4][0].startswith("SAM ViT-H") and lines[4][2] == "0.581"


def test_clicks_that_make_it_worse_are_told_if_it_is_not_chance():
    rng = np.random.default_rng(0)
    facts = dict.fromkeys(clicks.FACTS, 0)

    def rows(change):
        noise = rng.normal(0, 0.02, 200)
        return [
            facts | {"image": str(i), "1": 0.5, "2": 0.5 + change + n} for i, n in enumerate(noise)
        ]

    worse, same = single_point.drops({"a": rows(-0.01)}), single_point.drops({"a": rows(0.0005)})
    assert len(worse) == 1 and worse[0].startswith("a: 2 clicks are worse than 1 click by 0.0")
    assert same == []
    one = [row | {"image": "the same"} for row in rows(-0.01)]
    assert single_point.drops({"a": one}) == [], "of one image chance cannot be seen"


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [((0.1, 0.2, 0.3), 1.0), ((3.0, 2.0, 1.0), -1.0), ((0.5, 0.5, 0.5), None)],
)
def test_predicted_ious_rank_as_true_ones(predicted, expected):
    row = dict.fromkeys(clicks.FACTS, 0) | {"image": "i", "1": 0.9}
    pairs = zip((0.2, 0.4, 0.9), predicted, strict=True)
    row |= dict(zip(clicks.CANDIDATES, [v for pair in pairs for v in pair], strict=True))
    figures = single_point.summarise({"a": [row, row], "b": [row]})
    assert figures["a"]["rank_correlation"] == (expected and pytest.approx(expected))
    sentences = single_point.rankings(figures)
    assert len(sentences) == (0 if expected is None else 2)
    assert all(s.endswith(f"rank correlation of {expected:.2f}") for s in sentences)


def test_rows_hold_the_three_candidates(tmp_path):
    source = open_source(write_sa1b(tmp_path / "d"))
    for row in measure(Knows(moved=6), source, Protocol(1)):
        true, predicted = ([row[name] for name in clicks.CANDIDATES[k::2]] for k in (0, 1))
        assert true[1] == row["1 oracle"] == row["1"] == max(true)
        assert predicted[1] == max(predicted) > predicted[0]


def coco(folder):
    """A COCO file of one picture with both masks."""
    folder.mkdir()
    Image.new("RGB", HW[::-1]).save(folder / "p.png")
    document = {
        "images": [{"id": 5, "file_name": "p.png", "height": HW[0], "width": HW[1]}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 1, "iscrowd": 0, "segmentation": encode(m)}
            for i, m in enumerate(TRUE)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "all.json").write_text(json.dumps(document))
    return folder


def mask_pngs(folder):
    """A picture and its label map."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", HW[::-1]).save(folder / "images" / "p.jpg")
    Image.fromarray(np.uint8(TRUE[0] + 2 * TRUE[1])).save(folder / "masks" / "p.png")
    return folder


def test_every_form_of_data_is_opened_by_name(tmp_path, capsys):
    root = tmp_path / "root"
    root.mkdir()
    write_sa1b(root / "one")
    coco(root / "two")
    mask_pngs(root / "three")
    sources = open_data([str(root)])
    assert sorted(sources) == ["one", "three", "two"]
    for source in sources.values():
        assert measure(Knows(), source, Protocol(1))[0]["1"] == 1.0
    assert list(open_data([str(root / "two" / "all.json")])) == ["all"]
    assert list(open_data([str(root / "three")])) == ["three"]
    assert list(open_data([str(root / "one"), str(root / "two")])) == ["one", "two"]
    (root / "empty").mkdir()
    assert sorted(open_data([str(root)])) == ["one", "three", "two"]
    assert "skipped" in capsys.readouterr().out, "what cannot be read is told"
    with pytest.raises(ValueError, match="two data sets are called one"):
        open_data([str(root / "one"), str(root)])


def test_the_papers_data_sets_by_name(tmp_path):
    place = tmp_path / "leaves" / "Plant" / "Ara2012"
    place.mkdir(parents=True)
    Image.new("RGB", HW[::-1]).save(place / "ara2012_plant001_rgb.png")
    Image.fromarray(np.uint8(TRUE[0] + 2 * TRUE[1])).save(place / "ara2012_plant001_label.png")
    (tmp_path / "leaves").rename(tmp_path / "ppdls")
    for paths in ([f"ppdls={tmp_path / 'ppdls'}"], [str(tmp_path)]):
        sources = open_data(paths)
        assert list(sources) == ["ppdls"]
        assert len(measure(Knows(), sources["ppdls"], Protocol(1))) == 2
    with pytest.raises(ValueError, match="(?s)--data: .*rgb.png"):
        open_data([f"ppdls={tmp_path / 'ppdls' / 'Plant' / 'none'}"])


def test_the_command_writes_table_rows_plots_and_sheets(tmp_path, capsys):
    write_sa1b(tmp_path / "val" / "x")
    write_sa1b(tmp_path / "val" / "y", ("c",))
    out = tmp_path / "out"
    arguments = ["evaluate", "single-point", "--data", str(tmp_path / "val"), "--clicks", "2"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    with open(out / "masks.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["data"] for row in rows] == ["x"] * 4 + ["y"] * 2
    assert all(0 <= float(rows[0][name]) <= 1 for name in ("candidate 1", "candidate 3"))
    assert "x: predicted and true IoU of the three masks have a rank correlation of " in printed
    means = [np.mean([float(r["2"]) for r in rows if r["data"] == name]) for name in "xy"]
    scores = json.loads((out / "scores.json").read_text())
    assert scores["mean"]["iou"]["2"] == pytest.approx(np.mean(means))
    table = (out / "table.md").read_text()
    assert f"| x | 4 | {scores['x']['iou']['1']:.3f} |" in table
    assert all(line in printed for line in table.splitlines())
    for name in ("clicks.png", "differences.png", "x.jpg", "y.jpg"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert main([*arguments, "--out", str(out)]) == 0
    assert (out / "table.md").read_text() == table
    assert main([*arguments, "--out", str(out), "--first-click", "random"]) == 2
    assert "first was 'centre', is 'random'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", "."], "folder of NAME.jpg + NAME.json in SA-1B form"),
        ([], "at least one data set"),
        (["--data", "data", "--clicks", "0"], "at least 1, got 0"),
        (["--data", "data", "--images", "-3"], "--images: expected 0 (all) or more, got -3"),
        (["--data", "data", "--model", "vit_x"], "vit_x"),
        (["--data", "lvis=data"], "lvis_v0.5_val.json"),
        (["--data", "imagenet=data"], "imagenet"),
    ],
)
def test_bad_input_says_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    write_sa1b(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    arguments = [
        a.replace("data", str(tmp_path / "data")) if a[:2] != "--" else a for a in arguments
    ]
    assert main(["evaluate", "single-point", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco_cc", "davis2016_val", "dsb2018_bbbc038"])
def test_the_bundled_model_on_held_out_photographs(shared, name):
    """Clicks help, and boxes but for small things, as the README's table and the card say."""
    from sam_jax import Predictor, load

    source = open_source(shared / "val" / name)
    rows = measure(Predictor(load("tiny")), source, Protocol(5), 10)
    mean = {k: np.mean([row[k] for row in rows]) for k in ("1", "1 oracle", "3", "5")}
    assert mean["1"] < mean["3"] < mean["5"]
    assert mean["1 oracle"] >= mean["1"]
    assert single_point.rank_correlation(rows) > 0.3
    large = [row for row in rows if row["area"] >= 1000 or name == "dsb2018_bbbc038"]
    assert np.mean([r["box"] for r in large]) > np.mean([r["filled box"] for r in large])


def test_images_that_are_encoded_together_give_the_same_rows(tmp_path, monkeypatch):
    from sam_jax.evaluation import models
    from sam_jax.inference.predictor import Predictor
    from tests.small import small_sam

    source = open_source(write_sa1b(tmp_path / "d", tuple("abcde"), broken=("bad",)))
    predictor, calls = Predictor(small_sam()), []
    expected = measure(predictor, source, Protocol(2))
    embed = predictor.embed

    def watched(images):
        calls.append(len(images) if isinstance(images, list) else 1)
        return embed(images)

    predictor.embed = watched
    monkeypatch.setattr(models, "images_at_once", lambda _: 3)
    assert measure(predictor, source, Protocol(2)) == expected
    assert calls == [3, 2]
