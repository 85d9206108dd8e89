"""`python -m train --config configs/tiny.py [--field value ...]`: a training run, top to bottom."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from etils import epath

from sam_jax.checkpoint.load import Sam, save
from sam_jax.models import sam as sam_model
from sam_jax.training.config import TrainConfig
from sam_jax.training.lora import merged
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import global_batch, make_mesh, replicated
from sam_jax.training.step import TrainState, make_step
from train.checkpoints import Checkpoints
from train.data import stage_batches
from train.processes import Stop, is_chief, join
from train.start import initial_state, read_config


def run(config: TrainConfig) -> int:
    """Trains until the last stage's end, going on from the newest checkpoint in the workdir."""
    # ---- devices
    join(config.devices)
    mesh = make_mesh(config.devices.fsdp)
    say = print if is_chief() else lambda *_, **__: None

    # ---- state: a checkpoint of this run, else init_from, else fresh
    folder, notes = run_folders(config)
    optimizer = make_optimizer(config.optim, config.model, config.total_steps)
    state, shardings = initial_state(config, optimizer, mesh)
    checkpoints = Checkpoints(folder / "checkpoints", config)
    newest = checkpoints.newest()
    if newest is not None:
        state = checkpoints.restore(newest, state, shardings)
        say(f"going on from step {newest} in {folder}")

    # ---- the loop
    stop, done = Stop(), newest or 0
    log = open_log(notes, done) if is_chief() else None
    ends = list(itertools.accumulate(stage.steps for stage in config.stages))
    for number, end in enumerate(ends):
        if done >= end or stop.asked(done):
            continue
        say(f"stage {number + 1}/{len(ends)}: {config.stages[number]}")
        stage_run = StageRun(config, number, end, optimizer, shardings)
        state, done = stage_run(state, done, checkpoints, log, stop)

    # ---- the end: weights that sam_jax.load reads
    checkpoints.save(done, state)
    checkpoints.wait()
    checkpoints.close()
    if done < config.total_steps:
        say(f"stopped at step {done}; the same command goes on from there", flush=True)
        return 130
    write_model(config, state, mesh, folder, notes)
    return 0


def run_folders(config: TrainConfig) -> tuple[epath.Path, Path]:
    """Where checkpoints and weights go, and where the notes of a run do: the same, if local."""
    remote = "://" in config.workdir
    notes = Path("runs" if remote else config.workdir, config.name).expanduser().resolve()
    folder = epath.Path(config.workdir) / config.name if remote else epath.Path(notes)
    for place in (folder, notes):
        place.mkdir(parents=True, exist_ok=True)
    return folder, notes


class StageRun:
    """A stage from where the run stands to its end, saving on the way."""

    def __init__(self, config: TrainConfig, number: int, end: int, optimizer, shardings) -> None:
        self.config, self.number, self.end = config, number, end
        self.begin = end - config.stages[number].steps
        self.mesh = shardings.step.mesh
        self.step = make_step(config, config.stages[number], optimizer, shardings)

    def __call__(self, state: TrainState, done: int, checkpoints, log, stop: Stop):
        """The state and the number of steps done at the stage's end, or where `stop` asks."""
        config = self.config
        data = stage_batches(
            config,
            self.number,
            done - self.begin,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        key, history, since = jax.random.key(config.seed + 1), [], time.time()
        while done < self.end:
            state, metrics = self.step(state, global_batch(self.mesh, next(data)), key)
            history.append(metrics)
            done += 1
            stopping = stop.asked(done)
            if done % config.log_every == 0 or done == self.end or stopping:
                tell(config, log, done, history, time.time() - since)
                history, since = [], time.time()
            if done % config.save_every == 0 or stopping:
                checkpoints.save(done, state)
            if stopping:
                break
        data.close()
        return state, done


def tell(config: TrainConfig, log, step: int, history: list[dict], seconds: float) -> None:
    """Notes the means since the last call.

    Raises:
      FloatingPointError: the loss is no number.
    """
    row = {k: float(np.mean([jax.device_get(m[k]) for m in history])) for k in history[0]}
    row |= {"step": step, "seconds_per_step": seconds / len(history)}
    if not np.isfinite(row["loss"]):
        raise FloatingPointError(
            f"optim.lr: the loss is {row['loss']} at step {step}; try a lower rate"
        )
    if log is None:
        return
    log.write(json.dumps(row) + "\n")
    log.flush()
    print(
        f"step {step}/{config.total_steps}  loss {row['loss']:.3f}  dice {row['dice']:.3f}"
        f"  iou {row['iou_first']:.3f} -> {row['iou_last']:.3f}"
        f"  {row['seconds_per_step']:.2f} s/step",
        flush=True,
    )


def open_log(notes: Path, done: int):
    """metrics.jsonl, open for rows after step `done`; those of steps that were lost are cut."""
    path = notes / "metrics.jsonl"
    rows = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= done]
    path.write_text("".join(kept))
    return open(path, "a")


def write_model(
    config: TrainConfig, state: TrainState, mesh, folder: epath.Path, notes: Path
) -> None:
    """model.safetensors in the folder: the averaged weights, or the last ones; adapters merged."""
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    variables = {"params": state.ema or state.params, "buffers": state.buffers}
    variables = jax.device_get(gather(variables))
    if not is_chief():
        return
    variables["params"] = jax.device_get(merged(variables["params"], config.lora))
    plain = config.model.replace(drop_path=0.0, decoder_dropout=0.0, remat=False, scan_blocks=False)
    result = Sam(sam_model.SamModel(plain), variables, plain, config.name)
    if "://" in str(folder):
        made = notes / "model.safetensors"
        save(result, made)
        epath.Path(made).copy(folder / made.name, overwrite=True)
    else:
        save(result, folder / "model.safetensors")
    print(f"wrote {folder / 'model.safetensors'}")


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
