"""A run's checkpoints: everything that a step changes, where its data stands, and its config.

A thin wrapper around Orbax. Saving is asynchronous and atomic: a killed save leaves a folder that
nothing reads. Any number of devices and processes restores what another number wrote.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import orbax.checkpoint as ocp

from sam_jax.training.config import Stage, TrainConfig
from sam_jax.training.step import TrainState

KEPT = 2
DATA_FIELDS = (
    *("seed", "stages", "photos", "cut_paste", "cut_outs", "scenes", "described", "text"),
    *("mask_area_power", "repeat_masks", "augment", "stretch", "blur"),
)
"""What batch s depends on; another value would give other data from the same position on."""


class Checkpoints:
    """The checkpoints in a folder, local or gs:// (for which gcsfs must be installed)."""

    def __init__(self, folder: Any, config: TrainConfig) -> None:
        self._config = config
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, step_prefix="step")
        self._manager = ocp.CheckpointManager(folder, options=options)

    def newest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving, unless that step is there; waits only for a save that is still going on.

        `step` is also the position of the data: batch s depends on the config and s alone.
        """
        if step in self._manager.all_steps():
            return
        about = {"step": step, "config": dataclasses.asdict(self._config), "shapes": _shapes(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
            ),
        )

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        """The state of a checkpoint, placed as `shardings` say, whatever wrote it.

        Raises:
          ValueError: the checkpoint is of another model, optimiser or data.
        """
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        self._check_data(about["about"]["config"])
        # Before anything is read: Orbax's readers, many at once, would each fail on their own.
        found, expected = about["about"]["shapes"], _shapes(shapes)
        other = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
        if other:
            name = min(other)
            raise ValueError(
                f"workdir: the checkpoint of step {step} is of another model or optimiser; choose "
                f"another --name, or delete it ({len(other)} arrays differ: {name} has shape "
                f"{found.get(name, 'none')}, this config's {expected.get(name, 'none')})"
            )
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["state"]

    def _check_data(self, before: dict) -> None:
        now, before = _as_json(dataclasses.asdict(self._config)), _completed(before)
        for name in DATA_FIELDS:
            if _positions(before).get(name) != _positions(now)[name]:
                raise ValueError(
                    f"{name}: the run in this workdir was started with {before.get(name)}, got "
                    f"{now[name]}; use what it was started with, or choose another --name"
                )

    def wait(self) -> None:
        """Until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends the writing threads."""
        self._manager.close()


def _positions(config: dict) -> dict:
    """The config without the length of its last stage: a run may be made longer."""
    *stages, last = config["stages"]
    return config | {"stages": [*stages, last | {"steps": None}]}


def _completed(config: dict) -> dict:
    """A config that was saved, with the fields that came later: they were at their defaults."""
    stage = dataclasses.asdict(Stage(steps=0, image_size=0, batch_size=0, max_masks=0))
    result = dict(config)
    for name, value in dataclasses.asdict(TrainConfig()).items():
        there = config.get(name, value)
        result[name] = value | there if isinstance(value, dict) else there
    result["stages"] = [stage | one for one in config["stages"]]
    return _as_json(result)


def _as_json(value: Any) -> Any:
    """What JSON makes of a config's values: lists out of tuples."""
    if isinstance(value, tuple | list):
        return [_as_json(v) for v in value]
    return {k: _as_json(v) for k, v in value.items()} if isinstance(value, dict) else value


def _shapes(state: TrainState) -> dict[str, list[int]]:
    """{path: shape} of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): list(leaf.shape) for path, leaf in leaves}
