"""Training samples: geometry, selection, determinism, damaged records."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sam_jax.data.pipeline import PipelineConfig, batches, make_sample
from sam_jax.data.sources import RecordError
from sam_jax.ops import rle

STILL = PipelineConfig(
    image_size=64,
    mask_size=32,
    max_masks=4,
    scale_range=(1.0, 1.0),
    flip=False,
    colour_jitter=0.0,
    grey_probability=0.0,
    invert_probability=0.0,
    min_mask_pixels=4,
    batch_size=4,
)


def still(**changes):
    return PipelineConfig(**{**STILL.__dict__, **changes})


def blobs_record(height, width, count=6, seed=0, name="r"):
    """Disjoint boxes; the image shows mask k as grey 40 * (k + 1) in all channels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for k in range(count):
        y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
        labels[y : y + rng.integers(6, 30), x : x + rng.integers(6, 30)] = k + 1
    image = np.repeat((labels * 40)[..., None], 3, 2)
    rles = [rle.encode(labels == k + 1) for k in range(count)]
    return {"image": image, "rles": rles, "name": name}


def tight_box(mask):
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [xs[0], ys[0], xs[-1], ys[-1]]


def cells(mask, size):
    """Area average of [S, S] in size x size cells."""
    step = len(mask) // size
    return mask.reshape(size, step, size, step).mean((1, 3))


def test_shapes_and_dtypes():
    sample = make_sample(blobs_record(60, 100), np.random.default_rng(0), STILL)
    assert {k: (v.shape, str(v.dtype)) for k, v in sample.items()} == {
        "image": ((64, 64, 3), "uint8"),
        "image_hw": ((2,), "int32"),
        "masks": ((4, 32, 32), "uint8"),
        "boxes_xyxy": ((4, 4), "float32"),
        "mask_valid": ((4,), "bool"),
    }
    assert sample["image_hw"].tolist() == [38, 64]  # round(60 * 0.64), top left
    assert not sample["image"][38:].any() and not sample["masks"][:, 19:].any()


def test_exact_after_crop_and_flips():
    # 128 pixels at scale 2 in a frame of 64: crops without resampling, so all must be exact.
    config = still(scale_range=(2.0, 2.0), flip=True, vertical_flip=True, min_mask_pixels=1)
    seen = set()
    for seed in range(16):
        record = blobs_record(128, 128, seed=seed % 4)
        sample = make_sample(record, np.random.default_rng(seed), config)
        assert sample["image_hw"].tolist() == [64, 64]
        grey = sample["image"][..., 0]
        flips = [grey, grey[:, ::-1], grey[::-1], grey[::-1, ::-1]]
        source = np.lib.stride_tricks.sliding_window_view(record["image"][..., 0], (64, 64))
        matches = [i for i, f in enumerate(flips) if (source == f).all((2, 3)).any()]
        assert matches, "the image is no window of the photo"
        seen.update(matches)
        for row in np.flatnonzero(sample["mask_valid"]):
            box = sample["boxes_xyxy"][row].astype(int)
            shown = [grey == value for value in np.unique(grey[grey > 0])]
            mask = next(mask for mask in shown if tight_box(mask) == box.tolist())
            # Cells of 2 x 2 pixels: 0, 64, 128, 191 or 255, exactly.
            expected = np.floor(255 * cells(mask, 32) + 0.5)
            np.testing.assert_array_equal(sample["masks"][row], expected)
    assert seen == {0, 1, 2, 3}


def test_masks_follow_the_image_at_any_scale():
    config = still(scale_range=(0.4, 2.5), flip=True, image_size=128, mask_size=32, max_masks=1)
    for seed in range(30):
        mask = np.zeros((90, 130), bool)
        y, x = np.random.default_rng(seed).integers(5, 60, 2)
        mask[y : y + 21, x : x + 33] = True
        image = np.repeat((mask * np.uint8(255))[..., None], 3, 2)
        record = {"image": image, "rles": [rle.encode(mask)], "name": "m"}
        sample = make_sample(record, np.random.default_rng(seed), config)
        shown = sample["image"][..., 0].astype(float)
        assert np.abs(cells(shown, 32) - sample["masks"][0]).max() <= 3
        box = np.array(tight_box(shown >= 128))
        assert np.abs(box - sample["boxes_xyxy"][0]).max() <= 1


def test_masks_of_another_size_than_the_picture():
    mask = np.zeros((200, 200), bool)
    mask[20:100, 40:180] = True
    image = np.repeat((mask[::2, ::2] * np.uint8(255))[..., None], 3, 2)
    record = {"image": image, "rles": [rle.encode(mask)], "name": "half"}
    sample = make_sample(record, np.random.default_rng(0), still(image_size=100, mask_size=50))
    assert sample["boxes_xyxy"][0].tolist() == [20, 10, 89, 49]
    shown = np.round(cells(sample["image"][..., 0].astype(float), 50))
    np.testing.assert_array_equal(sample["masks"][0] >= 128, shown >= 128)
    # The mask is shrunk by 2 with antialiasing, which blurs its edge by a quarter of a cell.
    assert np.abs(sample["masks"][0] - shown).max() <= 32
    assert sample["masks"][0].sum() == pytest.approx(255 * 35 * 20, rel=0.002)


def test_selection_of_masks():
    masks = np.zeros((4, 64, 64), bool)
    masks[0, :62] = True  # more than 90 % of the picture
    masks[1, 5:9, 5:9] = True  # 16 pixels
    masks[2, 20, 20:23] = True  # 3 pixels
    masks[3, 30:50, 10:60] = True
    image = np.zeros((64, 64, 3), np.uint8)
    record = {"image": image, "rles": [rle.encode(m) for m in masks], "name": "s"}
    sample = make_sample(record, np.random.default_rng(0), STILL)
    boxes = sample["boxes_xyxy"][sample["mask_valid"]].tolist()
    assert sorted(boxes) == [[5, 5, 8, 8], [10, 30, 59, 49]]
    assert not sample["masks"][2:].any() and not sample["boxes_xyxy"][2:].any()
    bigger = make_sample(record, np.random.default_rng(0), still(min_mask_pixels=17))
    assert bigger["mask_valid"].tolist() == [True, False, False, False]
    empty = {**record, "rles": [record["rles"][0], rle.encode(np.zeros((64, 64), bool))]}
    assert make_sample(empty, np.random.default_rng(0), STILL) is None
    many = {**record, "rles": [record["rles"][3]] * 9}
    assert make_sample(many, np.random.default_rng(0), STILL)["mask_valid"].all()


def test_too_few_masks_are_repeated_when_asked():
    masks = np.zeros((3, 64, 64), bool)
    for k in range(3):
        masks[k, 10:30, 20 * k : 20 * k + 10] = True
    image = np.zeros((64, 64, 3), np.uint8)
    record = {"image": image, "rles": [rle.encode(m) for m in masks], "name": "r"}
    record["texts"] = record["looks"] = np.eye(3, 5, dtype=np.float32)
    record["texts"] = record["texts"][:, None]
    once = make_sample(record, np.random.default_rng(0), still(max_masks=8))
    again = make_sample(record, np.random.default_rng(0), still(max_masks=8, repeat=True))
    assert once["mask_valid"].sum() == 3 and again["mask_valid"].all()
    turns = np.arange(8) % 3
    for name in ("masks", "boxes_xyxy", "text", "look"):
        assert once[name][:3].any()
        np.testing.assert_array_equal(again[name], once[name][turns], err_msg=name)
    many = {"image": image, "rles": record["rles"] * 4, "name": "m"}
    as_ever, asked = (
        make_sample(many, np.random.default_rng(0), still(max_masks=8, repeat=repeat))
        for repeat in (False, True)
    )
    np.testing.assert_array_equal(as_ever["masks"], asked["masks"])


def test_area_power_prefers_large_masks():
    masks = np.zeros((10, 64, 64), bool)
    masks[0, 30:60, 10:60] = True  # 1500 pixels, the others 16
    for k in range(1, 10):
        masks[k, 5:9, 6 * k : 6 * k + 4] = True
    image = np.zeros((64, 64, 3), np.uint8)
    record = {"image": image, "rles": [rle.encode(m) for m in masks], "name": "p"}
    for power, low, high in [(0.0, 0.03, 0.2), (1.0, 0.85, 1.0)]:  # 1 / 10 and 1500 / 1644
        config = still(max_masks=1, area_power=power)
        boxes = [
            make_sample(record, np.random.default_rng(seed), config)["boxes_xyxy"][0]
            for seed in range(100)
        ]
        assert low < np.mean([box[1] == 30 for box in boxes]) <= high


def test_every_crop_holds_a_mask():
    mask = np.zeros((300, 300), bool)
    mask[280:290, 3:12] = True  # a corner that most random windows miss
    image = np.zeros((300, 300, 3), np.uint8)
    record = {"image": image, "rles": [rle.encode(mask)], "name": "corner"}
    config = still(scale_range=(4.0, 4.0))
    for seed in range(20):
        sample = make_sample(record, np.random.default_rng(seed), config)
        assert sample["mask_valid"][0] and sample["masks"][0].max() == 255


def test_colours_change_only_when_asked():
    record = blobs_record(64, 64)
    record["image"] = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    same = make_sample(record, np.random.default_rng(0), STILL)
    np.testing.assert_array_equal(same["image"], record["image"])
    negative = make_sample(record, np.random.default_rng(0), still(invert_probability=1.0))
    np.testing.assert_array_equal(negative["image"], 255 - record["image"])
    grey = make_sample(record, np.random.default_rng(0), still(grey_probability=1.0))["image"]
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    luma = record["image"] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 2] - luma).max() <= 1
    jittered = make_sample(record, np.random.default_rng(0), still(colour_jitter=0.3))["image"]
    assert 2 < np.abs(jittered.astype(int) - record["image"]).mean() < 80


class Broken:
    """A source whose odd records are damaged."""

    def __init__(self, length=6):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index % 2:
            raise RecordError(f"photo{index}.json: truncated")
        return blobs_record(64, 80, seed=index, name=f"photo{index}")


def equal(a, b):
    return all((a[key] == b[key]).all() for key in a)


def test_batches_depend_on_seed_and_step_only():
    sources = [([blobs_record(60, 90, seed=s) for s in range(5)], 1.0), (Broken(), 2.0)]
    config = still(scale_range=(0.5, 2.0), flip=True, colour_jitter=0.3)
    reader = batches(sources, config, seed=7)
    run = list(itertools.islice(reader, 8))
    assert run[0]["image"].shape == (4, 64, 64, 3) and run[0]["mask_valid"].shape == (4, 4)
    assert not any(equal(a, b) for a, b in itertools.combinations(run, 2))
    reader.close()
    for threads in (0, 3):
        late = batches(sources, config, seed=7, start_step=5, threads=threads)
        assert equal(next(late), run[5]) and equal(next(late), run[6])
        late.close()
    other = batches(sources, config, seed=8)
    assert not equal(next(other), run[0])
    other.close()
    parts = [batches(sources, config, seed=7, process_index=k, process_count=2) for k in (0, 1)]
    halves = [next(part) for part in parts]
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(halves[k]["image"], run[0]["image"][2 * k : 2 * k + 2])
        part.close()


def test_processes_make_the_same_batches():
    sources = [([blobs_record(60, 90, seed=s) for s in range(5)], 1.0)]
    reader = batches(sources, still(flip=True), seed=7, threads=0)
    run = list(itertools.islice(reader, 6))
    reader.close()
    reader = batches(sources, still(flip=True), seed=7, start_step=2, workers=2)
    for expected in run[2:]:
        assert equal(next(reader), expected)
    reader.close()


def test_what_stops_a_process_stops_the_run():
    blank = {"image": np.zeros((8, 8, 3), np.uint8), "rles": [], "name": "blank"}
    reader = batches([([blank], 1.0)], STILL, workers=1)
    with pytest.raises(ValueError, match="50 records in a row of .* the last: blank: no mask"):
        next(reader)
    reader.close()


LEFT_ALONE = """
import multiprocessing, os, signal
import numpy as np
from sam_jax.data.pipeline import PipelineConfig, batches

if __name__ == "__main__":
    record = {"image": np.zeros((64, 64, 3), np.uint8), "name": "square", "rles": [
        {"size": [64, 64], "counts": [64 * 10, 64 * 20, 64 * 34]}]}
    reader = batches([([record], 1.0)], PipelineConfig(image_size=64, mask_size=64), workers=2)
    next(reader)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_processes_end_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(LEFT_ALONE)
    # Not with pipes that the workers inherit: one would be read until they end.
    with open(tmp_path / "pids", "w") as said:
        process = subprocess.run([sys.executable, script], stdout=said, timeout=120)
    assert process.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, workers))


def runs(pid):
    """Whether a process is there and is not one that only waits to be asked how it ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_number_of_workers_below_zero_is_refused():
    with pytest.raises(ValueError, match="workers must be 0 or a number of processes, got -1"):
        batches([([blobs_record(64, 64)], 1.0)], STILL, workers=-1)


def test_weights_are_shares_of_the_samples():
    records = [blobs_record(64, 64, seed=seed) for seed in (0, 1)]
    dark = [{**r, "image": np.zeros((64, 64, 3), np.uint8)} for r in records]
    light = [{**r, "image": np.full((64, 64, 3), 200, np.uint8)} for r in records]
    reader = batches([(dark, 3.0), (light, 1.0)], STILL, threads=0)
    drawn = np.concatenate([next(reader)["image"][:, 0, 0, 0] for _ in range(25)])
    reader.close()
    assert (drawn == 200).mean() == pytest.approx(0.25, abs=0.02)


def test_damaged_records_are_skipped_counted_and_named_once(caplog):
    skipped = {}
    with caplog.at_level(logging.WARNING):
        reader = batches([(Broken(), 1.0)], STILL, skipped=skipped, threads=0)
        for _ in range(10):
            assert next(reader)["mask_valid"].any(1).all()
        reader.close()
    assert sorted(skipped) == ["0:1", "0:3", "0:5"]
    assert skipped["0:3"] == "photo3.json: truncated"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and sum("photo5.json: truncated" in line for line in lines) == 1


def test_damaged_counts_are_a_record_error():
    record = blobs_record(64, 64)
    record["rles"][2]["counts"] = record["rles"][2]["counts"][:-1]
    with pytest.raises(RecordError, match="r: mask 2: rle counts"):
        make_sample(record, np.random.default_rng(0), STILL)


def test_a_source_without_usable_records_stops_the_run():
    blank = {"image": np.zeros((8, 8, 3), np.uint8), "rles": [], "name": "blank"}
    reader = batches([([blank], 1.0)], STILL, threads=0)
    sentence = "50 records in a row of .* the last: blank: no mask .*min_mask_pixels"
    with pytest.raises(ValueError, match=sentence):
        next(reader)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask_size": 30}, "mask_size must divide"),
        ({"scale_range": (0.0, 1.0)}, "scale_range"),
        ({"scale_range": (2.0, 1.0)}, "scale_range"),
        ({"max_masks": 0}, "max_masks"),
        ({"colour_jitter": 1.5}, "colour_jitter"),
    ],
)
def test_bad_configs(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        still(**changes)


def test_bad_batches():
    good = [blobs_record(64, 64)]
    for sources, sentence in [
        ([], "at least one"),
        ([([], 1.0)], "must not be empty"),
        ([(good, 0.0)], "weights must be positive"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            batches(sources, STILL)
    with pytest.raises(ValueError, match="process_count must divide"):
        batches([(good, 1.0)], STILL, process_count=3)


def test_without_grain_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match=r"grain: pip install 'sam_jax\[train\]'"):
        batches([([{}], 1.0)], STILL)
