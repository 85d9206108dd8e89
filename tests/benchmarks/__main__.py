"""Speed and memory against the released PyTorch code, in one run, in turns.

    python -m tests.benchmarks                    every stage on this CPU
    python -m tests.benchmarks --only prompt      the stages whose name contains "prompt"
    python -m tests.benchmarks --device gpu       ViT-H on a GPU
    python -m tests.benchmarks --readme           writes the table into the README too

Needs PyTorch and the released package (`pip install segment-anything-py`). Both sides have the same
weights and inputs, and processes of their own that take turns; what compiles is not counted. The
ratio is to the faster of the released code as it is and through torch.compile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

from tests.benchmarks.cases import (
    COMPILED,
    OURS,
    RELEASED,
    Case,
    Result,
    cpu_cases,
    gpu_cases,
    measure,
)
from tests.benchmarks.roofline import flops, least_bytes

README = Path(__file__).parents[2] / "README.md"
MARKS = ("<!-- benchmarks: {} -->", "<!-- end of benchmarks: {} -->")
HEAD = (
    "stage",
    "model",
    "dtype",
    "released",
    "compiled",
    "sam_jax",
    "ratio",
    "wanted",
    "GB released",
    "GB sam_jax",
    "ratio",
    "wanted",
    "TFLOP",
    "GB moved, at least",
    "TFLOP/s",
    "of the peak",
)


def name_of(case: Case) -> str:
    """What a stage is called in the table."""
    o = case.options
    many = f", {o.batch} photos" if o.batch > 1 else ""
    return {
        "encoder": f"encoder{many}",
        "prompt": {"point": "one point", "five": "five points", "box": "one box"}[o.prompt],
        "prompts": f"{o.count} points, 3 masks each",
        "generator": f"automatic masks, {o.photo_wh[1]}x{o.photo_wh[0]}",
        "train": f"training step{many}, {o.masks} masks, rounds: {o.rounds}",
    }[o.stage]


def row(case: Case, results: dict[str, Result]) -> list[str]:
    """The cells under HEAD."""
    o, ours, released = case.options, results[OURS], results[RELEASED]
    best = min((results[n] for n in results if n != OURS), key=lambda result: result.seconds)
    work, moved = flops(o), least_bytes(o)
    speed = work / ours.seconds
    compiled = [_seconds(results[COMPILED])] if COMPILED in results else ["-"]
    wanted = ["-" if x is None else f"{x:g}" for x in (case.time, case.memory)]
    return [
        *(name_of(case), o.model, o.dtype, _seconds(released), *compiled, _seconds(ours)),
        *(f"{ours.seconds / best.seconds:.3f}", wanted[0]),
        *(f"{released.peak_gb:.2f}", f"{ours.peak_gb:.2f}"),
        *(f"{ours.peak_gb / best.peak_gb:.2f}", wanted[1]),
        *(f"{work / 1e12:.3g}", f"{moved / 1e9:.3g}", f"{speed / 1e12:.3g}"),
        f"{speed / ours.facts['peak_flops']:.0%}",
    ]


def _seconds(result: Result) -> str:
    time = f"{1e3 * result.seconds:.2f} ms" if result.seconds < 0.1 else f"{result.seconds:.2f} s"
    return f"{time} ±{result.spread:.0%}"


def line(cells: list[str] | tuple[str, ...]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def machine(facts: dict[str, dict]) -> str:
    """The machine and the libraries, in a sentence."""
    where = facts[OURS]["device"]
    if where == "cpu":
        where = f"{os.cpu_count()} CPU cores, {_processor()}"
    return f"On {where}; JAX {facts[OURS]['jax']}, PyTorch {facts[RELEASED]['torch']}."


def _processor() -> str:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        return platform.machine()
    text = flags.read_text()
    units = [u for u in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if u in text]
    return f"{platform.machine()}, {units[0] if units else 'no AVX2'}"


def write_readme(device: str, text: str, path: Path = README) -> None:
    """Puts the table between its marks.

    Raises:
      ValueError: the README has no place for it.
    """
    start, end = (mark.format(device) for mark in MARKS)
    whole = path.read_text()
    if start not in whole or end not in whole:
        raise ValueError(f"{path}: expected the lines {start} and {end}")
    before, after = whole.split(start)[0], whole.split(end)[1]
    path.write_text(f"{before}{start}\n{text}\n{end}{after}")


def main() -> int:
    """The command: 0 when all was measured, 2 where something is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m tests.benchmarks"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", default="", help="stages whose name or dtype contains this")
    parser.add_argument("--turns", type=int, default=5, help="of each side")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    parser.add_argument("--out", type=Path, help="a JSON file of all numbers")
    args = parser.parse_args()
    for package in ("torch", "segment_anything"):
        if importlib.util.find_spec(package) is None:
            print(f"tests.benchmarks: {package} is missing, see --help", file=sys.stderr)
            return 2
    cases = cpu_cases() if args.device == "cpu" else gpu_cases()
    cases = [case for case in cases if args.only in f"{name_of(case)} {case.options.dtype}"]
    if not cases:
        print(f"tests.benchmarks: no stage contains {args.only!r}", file=sys.stderr)
        return 2
    print(table(HEAD, []), flush=True)
    rows, numbers = [], []
    for case in cases:
        results = measure(case, args.turns, not args.no_compile)
        rows.append(row(case, results))
        numbers.append({"case": str(case), **{n: vars(r) for n, r in results.items()}})
        print(line(rows[-1]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(numbers, indent=1))
    about = machine({name: result.facts for name, result in results.items()})
    print(about)
    if args.readme:
        write_readme(args.device, f"{about}\n\n{table(HEAD, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
