"""Compiling ahead of time."""

from __future__ import annotations

import contextlib
import ctypes

import jax


def compile_ahead(program, *args, options: dict[str, str] | None = None) -> jax.stages.Compiled:
    """A jitted program, compiled for arguments of these shapes, dtypes and places.

    With compiler options, unless this XLA knows them not: they change no more than rounding.
    What the compiler has freed, a gigabyte for a training step on a CPU, goes back to the system:
    glibc would keep it beside what the program then needs.
    """
    lowered = program.lower(*args)
    try:
        made = lowered.compile(options)
    except jax.errors.JaxRuntimeError:
        if not options:
            raise
        made = lowered.compile()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: nothing to do
        ctypes.CDLL(None).malloc_trim(0)
    return made
