"""The benchmark command: its table, and that both sides compute the same thing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sam_jax.models.config import VIT_B
from sam_jax.training.flops import encoder_flops
from tests.benchmarks.__main__ import HEAD, main, row, table, write_readme
from tests.benchmarks.cases import COMPILED, OURS, RELEASED, Case, Result, cpu_cases, gpu_cases
from tests.benchmarks.options import Options, stage_options
from tests.benchmarks.roofline import flops, least_bytes

pytestmark = pytest.mark.optimised

ROOT = Path(__file__).parents[1]


def test_options_survive_the_command_line():
    for case in cpu_cases() + gpu_cases():
        assert stage_options(case.options.arguments()) == case.options
    odd = Options("generator", photo_wh=(3, 5), keep_all=False, compiled=True, count=7)
    assert stage_options(odd.arguments()) == odd


def test_a_row_has_the_ratio_to_the_faster_of_the_released_ones():
    facts = {"peak_flops": 1e13, "device": "cpu", "jax": "1"}
    results = {
        RELEASED: Result([4.0, 5.0, 4.5], 8.0, {}),
        COMPILED: Result([3.0, 3.0, 3.0], 6.0, {}),
        OURS: Result([1.5, 1.5, 2.5], 2.0, facts),
    }
    case = Case(Options("encoder"), 0.5, 0.6)
    cells = dict(zip(HEAD[:8], row(case, results)[:8], strict=True))
    assert cells["released"] == "4.50 s ±6%" and cells["sam_jax"] == "1.50 s ±17%"
    assert row(case, results)[6:12] == ["0.500", "0.5", "8.00", "2.00", "0.33", "0.6"]
    work = encoder_flops(VIT_B, 1024)
    assert row(case, results)[-1] == f"{work / 1.5 / 1e13:.0%}" == "6%"
    assert len(table(HEAD, [row(case, results)]).splitlines()) == 3


def test_counts_grow_with_what_is_computed():
    encoder = Options("encoder")
    assert flops(dataclasses.replace(encoder, batch=3)) == 3 * flops(encoder)
    assert flops(Options("generator")) > flops(encoder) + 16 * flops(Options("prompts")) * 0.99
    for stage in ("encoder", "prompt", "prompts", "generator", "train"):
        low, high = (least_bytes(Options(stage, dtype=d)) for d in ("bfloat16", "float32"))
        assert 0 < low <= high
    assert flops(Options("train")) > 3 * flops(encoder)
    # 86 M parameters in float32, and 12 maps of 4096 x 768 that every layer reads and writes.
    assert 4 * 85e6 < least_bytes(encoder) < 4 * 87e6 + 12 * 4096 * 768 * 4 * 18.1 + 4e6


def test_the_table_is_put_between_its_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- benchmarks: cpu -->\nold\n<!-- end of benchmarks: cpu -->\nb\n")
    write_readme("cpu", "new", path)
    write_readme("cpu", "newer", path)
    text = "a\n<!-- benchmarks: cpu -->\nnewer\n<!-- end of benchmarks: cpu -->\nb\n"
    assert path.read_text() == text
    with pytest.raises(ValueError, match="benchmarks: gpu"):
        write_readme("gpu", "new", path)
    assert path.read_text() == text
    write_readme("cpu", "x", _copy_of_the_readme(tmp_path))


def _copy_of_the_readme(folder: Path) -> Path:
    path = folder / "copy.md"
    path.write_text((ROOT / "README.md").read_text())
    return path


def test_a_stage_that_does_not_exist_is_told(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "nothing"])
    assert main() == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.torch
@pytest.mark.parametrize("stage", ["encoder", "prompt", "prompts"])
def test_both_sides_compute_the_same(stage):
    from tests.benchmarks import stages_ours, stages_released

    options = Options(stage, model="tiny", count=16, prompt="five")
    ours = stages_ours.STAGES[stage](options)[0]()
    theirs = stages_released.STAGES[stage](options)[0]()
    ours, theirs = (x if isinstance(x, tuple) else (x,) for x in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if stage == "encoder":
            b = b.transpose(0, 2, 3, 1)
        elif stage == "prompts":
            a = a[0]
        else:
            a = a[0, :1]  # the released decoder is asked for the single mask
            b = b[0]
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max(), rtol=0)


@pytest.mark.torch
def test_the_command_measures_a_stage():
    script = """
        from tests.benchmarks.cases import Case, measure
        from tests.benchmarks.options import Options
        case = Case(Options("prompt", model="tiny"), burst=2)
        results = measure(case, turns=2, compiled=False)
        for name, result in results.items():
            assert len(result.turns) == 2 and 0 < result.seconds < 10, name
            assert 0.1 < result.peak_gb < 20, name
        assert results["sam_jax"].facts["peak_flops"] > 1e9
    """
    import textwrap

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
