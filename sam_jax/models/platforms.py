"""How a program is laid out for the platform that it is compiled for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax

_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """While tracing a program for several platforms at once: no kernels, one form for all."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def is_portable() -> bool:
    """Inside `portable`."""
    return _portable.get()


def in_parts(f: Callable, x: jax.Array, weights, most: int) -> jax.Array:
    """f(x, weights, settled), on CPUs for parts of x one after another, with less between.

    With gradients, which take longer in parts, and on other platforms it is one call.

    Args:
      f: maps x [L, ...], weights, and a function that is to be called on what lies between its
        products: in parts each is finished before the next begins. Every row of the result [L, ...]
        depends on that row of x alone.
      x: [L, ...].
      weights: arrays, in any structure.
      most: rows of a part; where L has no divisor from a quarter of that on, there are no parts.
    """
    whole = functools.partial(f, settled=lambda x: x)
    length = x.shape[0]
    if is_portable() or not isinstance(length, int):  # symbolic in `jax.export`
        return whole(x, weights)
    part = _divisor(length, most)
    if part == length or 4 * part < most:
        return whole(x, weights)

    def parts(x, weights):
        one = functools.partial(f, weights=weights, settled=jax.lax.optimization_barrier)
        return jax.lax.map(one, x.reshape(-1, part, *x.shape[1:])).reshape(x.shape)

    @jax.custom_vjp
    def call(x, weights):
        return jax.lax.platform_dependent(x, weights, cpu=parts, default=whole)

    call.defvjp(functools.partial(jax.vjp, whole), lambda gradients, g: gradients(g))
    return call(x, weights)


def _divisor(length: int, most: int) -> int:
    """The largest divisor of `length` up to `most`."""
    return next(n for n in range(min(length, most), 0, -1) if length % n == 0)
