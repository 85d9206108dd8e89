"""The data that tables are made on: `--data` arguments to sources by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

HELP = (
    "data sets in any form that training reads (a folder in SA-1B form, a COCO JSON, pictures with "
    "mask PNGs), folders of such folders, or NAME=DIR for one of the paper's 23 in its own layout "
    "(--layouts lists them)"
)


def open_data(paths: Sequence[str]) -> dict[str, Any]:
    """The sources that `--data` names.

    Raises:
      ValueError: nothing there, another layout than expected, or two of the same name.
    """
    sources: dict[str, Any] = {}
    for path in paths:
        for name, source in _open(path).items():
            if name in sources:
                raise ValueError(f"--data: two data sets are called {name}; give them one by one")
            sources[name] = source
    return sources


def _open(path: str) -> dict[str, Any]:
    from sam_jax.data.listed import subsample
    from sam_jax.data.zero_shot import SETS, open_zero_shot

    name, _, folder = path.partition("=")
    try:
        if folder and not Path(path).exists():
            return {name: subsample(open_zero_shot(name, folder))}
        place = Path(path)
        below = _folders(place)
        known = {p.name: p for p in below if p.name in SETS}
        if known and not _has_files(place):
            return {n: subsample(open_zero_shot(n, p)) for n, p in known.items()}
        return _open_any(place, path, below)
    except ValueError as error:
        raise ValueError(f"--data: {error}") from error


def _open_any(place: Path, path: str, below: list[Path]) -> dict[str, Any]:
    """What `open_source` reads: at the path, or in the folders right below it."""
    from sam_jax.data.open_source import IMAGE_FOLDERS, MASK_FOLDERS, open_source

    if _has_files(place) or not below:
        return {place.stem if place.is_file() else place.name or path: open_source(path)}
    names = {folder.name for folder in below}
    if names & {*IMAGE_FOLDERS, *MASK_FOLDERS}:
        return {place.name: open_source(path)}
    found, problems = {}, []
    for folder in below:
        try:
            found[folder.name] = open_source(folder)
        except ValueError as error:
            problems.append(f"skipped {folder}: {str(error).splitlines()[0]}")
    if not found:
        return {place.name: open_source(path)}
    for problem in problems:
        print(problem)
    return found


def _folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _has_files(place: Path) -> bool:
    """Whether data lie in the folder itself: pictures, records, tars."""
    from sam_jax.data.images import IMAGE_SUFFIXES

    kinds = (".json", ".tar", *IMAGE_SUFFIXES)
    return place.is_dir() and any(
        p.suffix.lower() in kinds and not p.name.startswith(".")
        for p in place.iterdir()
        if p.is_file()
    )


def layouts() -> str:
    """The paper's 23 data sets: name, title, part, counts and expected files."""
    from sam_jax.data.zero_shot import SETS

    parts = []
    for one in SETS.values():
        head = f"{one.name}: {one.title}, {one.split}, {one.images:,} images, {one.masks:,} masks"
        parts.append(head + "".join(f"\n    {line}" for line in one.layout.splitlines()))
    return "\n".join(parts)
