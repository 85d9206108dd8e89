"""The configs of the project: they load, and begin with what they say."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from sam_jax.models.config import TINY
from sam_jax.training.config import TrainConfig
from train.compile_check import resolved
from train.start import read_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_gives_a_config_that_the_command_line_takes(path):
    config = runpy.run_path(str(path))["config"]()
    assert isinstance(config, TrainConfig) and all(stage.steps for stage in config.stages)
    assert read_config(["--config", str(path)]) == config
    assert read_config(["--config", str(path), "--seed", "7"]).seed == 7


def named(stem: str) -> str:
    return str(next(path for path in CONFIGS if path.stem == stem))


def test_the_bundled_models_recipe_ends_with_the_bundled_model():
    config = resolved(read_config(["--config", named("tiny")]))
    assert config.model == TINY.replace(dtype="bfloat16")
    assert config.init_from == config.teacher == "mobile_sam"


@pytest.mark.parametrize("stem", ["finetune", "text"])
def test_a_vit_can_be_fine_tuned_with_all_that_a_vit_takes(stem):
    asked = ["--init-from", "vit_b", "--model.remat", "--model.drop-path", "0.1"]
    config = read_config(["--config", named(stem), *asked])
    config = resolved(dataclasses.replace(config, text=TrainConfig().text))
    assert config.model.encoder_width == 768
    assert config.model.remat and config.model.drop_path == 0.1
