"""`python -m train.check_data DATA`: what is in a data set and what is wrong with it.

Reads every picture and every mask, says in words what was found, and writes a page with pictures
of a sample and of each kind of problem.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.data.open_source import FORMS, open_source
from sam_jax.data.sources import Source
from sam_jax.storage import replacing
from train.data_problems import (
    KEPT,
    KINDS,
    PER_IMAGE,
    SIZE_EDGES,
    Findings,
    Measured,
    measure,
    of_source,
)
from train.data_report import write_report

NAMED = 10  # problems of a kind that are named on the terminal


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m train.check_data",
        description="Says what is in a data set and what is wrong with it.",
        epilog="DATA is one of:\n" + FORMS + "\n\nExit code: 0 nothing is wrong, 1 problems were "
        "found, 2 wrong arguments, 130 stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder or file, see below")
    add("--out", default="data_report.html", metavar="FILE", help="the page (%(default)s)")
    add("--csv", metavar="FILE", help="also a table with a row for every problem")
    add("--images", type=int, default=0, metavar="N", help="only N of the images, evenly spread")
    add("--samples", type=int, default=12, metavar="N", help="images on the page (%(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N")
    args = parser.parse_args(argv)
    if min(args.images, args.samples) < 0 or args.threads < 1:
        parser.error("--images and --samples must be at least 0, --threads at least 1")
    for path in (args.out, args.csv):
        if path and not Path(path).absolute().parent.is_dir():
            parser.error(f"no such folder: {Path(path).absolute().parent}")
    return args


def check(
    source: Source, indices: np.ndarray, threads: int = 1, csv_file: Any = None
) -> tuple[Findings, bool]:
    """Reads records; ends with what was seen so far when Ctrl-C is pressed.

    Args:
      source: the data.
      indices: int [R], the records to read.
      threads: records read at the same time.
      csv_file: an open text file for a row a problem, or None.

    Returns:
      The findings, and whether all records were read.
    """
    from tqdm import tqdm

    findings = Findings()
    rows = csv.writer(csv_file) if csv_file else None
    if rows:
        rows.writerow(["kind", "name", "detail"])

    def note(measured: Measured) -> None:
        findings.add(measured)
        if rows:
            rows.writerows(problem[:3] for problem in measured.problems)

    for problem in of_source(source):
        findings.note(problem)
        if rows:
            rows.writerow(problem[:3])
    try:
        results = _measured(source, indices, threads)
        for measured in tqdm(results, "images", len(indices), unit="", disable=None):
            note(measured)
    except KeyboardInterrupt:
        return findings, False
    return findings, True


def _measured(source: Source, indices: np.ndarray, threads: int) -> Iterator[Measured]:
    """The measured records in order; few are in memory at a time."""
    remaining, pending = iter(indices), deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for index in itertools.islice(remaining, 4 * threads):
            pending.append(pool.submit(measure, source, int(index)))
        while pending:
            yield pending.popleft().result()
            for index in itertools.islice(remaining, 1):
                pending.append(pool.submit(measure, source, int(index)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def summary(findings: Findings) -> str:
    """The findings in words and tables."""
    f = findings
    lines = [
        f"images  {f.images:,}" + (f" and {f.unreadable:,} unreadable" * bool(f.unreadable)),
        f"masks   {f.masks:,}" + (f", {f.masks / f.images:.1f} an image" if f.images else ""),
    ]
    if f.sides:
        common = ", ".join(f"{side} ({n:,})" for side, n in f.sides.most_common(3))
        more = f" and {len(f.sides) - 3:,} more" * (len(f.sides) > 3)
        lines.append(f"sizes   {common}{more}")
    sizes = [f"{a:.2f} - {b:.2f}" for a, b in itertools.pairwise(SIZE_EDGES)]
    lines += ["", "relative size, sqrt(mask area / image area)", *_bars(sizes, f.relative_sizes)]
    lines += ["", "masks in an image", *_bars([name for name, _ in PER_IMAGE], f.per_image)]
    for kind, about in KINDS.items():
        if not f.counts[kind]:
            continue
        mark = "" if about.grave else " (no problem)"
        lines += ["", f"{kind}: {f.counts[kind]:,}{mark}. {about.meaning}"]
        shown = f.kept[kind][:NAMED]
        lines += [f"  {p.name}" + f": {p.detail}" * (p.detail != p.name) for p in shown]
        if f.counts[kind] > len(shown):
            lines.append(f"  and {f.counts[kind] - len(shown):,} more")
    lines += ["", f"{f.grave:,} problems" if f.grave else "nothing is wrong"]
    return "\n".join(lines)


def _bars(names: list[str], counts: np.ndarray) -> list[str]:
    most = max(1, int(counts.max()))
    return [
        f"  {name:>12}  {count:>9,}  {'#' * -(-40 * int(count) // most)}".rstrip()
        for name, count in zip(names, counts, strict=True)
    ]


@contextmanager
def _table(path: str | None) -> Iterator[Any]:
    """The table's file, open for writing, or None; it is there when the block has ended well."""
    if not path:
        yield None
        return
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        yield file


def main(argv: list[str] | None = None) -> int:
    """The command: 0 nothing is wrong, 1 problems, 2 wrong arguments, 130 stopped by Ctrl-C."""
    args = read_arguments(argv)
    try:
        source = open_source(args.data)
    except ValueError as error:
        print(f"check_data: {error}", file=sys.stderr)
        return 2
    count = min(args.images or len(source), len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int)
    print(f"{source!r}: {len(source):,} records" + f", {count:,} of them read" * bool(args.images))
    with _table(args.csv) as csv_file:
        findings, finished = check(source, indices, args.threads, csv_file)
    print(summary(findings))
    if not finished:
        print("stopped: this is what was seen until then")
    write_report(Path(args.out), args.data, source, indices, findings, args.samples)
    print(f"wrote {args.out}" + f" and {args.csv}" * bool(args.csv))
    if max(findings.counts.values(), default=0) > KEPT and not args.csv:
        print("give --csv FILE for the names of all problems")
    return 130 if not finished else int(findings.grave > 0)


if __name__ == "__main__":
    sys.exit(main())
