"""The command `sam-jax`, also `python -m sam_jax`: a table of commands.

Each command lives in its own room, in a module with `add_arguments(parser)` and `run(args)`. Such a
module is imported when its command is called and imports JAX in `run` only, so that `--help` is
instant.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import NoReturn

COMMANDS = {
    "segment": ("sam_jax.inference.segment", "masks of a photo, from points, boxes or nothing"),
}
"""Name -> module and one line of help."""

BAD_INPUT, INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the arguments after the program's name; None takes those of the process.

    Returns:
      The exit code: 0, 2 for bad input (one sentence on stderr), 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"sam-jax {argv[0]}: error: {_sentence(error)}", file=sys.stderr)
        return BAD_INPUT


def _run(argv: list[str]) -> int:
    parser = _Parser(prog="sam-jax", description="Segment Anything in JAX.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    module = None
    for name, (where, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=None)
        if argv and argv[0] == name:
            module = importlib.import_module(where)
            command.description = module.__doc__.strip()
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(command)
    args = parser.parse_args(argv)
    if args.version:
        from sam_jax import __version__

        print(f"sam-jax {__version__}")
        return 0
    if module is None:
        parser.print_help()
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return module.run(args) or 0


def _sentence(error: Exception) -> str:
    """The message on one line; an OSError names its file."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
