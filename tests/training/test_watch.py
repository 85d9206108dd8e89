"""What a run tells, and the guard against numbers that are none."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.training.test_step import make_batch
from train import guard
from train.guard import NanGuard
from train.watch import Watch

ROW = {"loss": 2.0, "dice": 0.5, "iou_first": 0.25, "iou_last": 0.75}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_and_files(tmp_path, capsys):
    watch = Watch(tmp_path, 10)
    watch.set_cost(flops_per_step=3.0, peak=1e-9)
    row = watch.scalars(4, ROW, images=32)
    assert row["images_per_second"] == pytest.approx(8 / row["seconds_per_step"])
    assert row["peak_share"] == pytest.approx(3e9 / row["seconds_per_step"])
    watch.set_cost(None, None)
    watch.scalars(6, ROW, images=16)
    watch.close()
    first, second = rows(tmp_path / "metrics.jsonl")
    assert (first["step"], second["step"]) == (4, 6) and first["loss"] == 2.0
    assert "peak_share" in first and "peak_share" not in second
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 4/10  loss 2.000  dice 0.500  iou 0.250 -> 0.750")
    assert "of peak" in lines[0] and "of peak" not in lines[1]


def test_time_that_is_no_training_does_not_count(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("train.watch.time.perf_counter", lambda: clock[0])
    watch = Watch(tmp_path, 10)
    clock[0] += 3  # two steps
    with watch.paused():
        clock[0] += 50  # a save
    clock[0] += 3  # two more
    row = watch.scalars(4, ROW, images=8)
    watch.close()
    assert row["seconds_per_step"] == pytest.approx(1.5)
    assert row["images_per_second"] == pytest.approx(8 / 6)


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    watch = Watch(tmp_path, 10, 2)
    watch.scalars(5, ROW, images=4)
    watch.close()
    out = capsys.readouterr().out
    assert "5/10" in out and "images/s" in out and "step 5/10" not in out


def test_what_came_after_the_checkpoint_is_cut(tmp_path):
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        watch = Watch(tmp_path, 10, start)
        for step in steps:
            watch.scalars(step, ROW | {"loss": float(10 * start + step)}, images=4)
            watch.validation(step, {"val/cells/1": 0.5})
        watch.close()
    found = [(row["step"], row["loss"]) for row in rows(tmp_path / "metrics.jsonl")]
    assert found == [(2, 2.0), (4, 4.0), (6, 46.0), (8, 48.0)]
    assert [row["step"] for row in rows(tmp_path / "validation.jsonl")] == [2, 4, 6, 8]


def test_validations_are_told_drawn_and_kept(tmp_path, capsys):
    watch = Watch(tmp_path, 10)
    sheet = np.full((20, 30, 3), 7, np.uint8)
    watch.validation(4, {"val/cells/1": 0.725, "val/cells/box": 0.8, "val/cars/1": 0.25}, sheet)
    watch.close()
    assert capsys.readouterr().out.splitlines() == [
        "validation at step 4: cells: 1 0.725  box 0.800",
        "validation at step 4: cars: 1 0.250",
    ]
    with Image.open(tmp_path / "pictures" / "step_0000004.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), sheet)


def test_what_was_skipped_is_counted_named_and_kept(tmp_path, capsys):
    (tmp_path / "skipped.json").write_text('{"0:99": "z.json: from an earlier sitting"}')
    skipped = {}
    watch = Watch(tmp_path, 10, skipped=skipped)
    watch.scalars(1, ROW, 4)
    skipped |= {f"0:{k:02d}": f"{k}.png: truncated" for k in range(12)}
    watch.scalars(2, ROW, 4)
    watch.close()
    out = capsys.readouterr().out.splitlines()
    assert "skipped" not in out[0] and out[1].split("s/step")[0].count("skipped 12") == 1
    assert "skipped 12 records" in out[2] and out[3] == "  0.png: truncated"
    assert out[-1] == "  and 2 more" and len(out) == 3 + 10 + 1
    assert len(json.loads((tmp_path / "skipped.json").read_text())) == 13


def test_processes_that_are_not_the_chief_are_silent(tmp_path, capsys):
    watch = Watch(tmp_path, 10, chief=False, skipped={"0:1": "a"}, profile=(0, 2))
    watch.trace(0)
    watch.scalars(2, ROW, 4)
    watch.validation(2, {"val/cells/1": 0.5})
    watch.say("something")
    watch.close()
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_tensorboard_gets_scalars(tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install sam_jax[train]")
    watch = Watch(tmp_path, 10)
    watch.scalars(4, ROW, images=32)
    watch.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/iou_first" in events.read_bytes()


def test_steps_are_profiled(tmp_path, capsys):
    watch = Watch(tmp_path, 10, profile=(1, 2))
    x = jnp.zeros(())
    for step in range(4):
        watch.trace(step, x)
        x = jnp.tanh(x + 1)
    watch.close()
    assert capsys.readouterr().out.count("ui.perfetto.dev") == 1
    assert len(list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))) == 1


def test_the_guard_stops_one_step_later_and_keeps_the_batch(tmp_path, capsys):
    watcher, good, bad = NanGuard(tmp_path), make_batch(0), make_batch(1)
    fine = {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(2.0), "dice": jnp.float32(jnp.nan)}
    watcher.check(1, fine, good)
    watcher.check(2, fine | {"grad_norm": jnp.float32(jnp.inf)}, bad)
    with pytest.raises(FloatingPointError, match=r"step 2 is not finite \(loss 1.0, grad_norm inf"):
        watcher.check(3, fine, good)
    path = tmp_path / "bad_batch_2.npz"
    with np.load(path) as file:
        assert sorted(file) == sorted(bad)
        np.testing.assert_array_equal(file["image"], bad["image"])
    assert guard.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "image        uint8 [2, 32, 32, 3]" in out and "masks of each image: [3, 2]" in out
    with Image.open(tmp_path / "bad_batch_2.png") as picture:
        assert picture.size == (2 * 38 + 6, 2 * 38 + 6)
    assert guard.main([str(tmp_path / "none.npz")]) == 2


def test_the_guard_sees_the_last_step(tmp_path):
    watcher = NanGuard(tmp_path)
    watcher.check(7, {"loss": jnp.float32(jnp.nan)}, {"x": np.array([1.0, np.nan], np.float32)})
    with pytest.raises(FloatingPointError, match="step 7 is not finite"):
        watcher.finish()
    watcher.finish()
    with np.load(tmp_path / "bad_batch_7.npz") as file:
        assert "NOT FINITE: 1 values" in guard.describe(dict(file))[0]
