"""Two processes as one run: the losses of one process, stopped together, gone on with by one."""

from __future__ import annotations

import json
import signal
import socket
import subprocess

import numpy as np
import pytest

from tests.training.test_train import ROOT, command, environment, run

STEPS = ["--log-every", "1", "--optim.warmup", "250", "--optim.schedule", "step"]


def start(tmp_path, name: str, number: int, port: int, *more):
    """Process `number` of two, with two devices each."""
    words = command(tmp_path, "--workdir", str(tmp_path / name), *STEPS, *more)
    words += ["--devices.coordinator", f"localhost:{port}", "--devices.processes", "2"]
    return subprocess.Popen(
        [*words, "--devices.process", str(number)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {"JAX_NUM_CPU_DEVICES": "2"},
    )


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("localhost", 0))
        return place.getsockname()[1]


def losses(tmp_path, name: str) -> list[float]:
    rows = (tmp_path / name / "small" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [json.loads(row)["loss"] for row in rows]


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    stages = ["--stages.0.steps", "20", "--stages.0.batch-size", "4"]
    single = run(tmp_path, "--workdir", str(tmp_path / "one"), *STEPS, *stages)
    assert single.returncode == 0, single.stderr
    port = free_port()
    both = [start(tmp_path, "two", k, port, "--devices.fsdp", "2", *stages) for k in range(2)]
    outs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert "step 20/20" in outs[0] and "step" not in outs[1], "only one process talks"
    one, two = losses(tmp_path, "one"), losses(tmp_path, "two")
    assert len(one) == 20 and len(set(one)) == 20
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)

    port = free_port()
    both = [start(tmp_path, "cut", k, port, "--devices.fsdp", "2", *stages) for k in range(2)]
    for line in both[0].stdout:
        if line.startswith("step 3/"):
            both[1].send_signal(signal.SIGTERM)  # one is told, both stop
            break
    outs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [130, 130], outs
    stopped = len(losses(tmp_path, "cut"))
    assert 3 < stopped < 20 and f"stopped at step {stopped}" in outs[0]
    rest = run(tmp_path, "--workdir", str(tmp_path / "cut"), *STEPS, *stages)
    assert rest.returncode == 0 and f"going on from step {stopped}" in rest.stdout, rest.stderr
    np.testing.assert_allclose(losses(tmp_path, "cut"), one, rtol=0, atol=1e-5)
