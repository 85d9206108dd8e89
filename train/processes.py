"""One process or many: joining them, and stopping all of them at the same step."""

from __future__ import annotations

import signal

import jax
from jax.experimental import multihost_utils

from sam_jax.training.config import DevicesConfig


def join(config: DevicesConfig) -> None:
    """Connects the processes of a run; must come before anything else that uses devices.

    Raises:
      ValueError: `process` is none of `processes`, or the coordinator cannot be reached.
    """
    if not config.coordinator:
        return
    try:
        if config.coordinator == "auto":
            jax.distributed.initialize()
        elif not 0 <= config.process < config.processes:
            raise ValueError(
                f"devices.process: expected 0 to {config.processes - 1} (devices.processes is "
                f"{config.processes}), got {config.process}"
            )
        else:
            jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"devices.coordinator: {config.coordinator}: {error}") from error


def is_chief() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


class Stop:
    """Whether the run shall save and end after the step in flight.

    One process: after SIGTERM or the first Ctrl-C; a second one kills it. Several: after SIGTERM
    to any of them, at a step that JAX's preemption service has agreed on with all the others.
    """

    def __init__(self) -> None:
        self._asked = False
        self._several = jax.process_count() > 1
        if not self._several:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._ask)

    def _ask(self, number, frame) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL)

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`; the answer is the same in all processes."""
        if self._several and not self._asked:
            self._asked = multihost_utils.reached_preemption_sync_point(step)
        return self._asked
