"""`python -m train --config configs/tiny.py [--field value ...]`: a training run, top to bottom."""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

from sam_jax.checkpoint.load import Sam, load, save
from sam_jax.models import sam as sam_model
from sam_jax.training.config import Stage, TrainConfig
from sam_jax.training.lora import add_adapters, merged
from sam_jax.training.optim import make_optimizer
from sam_jax.training.scratch import structured_start
from sam_jax.training.step import TrainState, init_state, make_step
from train.data import stage_batches


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
    """Fresh weights, or those of `init_from`."""
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
        )
        != config.model
    ):
        raise ValueError(f"init_from: {config.init_from} is not a model of this config's shape")
    return start.params


def locate(config: TrainConfig, step: int) -> tuple[int, int]:
    """The stage that step belongs to, and the step within it."""
    for number, stage in enumerate(config.stages):
        if step < stage.steps:
            return number, step
        step -= stage.steps
    return len(config.stages), step


class Stop:
    """Set by SIGTERM or the first Ctrl-C: the loop saves and ends after the step in flight."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number, frame) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)


def train_stage(config, number, state: TrainState, optimizer, manager, log, stop: Stop):
    """Runs a stage from the state's step to its end, saving on the way."""
    stage: Stage = config.stages[number]
    before = sum(s.steps for s in config.stages[:number])
    start = int(state.step) - before
    run_step, data = make_step(config, stage, optimizer), stage_batches(config, number, start)
    key, history, since = jax.random.key(config.seed + 1), [], time.time()
    for step in range(before + start, before + stage.steps):
        state, metrics = run_step(state, next(data), key)
        history.append(metrics)
        done = step + 1
        if done % config.log_every == 0 or done == before + stage.steps or stop.asked:
            row = {k: float(np.mean([jax.device_get(m[k]) for m in history])) for k in metrics}
            row |= {"step": done, "seconds_per_step": (time.time() - since) / len(history)}
            if not np.isfinite(row["loss"]):
                raise FloatingPointError(
                    f"optim.lr: the loss is {row['loss']} at step {done}; try a lower rate"
                )
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(
                f"step {done}/{config.total_steps}  loss {row['loss']:.3f}  dice {row['dice']:.3f}"
                f"  iou {row['iou_first']:.3f} -> {row['iou_last']:.3f}"
                f"  {row['seconds_per_step']:.2f} s/step",
                flush=True,
            )
            history, since = [], time.time()
        if done % config.save_every == 0 or stop.asked:
            manager.save(done, args=ocp.args.StandardSave(state))
        if stop.asked:
            break
    getattr(data, "close", lambda: None)()
    return state


def run(config: TrainConfig) -> int:
    """Trains until the last stage's end, going on from the newest checkpoint in the workdir."""
    # ---- state: a checkpoint of this run, else init_from, else fresh
    folder = Path(config.workdir, config.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(config.optim, config.model, config.total_steps)
    variables = initial_variables(config)
    if config.lora.rank:
        key = jax.random.key(config.seed + 2)
        variables |= {"params": add_adapters(variables["params"], config.lora, key)}
    state = init_state(variables, optimizer, bool(config.optim.ema))
    manager = ocp.CheckpointManager(
        folder / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    if manager.latest_step() is not None:
        state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        print(f"going on from step {int(state.step)} in {folder}")

    # ---- the loop
    stop = Stop()
    with open(folder / "metrics.jsonl", "a") as log:
        while not stop.asked and locate(config, int(state.step))[0] < len(config.stages):
            number, _ = locate(config, int(state.step))
            stage = config.stages[number]
            print(f"stage {number + 1}/{len(config.stages)}: {stage}")
            state = train_stage(config, number, state, optimizer, manager, log, stop)

    # ---- the end: weights that sam_jax.load reads
    if int(state.step) not in manager.all_steps():
        manager.save(int(state.step), args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    if stop.asked:
        print(f"stopped at step {int(state.step)}; the same command goes on from there")
        return 130
    params = merged(state.ema or state.params, config.lora)
    variables = {"params": params, "buffers": state.buffers}
    plain = config.model.replace(drop_path=0.0, decoder_dropout=0.0, remat=False)
    result = Sam(sam_model.SamModel(plain), jax.device_get(variables), plain, config.name)
    save(result, folder / "model.safetensors")
    print(f"wrote {folder / 'model.safetensors'}")
    return 0


def keep_memory() -> None:
    """Starts the process again with an allocator that keeps freed memory (Linux, glibc).

    XLA:CPU allocates and frees its buffers at every step; with glibc's defaults the kernel then
    clears fresh pages each time; keeping them, as huge pages, avoids that. An allocator that
    the user has configured is left alone.
    """
    tunables = "glibc.malloc.hugetlb=1"
    for name in ("mmap_threshold", "trim_threshold"):
        tunables += f":glibc.malloc.{name}=34359738368"
    if sys.platform == "linux" and not {"GLIBC_TUNABLES", "LD_PRELOAD"} & set(os.environ):
        os.environ["GLIBC_TUNABLES"] = tunables + ":glibc.malloc.top_pad=1073741824"
        os.execv(sys.executable, [sys.executable, "-m", "train", *sys.argv[1:]])


def main() -> int:
    """The command: 0 at the end, 2 for wrong input, 130 when stopped."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    try:
        return run(read_config(sys.argv[1:]))
    except (ValueError, FloatingPointError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
