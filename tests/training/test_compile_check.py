"""`python -m train.compile_check` as a process, and its arithmetic."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sam_jax.models.config import CONFIGS
from sam_jax.training.chips import V5E
from sam_jax.training.config import DevicesConfig, Stage, TrainConfig
from sam_jax.training.flops import step_flops
from tests.training.test_train import CONFIG, ROOT
from train.compile_check import (
    Report,
    batch_shapes,
    check_division,
    describe,
    link_bytes,
    overflow,
    resolved,
    row,
    state_shapes,
    suited,
)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiles for TPU: needs libtpu"
)
SA1B = {name: f"configs/sa1b_vit_{name}.py" for name in "hlb"}


def run(tmp_path, *more, without_libtpu=False):
    (tmp_path / "config.py").write_text(CONFIG)
    environment = dict(os.environ)
    if without_libtpu:  # a stand-in that cannot be found
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util as u\nfind = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'libtpu' else find(name, *a)\n"
        )
        environment["PYTHONPATH"] = str(tmp_path)
    return subprocess.run(
        [sys.executable, "-m", "train.compile_check", "--config", str(tmp_path / "config.py")]
        + list(more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        env=environment,
    )


def test_the_sizes_are_those_of_what_a_run_starts_from(tmp_path):
    config = runpy.run_path(str(ROOT / "configs" / "finetune.py"))["config"]()
    for name, size in (("tiny", 512), ("mobile_sam", 1024), ("vit_b", 1024)):
        found = resolved(dataclasses.replace(config, init_from=name))
        assert found.model.encoder_width == CONFIGS[name].encoder_width
        assert batch_shapes(found, found.stages[0])["image"].shape[1:3] == (size, size)
        assert step_flops(found, found.stages[0])[0] > 0
    with pytest.raises(ValueError, match="nothing.pth"):
        resolved(dataclasses.replace(config, init_from="nothing.pth"))


def paper(name: str) -> TrainConfig:
    return runpy.run_path(str(Path(ROOT, SA1B[name])))["config"]()


def report(**changes) -> Report:
    config = dataclasses.replace(paper("h"), devices=DevicesConfig(fsdp=16))
    base = Report(
        config, config.stages[0], "v5e:16x16", V5E, 256, 641_090_608, 1e9, 9e9, 1e10, True, 60.0
    )
    return dataclasses.replace(base, **changes)


def test_the_papers_recipe_is_what_the_configs_say():
    # PROTOCOLS section 7: steps, batch, rate, layer decay, drop path
    expected = {
        "h": (90_000, 256, 8e-4, 0.8, 0.4),
        "l": (180_000, 128, 4e-4, 0.8, 0.4),
        "b": (180_000, 128, 8e-4, 0.6, 0.6),
    }
    for name, numbers in expected.items():
        c = paper(name)
        (stage,) = c.stages
        assert numbers == (
            stage.steps,
            stage.batch_size,
            c.optim.lr,
            c.optim.layer_decay,
            c.model.drop_path,
        )
        assert (stage.image_size, stage.max_masks, stage.scale_range) == (1024, 64, (1.0, 1.0))
        assert 1 + stage.corrective_clicks + stage.mask_only_rounds == 11
        assert (c.optim.name, c.optim.betas, c.optim.weight_decay) == ("adamw", (0.9, 0.999), 0.1)
        assert c.optim.warmup == 250 and c.model.decoder_dropout == 0.1 and not c.augment
        falls = [round(m * stage.steps) for m in c.optim.milestones]
        assert falls == ([60_000, 86_666] if name == "h" else [120_000, 173_332])
        assert (c.loss.focal_weight, c.loss.dice_weight, c.loss.iou_weight) == (20.0, 1.0, 1.0)


def test_shapes_are_those_of_the_run():
    shapes = state_shapes(paper("h"))
    assert sum(x.size for x in jax.tree.leaves(shapes.params)) == 641_090_608
    batch = batch_shapes(paper("h"), paper("h").stages[0])
    assert batch["image"].shape == (256, 1024, 1024, 3)
    assert batch["masks"].shape == (256, 64, 256, 256)


def test_links_carry_what_a_ring_does():
    config = dataclasses.replace(paper("h"), devices=DevicesConfig(fsdp=4, accumulate=2))
    assert link_bytes(config, 1000, 8) == 3 * 2 * 4000 * 3 / 4 + 2 * 1000 * 1 / 2
    alone = dataclasses.replace(config, devices=DevicesConfig())
    assert link_bytes(alone, 1000, 1) == 0


def test_floors_are_the_formulas():
    floors = report().floors()
    # 8.5 PFLOP with recomputation over 256 chips of 197 TFLOP/s; 2 x 10 GB at 819 GB/s
    assert 0.16 < floors["arithmetic"] < 0.18
    assert floors["memory"] == pytest.approx(20e9 / 819e9)


def test_what_fits_and_what_does_not_is_said():
    text = describe(report())
    assert "10.00 GB of 17.18" in text and "fits          yes" in text
    assert "256 a step, 1 a chip at a time" in text
    text = describe(report(fits=False, used=20e9))
    assert "no: it needs 20.00 GB a chip, 2.82 too many" in text
    assert "--devices.fsdp 64" in text and "--model.remat" not in text
    assert row(report()).startswith("| sa1b_vit_h | v5e:16x16 | 256 | 16 | 1 | 10.0 | 17.2 | ")
    assert "does not fit" in row(report(fits=False))


def test_the_compilers_complaint_is_read():
    message = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    assert overflow(message) == 20.5 * 2**30
    message = (
        "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (16.86G) exceeds available HBM (15.75G)."
    )
    assert overflow(message) == 16.86 * 2**30
    assert overflow("something else") is None


def test_images_must_divide():
    config = TrainConfig()
    check_division(config, Stage(1, 1024, 256, 64), 128)
    with pytest.raises(ValueError, match="256 images .* 512 chips.* a smaller slice"):
        check_division(config, Stage(1, 1024, 256, 64), 512)
    with pytest.raises(ValueError, match="96 chips.* another slice"):
        check_division(config, Stage(1, 1024, 256, 64), 96)
    chosen = suited(config, Stage(1, 1024, 256, 64), 32).devices
    assert (chosen.fsdp, chosen.accumulate) == (16, 8)


def test_wrong_input(tmp_path):
    for more, words in (
        (("--topology", "v5e:2x2", "--stage", "3"), "--stage: expected 1 to 1, got 3"),
        (("--topology", "v5e:2x2"), "pip install libtpu"),
    ):
        done = run(tmp_path, *more, without_libtpu=True)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    assert run(tmp_path).returncode == 2  # no slice is named


@needs_libtpu
def test_wrong_slices(tmp_path):
    done = run(tmp_path, "--topology", "v9:2x2")
    assert done.returncode == 2 and "--topology: expected" in done.stderr, done.stderr
    done = run(tmp_path, "--topology", "v5e:2x2")  # 2 images, 4 chips
    assert done.returncode == 2 and "2 images a step" in done.stderr, done.stderr


@needs_libtpu
def test_a_small_step_fits_four_chips(tmp_path):
    stage = ("--stages.0.batch-size", "4", "--devices.fsdp", "2")
    done = run(tmp_path, "--topology", "v5e:2x2", *stage)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 v5e chips, data 2 x fsdp 2" in done.stdout
    used, of = re.search(r"bytes a chip\s+([\d.]+) GB of ([\d.]+)", done.stdout).groups()
    assert 0 < float(used) < 1 and of == "17.18"
