"""The error of every checkpoint that can't be used, and the comparison that finds what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

Shape = tuple[int, ...]


class CheckpointError(ValueError):
    """A file, or a set of tensors, that is no checkpoint of the model it was taken for.

    Attributes:
      summary: one sentence. `str(error)` goes on with a line for every tensor concerned.
      missing: names of tensors that the model needs and the file lacks.
      unused: names of tensors that the file has and the model has no place for.
      misshapen: (name, expected, got) for tensors that don't fit their place.
    """

    def __init__(
        self,
        summary: str,
        missing: Iterable[str] = (),
        unused: Iterable[str] = (),
        misshapen: Iterable[tuple[str, str, str]] = (),
    ) -> None:
        self.summary = summary
        self.missing, self.unused = tuple(missing), tuple(unused)
        self.misshapen = tuple(misshapen)
        super().__init__("\n".join([summary, *self._details()]))

    def _details(self) -> Iterable[str]:
        shapes = [f"{name}: expected {want}, got {got}" for name, want, got in self.misshapen]
        for title, lines in (
            ("missing", self.missing),
            ("unused", self.unused),
            ("misshapen", shapes),
        ):
            if lines:
                parts = Counter(map(_part, lines))
                counts = ", ".join(f"{part} {n}" for part, n in parts.items())
                yield f"{title} ({len(lines)}: {counts}):"
                yield from (f"  {line}" for line in lines)


def _part(name: str) -> str:
    """The part of the model that a name, in any naming, belongs to."""
    if name.startswith(("params/", "buffers/")):
        return name.split("/")[1]
    return name.split(".")[0]


def check(
    expected: Mapping[str, Shape],
    tensors: Mapping[str, np.ndarray],
    what: str,
    hint: str = "",
) -> None:
    """Compares names, shapes and kinds of number, all of them before it complains.

    Args:
      expected: name -> shape of every tensor of the model.
      tensors: name -> array that were found.
      what: names the two for the error's sentence, as "a.pth as vit_b".
      hint: a sentence that goes after it.

    Raises:
      CheckpointError: naming every missing, unused and misshapen tensor.
    """
    missing = [name for name in expected if name not in tensors]
    unused = [name for name in tensors if name not in expected]
    misshapen = []
    for name in expected:
        if name not in tensors:
            continue
        want, got = tuple(expected[name]), tensors[name]
        if tuple(got.shape) != want:
            misshapen.append((name, str(want), str(tuple(got.shape))))
        elif not is_floating(got.dtype):
            misshapen.append((name, "floating-point numbers", str(got.dtype)))
    if not (missing or unused or misshapen):
        return
    counts = ", ".join(
        f"{len(found)} {kind}"
        for kind, found in (("missing", missing), ("unused", unused), ("misshapen", misshapen))
        if found
    )
    summary = f"{what}: of {len(expected)} tensors expected and {len(tensors)} found, {counts}"
    raise CheckpointError(summary + (f"; {hint}" if hint else ""), missing, unused, misshapen)


def is_floating(dtype: np.dtype) -> bool:
    """Whether numbers of this kind can be weights; ml_dtypes' bfloat16 has NumPy kind 'V'."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
