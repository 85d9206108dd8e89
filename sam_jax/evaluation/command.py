"""The paper's tables: `sam-jax evaluate TABLE --data DIR --model M`."""

from __future__ import annotations

import argparse

from sam_jax.evaluation import (
    compare,
    dataset,
    edges,
    fairness,
    instances,
    proposals,
    single_point,
    text,
)

TABLES = {
    "single-point": single_point,
    "edges": edges,
    "proposals": proposals,
    "instances": instances,
    "text": text,
    "fairness": fairness,
    "compare": compare,
    "dataset": dataset,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand a table."""
    tables = parser.add_subparsers(dest="table", metavar="TABLE", required=True)
    for name, module in TABLES.items():
        table = tables.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(table)


def run(args: argparse.Namespace) -> None:
    """Runs the table that was asked for.

    Raises:
      ValueError: a negative number of images, or what the table says.
    """
    images = getattr(args, "images", 0)
    if images < 0:
        raise ValueError(f"--images: expected 0 (all) or more, got {images}")
    TABLES[args.table].run(args)
