"""How a run begins: its config, its first weights, its state on the devices."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import optax
import tyro
from jax.sharding import Mesh

from sam_jax.checkpoint.load import load
from sam_jax.checkpoint.mae import load_mae
from sam_jax.models import sam as sam_model
from sam_jax.training.config import TrainConfig
from sam_jax.training.lora import add_adapters
from sam_jax.training.scratch import structured_start
from sam_jax.training.sharding import state_shardings
from sam_jax.training.step import TrainState, init_state


def read_config(argv: list[str]) -> TrainConfig:
    """The config that FILE's `config()` returns, with the fields changed that `argv` names."""
    if argv in ([], ["-h"], ["--help"]):
        raise SystemExit(
            "usage: python -m train --config FILE [--field value ...]\n"
            "       python -m train --config FILE --help    lists the fields"
        )
    if argv[0] != "--config" or len(argv) < 2:
        raise ValueError("--config: expected first, with the path of a config file")
    if not Path(argv[1]).is_file():
        raise ValueError(f"--config: no such file: {argv[1]}")
    found = runpy.run_path(argv[1])
    if not callable(found.get("config")):
        raise ValueError(f"--config: {argv[1]} has no function config() -> TrainConfig")
    return tyro.cli(TrainConfig, default=found["config"](), args=argv[2:], prog="python -m train")


def initial_variables(config: TrainConfig) -> dict:
    """Fresh weights, or those that the config begins with, and adapters where it has them."""
    variables = _model_variables(config)
    if not config.lora.rank:
        return variables
    key = jax.random.key(config.seed + 2)
    return variables | {"params": add_adapters(variables["params"], config.lora, key)}


def _model_variables(config: TrainConfig) -> dict:
    if config.init_encoder:
        if config.init_from:
            raise ValueError("init_encoder: expected alone, not together with init_from")
        return load_mae(config.init_encoder, config.model, jax.random.key(config.seed))
    if not config.init_from:
        key = jax.random.key(config.seed)
        fresh = jax.jit(lambda key: sam_model.init(config.model, key))(key)
        return structured_start(fresh, config.model) if config.structured_start else fresh
    start = load(config.init_from)
    if (
        start.config.replace(
            dtype=config.model.dtype,
            drop_path=config.model.drop_path,
            decoder_dropout=config.model.decoder_dropout,
            remat=config.model.remat,
            scan_blocks=config.model.scan_blocks,
        )
        != config.model
    ):
        raise ValueError(f"init_from: {config.init_from} is not a model of this config's shape")
    return start.params


def initial_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """The state before step 0 and its shardings, on the mesh's devices."""
    variables = jax.device_get(initial_variables(config))
    averaged = bool(config.optim.ema)
    shapes = jax.eval_shape(lambda v: init_state(v, optimizer, averaged), variables)
    shardings = state_shardings(mesh, shapes)
    make = jax.jit(lambda v: init_state(v, optimizer, averaged), out_shardings=shardings)
    return make(variables), shardings
