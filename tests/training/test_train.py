"""`python -m train` as a process: it trains, stops when told to, goes on, and ends with weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
from sam_jax.models.config import SamConfig
from sam_jax.training.config import OptimConfig, PromptConfig, Stage, TrainConfig

def config():
    model = SamConfig(16, 1, 2, (0,), image_size=64, patch_size=16, window_size=3, embed_dim=16,
                      decoder_heads=2, decoder_mlp_width=16, iou_head_width=16)
    return TrainConfig(
        name="small", model=model, data_root="none", scenes=1.0, log_every=2, save_every=4,
        stages=(Stage(12, 64, 2, 2, 1, 0),),
        prompts=PromptConfig(remat=False), optim=OptimConfig(warmup=2, schedule="cosine", ema=0.9),
    )
"""


def command(tmp_path, *more):
    (tmp_path / "config.py").write_text(CONFIG)
    return [sys.executable, "-m", "train", "--config", str(tmp_path / "config.py"), *more]


def environment(tmp_path):
    """The runs of one test share what they compile."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return os.environ | cache | {"PYTHONUNBUFFERED": "1"}


def run(tmp_path, *more, **kwargs):
    return subprocess.run(
        command(tmp_path, *more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        env=environment(tmp_path),
        **kwargs,
    )


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path):
    from sam_jax.checkpoint.load import load

    straight = run(tmp_path, "--workdir", str(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    assert "step 12/12" in straight.stdout

    more = ["--workdir", str(tmp_path / "stopped")]
    process = subprocess.Popen(
        command(tmp_path, *more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
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

    a, b = (log(tmp_path / name / "small")[-1] for name in ("straight", "stopped"))
    assert a["step"] == b["step"] == 12
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
    weights = [
        load(str(tmp_path / n / "small" / "model.safetensors")) for n in ("straight", "stopped")
    ]
    assert weights[0].config.image_size == 64 and weights[0].config.drop_path == 0
    assert _largest_difference(*(w.params for w in weights)) < 1e-5

    start = time.time()
    again = run(tmp_path, *more)
    assert again.returncode == 0 and time.time() - start < 120


def _largest_difference(a, b) -> float:
    import jax

    differences = jax.tree.map(
        lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), a, b
    )
    return max(jax.tree.leaves(differences))


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
