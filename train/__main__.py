"""`python -m train --config configs/X.py [--field value ...]`: a training run, top to bottom."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import sys
from pathlib import Path

import jax
import numpy as np
from etils import epath

from sam_jax.checkpoint.clip import Clip, load_clip
from sam_jax.checkpoint.load import Sam, save
from sam_jax.compiling import compile_ahead
from sam_jax.data.sources import Source
from sam_jax.inference.text import TextTower
from sam_jax.models import sam as sam_model
from sam_jax.training.chips import chip_of
from sam_jax.training.config import TrainConfig
from sam_jax.training.flops import step_flops
from sam_jax.training.lora import merged
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import global_batch, make_mesh, replicated
from sam_jax.training.step import TrainState, make_step
from train.advice import check, warnings
from train.checkpoints import Checkpoints
from train.crop_embeddings import CropCache
from train.data import stage_batches
from train.embeddings import Cache
from train.guard import NanGuard
from train.processes import Stop, is_chief, join
from train.start import initial_state, read_config, starting_point
from train.teacher import Teacher, with_neck_like
from train.validation import open_data, prediction_sheet, validate
from train.watch import Watch


def run(config: TrainConfig) -> int:
    """Trains until the last stage's end, going on from the newest checkpoint in the workdir."""
    # ---- devices
    join(config.devices)
    mesh = make_mesh(config.devices.fsdp)
    say = print if is_chief() else lambda *_, **__: None

    # ---- state: a checkpoint of this run, else init_from, else fresh
    clip = open_clip(config.text.clip)
    config, variables, tower = starting_point(config, clip)
    check(config, variables["params"])
    for text in warnings(config, variables["params"]):
        say(f"WARNING {text}")
    folder, notes = run_folders(config)
    checkpoints = Checkpoints(folder / "checkpoints", config)
    newest = checkpoints.newest()
    teacher = Teacher(config, mesh) if config.teacher else None
    if teacher and (newest is None or config.optim.start_share):
        variables = with_neck_like(config, variables, teacher)
    optimizer = make_optimizer(config.optim, config.model, config.total_steps)
    state, shardings = initial_state(config, variables, optimizer, mesh)
    if newest is not None:
        state = checkpoints.restore(newest, state, shardings)
        say(f"going on from step {newest} in {folder}")

    # ---- the loop
    stop, done, skipped = Stop(), newest or 0, {}
    watch = Watch(notes, config.total_steps, done, is_chief(), skipped, config.profile)
    cache = None
    if config.cache_embeddings:
        cache = Cache(variables, config.model, notes, lambda: stop.asked(done))
    crops = clip and CropCache(clip, config.text, config.seed, notes, lambda: stop.asked(done))
    start = jax.device_get(variables["params"]) if config.optim.start_share else None
    del variables  # the state has its own
    validation = open_data(config.validation, config.data_root)
    tools = Tools(
        *(watch, NanGuard(notes), checkpoints, stop, cache, crops),
        *(skipped, validation, tower, clip, teacher, start),
    )
    ends = list(itertools.accumulate(stage.steps for stage in config.stages))
    try:
        for number, end in enumerate(ends):
            if done >= end or stop.asked(done):
                continue
            watch.say(f"stage {number + 1}/{len(ends)}: {config.stages[number]}")
            stage_run = StageRun(config, number, end, optimizer, shardings)
            state, done = stage_run(state, done, tools)
    finally:
        watch.close()

    # ---- the end: weights that sam_jax.load reads
    checkpoints.save(done, state)
    checkpoints.wait()
    checkpoints.close()
    if done < config.total_steps:
        say(f"stopped at step {done}; the same command goes on from there", flush=True)
        return 130
    write_model(trained_model(config, state, mesh, tools), folder, notes)
    return 0


def open_clip(path: str) -> Clip | None:
    """The CLIP of a run's text prompts; None without any.

    Raises:
      ValueError: it cannot be read.
    """
    if not path:
        return None
    try:
        clip = load_clip(path)
        if clip.tokenizer_json:
            TextTower(clip)  # its error now, and not at the first validation
        return jax.device_get(clip)
    except ValueError as error:
        raise ValueError(
            f"text.clip: {error}; give --text.clip a CLIP with both towers (`python -m "
            "train.contrastive --out runs/clip` makes a tiny one)"
        ) from error


def run_folders(config: TrainConfig) -> tuple[epath.Path, Path]:
    """Where checkpoints and weights go, and where the notes of a run do: the same, if local."""
    remote = "://" in config.workdir
    notes = Path("runs" if remote else config.workdir, config.name).expanduser().resolve()
    folder = epath.Path(config.workdir) / config.name if remote else epath.Path(notes)
    for place in (folder, notes):
        place.mkdir(parents=True, exist_ok=True)
    return folder, notes


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a stage uses besides its step: where it tells, looks, saves, stops and reads."""

    watch: Watch
    guard: NanGuard
    checkpoints: Checkpoints
    stop: Stop
    cache: Cache | None
    crops: CropCache | None
    skipped: dict[str, str]
    validation: dict[str, Source]
    text_tower: Clip | None
    clip: Clip | None
    teacher: Teacher | None
    start: dict | None
    """The params that the run began with, where a share of them is kept."""


class StageRun:
    """A stage from where the run stands to its end, saving on the way."""

    def __init__(self, config: TrainConfig, number: int, end: int, optimizer, shardings) -> None:
        self.config, self.number, self.end = config, number, end
        self.begin = end - config.stages[number].steps
        self.mesh = shardings.step.mesh
        self.step = make_step(config, config.stages[number], optimizer, shardings)

    def __call__(self, state: TrainState, done: int, tools: Tools):
        """The state and the number of steps done at the stage's end, or where it was stopped."""
        data = stage_batches(
            self.config,
            self.number,
            done - self.begin,
            tools.cache,
            tools.crops,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.config.workers,
            skipped=tools.skipped,
        )
        if data is None:
            return state, done
        tools.watch.set_cost(*self.cost())
        try:
            return self._train(state, done, data, tools)
        finally:
            data.close()

    def cost(self) -> tuple[float | None, float | None]:
        """FLOPs of a step and the peak of all devices; None where they are not known.

        The formula counts everything as trained, and no teacher, so it says nothing of runs with
        frozen parts or a teacher.
        """
        chip = chip_of(self.mesh.devices.flat[0].device_kind)
        if chip is None or self.config.optim.frozen or self.config.teacher:
            return None, None
        flops, _ = step_flops(self.config, self.config.stages[self.number])
        return flops, chip.peak_flops * self.mesh.size

    def _train(self, state: TrainState, done: int, data, tools: Tools):
        config, watch, guard = self.config, tools.watch, tools.guard
        size, metrics = config.stages[self.number].batch_size, None
        key, history, stopping = jax.random.key(config.seed + 1), [], False
        teacher_key = jax.random.key(config.seed + 2)
        step = None
        watch.restart_clock()
        last = config.total_steps
        while done < self.end and not stopping:
            batch = next(data)
            watch.trace(done, metrics)
            placed = global_batch(self.mesh, batch)
            if tools.teacher:
                placed = tools.teacher(placed, jax.random.fold_in(teacher_key, done))
            step = step or compile_ahead(self.step, state, placed, key)
            state, metrics = step(state, placed, key)
            done += 1
            guard.check(done, metrics, batch)
            history.append(metrics)
            stopping = tools.stop.asked(done)
            if done % config.log_every == 0 or done == self.end or stopping:
                guard.finish()
                row = {k: float(np.mean([jax.device_get(m[k]) for m in history])) for k in metrics}
                watch.scalars(done, row, size * len(history))
                history = []
            # The last step too: what a validation meets shall not cost a run its end.
            if done % config.save_every == 0 or stopping or done == last:
                guard.finish()
                with watch.paused():
                    tools.checkpoints.save(done, state)
            if not stopping and self.validates_at(done, tools):
                with watch.paused():
                    self.validate(done, state, tools)
        return state, done

    def validates_at(self, done: int, tools: Tools) -> bool:
        """Whether a validation follows this step: every so often, and after the last one."""
        if not (tools.validation or self.config.validation.drawn):
            return False
        every = self.config.validation.every
        return done == self.config.total_steps or bool(every) and done % every == 0

    def validate(self, done: int, state: TrainState, tools: Tools) -> None:
        """Measures the weights as they would be saved now, and draws some of their masks."""
        sam = trained_model(self.config, state, self.mesh, tools)
        if sam is not None:
            settings, sheet = self.config.validation, None
            row = validate(sam, tools.validation, settings, tools.clip)
            if settings.pictures and tools.validation:
                source = next(iter(tools.validation.values()))
                sheet = prediction_sheet(sam, source, settings.pictures)
            tools.watch.validation(done, row, sheet)


def trained_model(config: TrainConfig, state: TrainState, mesh, tools: Tools) -> Sam | None:
    """The averaged weights, or the last ones, adapters merged, with their share of the first ones.

    None where nobody speaks for all.
    """
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    variables = {"params": state.ema or state.params, "buffers": state.buffers}
    variables = jax.device_get(gather(variables))
    if not is_chief():
        return None
    variables["params"] = jax.device_get(merged(variables["params"], config.lora))
    if tools.start is not None:
        share = np.float32(config.optim.start_share)
        variables["params"] = jax.tree.map(
            lambda first, last: last + share * (first - last),  # frozen ones to the bit
            tools.start,
            variables["params"],
        )
    plain = config.model.replace(drop_path=0.0, decoder_dropout=0.0, remat=False, scan_blocks=False)
    return Sam(sam_model.SamModel(plain), variables, plain, config.name, tools.text_tower)


def write_model(result: Sam | None, folder: epath.Path, notes: Path) -> None:
    """model.safetensors in the folder: what `trained_model` gave."""
    if result is None:
        return
    if "://" in str(folder):
        made = notes / "model.safetensors"
        save(result, made)
        epath.Path(made).copy(folder / made.name, overwrite=True)
    else:
        save(result, folder / "model.safetensors")
    print(f"wrote {folder / 'model.safetensors'}")


def keep_memory(module: str = "train") -> None:
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
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


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
