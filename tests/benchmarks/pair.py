"""Two programs timed in turns, each in a process of its own.

A process prepares its stage, runs it once (compiling is not counted), says so, and then runs it
whenever it is told to. Turns make both sides see the same weather on a shared machine; their own
processes give each its own peak memory. All processes start with an allocator that keeps freed
memory, without which the released side is much slower.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

from train.__main__ import keep_memory


class Side:
    """A process that runs one stage on demand.

    Args:
      module: what `python -m` runs; it calls `serve`.
      arguments: of its command line.
    """

    def __init__(self, module: str, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._answer()
        """What the process says when it is ready: seconds of its first run, and counts."""
        self.peak_gb = 0.0
        """The most memory that the process has had so far: of the device, where that is a GPU."""

    def run(self, times: int = 1, settle: bool = False) -> list[float]:
        """Runs the stage; returns the seconds of each run.

        Args:
          times: how often.
          settle: once more before, which is not counted: a process that has slept finds the caches
            full of the others' data.
        """
        answers = [self._ask("run") for _ in range(times + settle)]
        self.peak_gb = answers[-1]["peak_gb"]
        return [answer["seconds"] for answer in answers[settle:]]

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    def _ask(self, word: str) -> dict:
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended: {' '.join(self._process.args)}")
        return json.loads(line)


def resident_gb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def serve(
    module: str,
    prepare: Callable[[], tuple[Callable[[], object], dict]],
    peak_gb: Callable[[], float] = resident_gb,
) -> None:
    """The other end of `Side`: prepares, answers, and runs until the input ends.

    Args:
      module: the name that it was started by.
      prepare: gives what is timed (it returns when all is computed), and what to say of it.
      peak_gb: tells the most memory so far.
    """
    keep_memory(module)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    run, facts = prepare()
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    print(json.dumps(facts | {"first_seconds": first}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_gb": peak_gb()}), file=answers, flush=True)
