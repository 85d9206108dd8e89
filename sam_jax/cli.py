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

from sam_jax import __version__

COMMANDS = {
    "segment": ("sam_jax.inference.segment", "masks of a photo, from points, boxes or nothing"),
    "generate": ("sam_jax.inference.generate", "masks of everything in each photo of a folder"),
    "annotate": ("sam_jax.engine.annotate", "masks by hand with the model's help, in the browser"),
    "export": ("sam_jax.inference.export.command", "files that run without this package"),
    "evaluate": ("sam_jax.evaluation.command", "the paper's tables, on data with true masks"),
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
      The exit code: 0, 2 for bad input (one sentence on stderr), 130 after Ctrl-C. Where the
      environment variable SAM_JAX_TRACEBACK is set, errors are raised instead.
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
        if os.environ.get("SAM_JAX_TRACEBACK"):
            raise
        print(f"sam-jax {argv[0]}: error: {_sentence(error)}", file=sys.stderr)
        return BAD_INPUT


def _run(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        return _no_command(argv)
    name, arguments = argv[0], argv[1:]
    module = importlib.import_module(COMMANDS[name][0])
    parser = _Parser(
        prog=f"sam-jax {name}",
        description=module.__doc__.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes are not for the user
    return module.run(args) or 0


def _no_command(argv: list[str]) -> int:
    """The help, the version, or an error."""
    table = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
    parser = _Parser(
        prog="sam-jax",
        usage="sam-jax COMMAND ...",
        description="Segment Anything in JAX.",
        epilog=f"commands (sam-jax COMMAND --help says more):\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sam-jax {__version__}")
    if argv and not argv[0].startswith("-"):
        parser.error(f"unknown command {argv[0]!r}: expected one of {', '.join(COMMANDS)}")
    parser.parse_args(argv)
    parser.print_help()
    return 0


def _sentence(error: Exception) -> str:
    """The message on one line; an OSError names its file."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
