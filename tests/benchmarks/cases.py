"""Which stages are compared, with what is expected of each, and how a case is measured."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator

from tests.benchmarks.options import Options
from tests.benchmarks.pair import Side

OURS, RELEASED, COMPILED = "sam_jax", "released", "released, compiled"
MODULES = {
    OURS: "tests.benchmarks.stages_ours",
    RELEASED: "tests.benchmarks.stages_released",
    COMPILED: "tests.benchmarks.stages_released",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage and what is expected.

    Attributes:
      options: the stage.
      time, memory: the largest ratios to the released code's best that are good; None: any.
      burst: runs that make one turn of a side.
      settle: whether a run that does not count comes before them; not where a run takes a minute.
      compiles: whether the released side is also tried through torch.compile.
      alone: both sides do not fit into memory together, so every turn starts its process anew.
    """

    options: Options
    time: float | None = None
    memory: float | None = None
    burst: int = 1
    settle: bool = True
    compiles: bool = False
    alone: bool = False


def cpu_cases() -> list[Case]:
    """What is compared on a CPU: the released sizes of ViT-B."""
    cases = [
        Case(Options("encoder"), 0.5, 0.5, compiles=True),
        Case(Options("encoder", dtype="bfloat16"), 0.9, compiles=True),
    ]
    for prompt in ("point", "five", "box"):
        cases.append(Case(Options("prompt", prompt=prompt), 0.3, burst=30, compiles=True))
    return [
        *cases,
        Case(Options("prompt", dtype="bfloat16"), burst=30),
        Case(Options("prompts"), 0.25, burst=2, compiles=True),
        Case(Options("prompts", dtype="bfloat16"), burst=2),
        Case(Options("generator"), 0.3, settle=False),
        Case(Options("train"), 0.8, 0.5, settle=False, alone=True),
        Case(Options("train", dtype="bfloat16"), 1.0, 0.5, settle=False, alone=True),
    ]


def gpu_cases() -> list[Case]:
    """What is compared on a GPU: ViT-H in bfloat16."""
    h = {"model": "vit_h", "dtype": "bfloat16", "device": "gpu"}
    return [
        Case(Options("encoder", batch=8, **h), burst=10, compiles=True),
        Case(Options("prompt", **h), burst=200, compiles=True),
        Case(Options("prompts", **h), burst=20, compiles=True),
        Case(Options("generator", **h), burst=3),
        Case(Options("train", batch=4, masks=16, **h), burst=5, compiles=True),
    ]


@dataclasses.dataclass
class Result:
    """What was measured of one side of a case."""

    turns: list[float] = dataclasses.field(default_factory=list)
    """Seconds of a run: the median of each turn's."""
    peak_gb: float = 0.0
    facts: dict = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The median turn."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles of the turns, as a part of the median."""
        if len(self.turns) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.turns, n=4, method="inclusive")
        return (high - low) / 2 / self.seconds


def measure(case: Case, turns: int, compiled: bool) -> dict[str, Result]:
    """Every side of a case, in turns.

    Args:
      case: what to measure.
      turns: of each side.
      compiled: whether to try torch.compile where the case may.

    Returns:
      Results by side.

    Raises:
      RuntimeError: the process of a side ended; without a C++ compiler COMPILED's does.
    """
    names = [RELEASED, OURS] + [COMPILED] * (compiled and case.compiles)
    results = {name: Result() for name in names}
    with contextlib.ExitStack() as stack:
        sides = {} if case.alone else {n: stack.enter_context(_side(case, n)) for n in names}
        for _ in range(turns):
            for name in list(results):
                with _turn_of(case, name, sides) as side:
                    seconds = side.run(case.burst, case.settle)
                results[name].turns.append(statistics.median(seconds))
                results[name].peak_gb = max(results[name].peak_gb, side.peak_gb)
                results[name].facts = side.ready
    return results


@contextlib.contextmanager
def _turn_of(case: Case, name: str, sides: dict[str, Side]) -> Iterator[Side]:
    if name in sides:
        yield sides[name]
    else:
        with _side(case, name) as side:
            yield side


def _side(case: Case, name: str) -> Side:
    options = dataclasses.replace(case.options, compiled=name == COMPILED)
    return Side(MODULES[name], options.arguments())
