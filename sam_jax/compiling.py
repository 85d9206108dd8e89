"""Compiling ahead of time."""

from __future__ import annotations

import contextlib
import ctypes

import jax


def compile_ahead(program, *args) -> jax.stages.Compiled:
    """A jitted program, compiled for arguments of these shapes, dtypes and places.

    What the compiler has freed, a gigabyte for a training step on a CPU, goes back to the system:
    glibc would keep it beside what the program then needs.
    """
    made = program.lower(*args).compile()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: nothing to do
        ctypes.CDLL(None).malloc_trim(0)
    return made
