"""`python -m train` as a process: it trains, stops when told to, goes on, and ends with weights."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from sam_jax.models.config import TINY
from sam_jax.training.config import LoraConfig, OptimConfig, TrainConfig
from sam_jax.training.lora import add_adapters
from sam_jax.training.sharding import make_mesh
from sam_jax.training.step import TrainState
from tests.conftest import hurried
from tests.small import small_sam
from train.__main__ import trained_model

ROOT = Path(__file__).parents[2]
CONFIG = """
from sam_jax.models.config import SamConfig
from sam_jax.training.config import OptimConfig, PromptConfig, Stage, TrainConfig

def config():
    model = SamConfig(16, 1, 2, (0,), image_size=64, patch_size=16, window_size=3, embed_dim=16,
                      decoder_depth=1, decoder_heads=2, decoder_mlp_width=16, iou_head_width=16)
    return TrainConfig(
        name="small", model=model, data_root="none", scenes=1.0, log_every=2, save_every=4,
        stages=(Stage(12, 64, 2, 2, 1, 0),),
        prompts=PromptConfig(remat=False), optim=OptimConfig(warmup=2, schedule="cosine", ema=0.9),
    )
"""


def command(tmp_path, *more):
    (tmp_path / "config.py").write_text(CONFIG)
    return [sys.executable, "-m", "train", "--config", str(tmp_path / "config.py"), *more]


def environment():
    return os.environ | hurried() | {"PYTHONUNBUFFERED": "1"}


def run(tmp_path, *more, **kwargs):
    return subprocess.run(
        command(tmp_path, *more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        env=environment(),
        **kwargs,
    )


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path):
    from sam_jax.checkpoint.load import load

    straight = run(tmp_path, "--workdir", str(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    assert "step 12/12" in straight.stdout

    # ---- asked to stop
    more = ["--workdir", str(tmp_path / "stopped")]
    process = start(tmp_path, *more)
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGTERM)
            break
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(timeout=120) == 130 and "goes on from there" in out
    finished = run(tmp_path, *more)
    assert finished.returncode == 0, finished.stderr
    assert "going on from step" in finished.stdout
    assert run(tmp_path, *more).returncode == 0  # nothing is left to do

    # ---- killed in the middle of a save, twice
    more = ["--workdir", str(tmp_path / "killed"), "--save-every", "1"]
    for _ in range(2):
        kill_while_saving(start(tmp_path, *more), tmp_path / "killed" / "small" / "checkpoints")
    assert not (tmp_path / "killed" / "small" / "model.safetensors").exists()
    finished = run(tmp_path, *more)
    assert finished.returncode == 0, finished.stderr

    names = ("straight", "stopped", "killed")
    logs = [log(tmp_path / name / "small") for name in names]
    assert [rows[-1]["step"] for rows in logs] == [12] * 3
    steps = [row["step"] for row in logs[2]]
    assert steps == sorted(set(steps)), "steps that were lost with a kill are noted once"
    sams = [load(str(tmp_path / name / "small" / "model.safetensors")) for name in names]
    assert sams[0].config.image_size == 64 and sams[0].config.drop_path == 0
    for sam in sams[1:]:
        assert same_bits(sam.params, sams[0].params)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_share_of_the_weights_that_it_began_with_is_kept(share):
    first, state = ({"a": {"b": np.full(3, x, np.float32)}} for x in (1.0, 5.0))
    state = TrainState(np.int32(9), {"a": {"b": np.zeros(3)}}, {}, (), ema=state)
    config = TrainConfig(model=TINY, optim=OptimConfig(start_share=share))
    tools = types.SimpleNamespace(start=first if share else None, text_tower=None)
    written = trained_model(config, state, make_mesh(devices=jax.devices()[:1]), tools).params
    np.testing.assert_allclose(written["params"]["a"]["b"], 5 - 4 * share)


def test_what_was_frozen_is_kept_to_the_bit():
    still = {"a": np.random.default_rng(0).standard_normal(99).astype(np.float32)}
    state = TrainState(np.int32(9), still, {}, (), ema={})
    config = TrainConfig(model=TINY, optim=OptimConfig(start_share=0.3))
    tools = types.SimpleNamespace(start=still, text_tower=None)
    written = trained_model(config, state, make_mesh(devices=jax.devices()[:1]), tools).params
    np.testing.assert_array_equal(written["params"]["a"], still["a"])


def test_a_share_is_kept_of_what_has_adapters():
    lora = LoraConfig(rank=2)
    start = jax.device_get(small_sam().params["params"])
    adapted = add_adapters(start, lora, jax.random.key(0))
    state = TrainState(np.int32(9), adapted, {}, (), ema={})
    config = TrainConfig(model=TINY, lora=lora, optim=OptimConfig(start_share=0.3))
    tools = types.SimpleNamespace(start=start, text_tower=None)
    written = trained_model(config, state, make_mesh(devices=jax.devices()[:1]), tools).params
    # Fresh adapters add nothing.
    jax.tree.map(np.testing.assert_array_equal, written["params"], start)


@pytest.mark.slow
def test_a_run_that_keeps_a_share_of_its_start(tmp_path):
    from sam_jax.checkpoint.load import load

    begin = ["--workdir", str(tmp_path), "--name", "begin", "--stages.0.steps", "2"]
    assert run(tmp_path, *begin).returncode == 0
    weights = []
    for name, share in (("whole", "0"), ("shared", "0.25")):
        more = ["--workdir", str(tmp_path), "--name", name, "--optim.start-share", share]
        more += ["--init-from", str(tmp_path / "begin" / "model.safetensors")]
        assert (done := run(tmp_path, *more)).returncode == 0, done.stderr
        weights.append(load(tmp_path / name / "model.safetensors").params["params"])
    start = load(tmp_path / "begin" / "model.safetensors").params["params"]
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(0.25 * a + 0.75 * b, c, atol=1e-6),
        *(start, *weights),
    )


@pytest.mark.slow
def test_a_run_with_a_teacher(tmp_path):
    from sam_jax.checkpoint.load import load, save
    from tests.small import small_sam

    model = runpy.run_path(command(tmp_path)[4])["config"]().model
    save(small_sam(model), tmp_path / "teacher.safetensors")
    more = ["--teacher", str(tmp_path / "teacher.safetensors"), "--loss.teacher-weight", "1"]
    more += ["--init-decoder", str(tmp_path / "teacher.safetensors"), "--workdir", str(tmp_path)]
    alone = [f"--loss.{name}-weight" for name in ("focal", "dice", "iou")]
    alone = [word for name in alone for word in (name, "0")]
    refused = run(tmp_path, *more, *alone)
    assert refused.returncode == 2 and "optim.frozen: no mask is learned" in refused.stderr
    still = ["--optim.frozen", "prompt_encoder/*", "mask_decoder/*"]
    done = run(tmp_path, *more, *alone, *still, "--name", "alone")
    assert done.returncode == 0, done.stderr
    assert "missed of the teacher" in done.stdout and "dice" not in done.stdout
    rows = log(tmp_path / "alone")
    # A fresh neck begins with the teacher's mean, which misses about all of the variance.
    assert 0 < rows[-1]["teacher"] < rows[0]["teacher"] < 3
    decoder, taught = (
        load(tmp_path / name).params["params"]["mask_decoder"]
        for name in ("teacher.safetensors", "alone/model.safetensors")
    )
    assert same_bits(decoder, taught)
    beside = run(tmp_path, *more, "--loss.answers-weight", "1", "--name", "beside")
    assert beside.returncode == 0, beside.stderr
    assert "of its answers" in beside.stdout
    assert {"teacher", "answers", "dice", "iou_last"} <= log(tmp_path / "beside")[-1].keys()
    for name in ("alone", "beside"):
        plotted = [sys.executable, "-m", "train.plot", str(tmp_path / name)]
        assert subprocess.run(plotted, cwd=ROOT, env=environment()).returncode == 0


def start(tmp_path, *more):
    return subprocess.Popen(
        command(tmp_path, *more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def kill_while_saving(process, checkpoints: Path):
    """SIGKILL as soon as some save, beyond those found at the start, is under way."""
    before = set(checkpoints.glob("*")) if checkpoints.is_dir() else set()
    while process.poll() is None:
        found = set(checkpoints.glob("*tmp*")) if checkpoints.is_dir() else set()
        if found - before:
            process.kill()
            break
        time.sleep(0.001)
    process.stdout.close()
    assert process.wait(timeout=60) == -signal.SIGKILL, "it ended before it could be killed"


def same_bits(a, b) -> bool:
    import jax

    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data-root", "nowhere", "--photos", "folder", "1.0"], "data_root"),
        (["--init-from", "nothing.pth"], "nothing.pth"),
        (["--optim.lr", "fast"], "lr"),
    ],
)
def test_wrong_input_is_exit_code_2(tmp_path, more, message):
    done = run(tmp_path, "--workdir", str(tmp_path), *more)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_no_config_is_said():
    done = subprocess.run(
        [sys.executable, "-m", "train", "--config", "missing.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no such file: missing.py" in done.stderr
