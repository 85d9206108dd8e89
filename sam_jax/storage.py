"""Where the package keeps files, and writing them so that they are whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

CACHE_VARIABLE = "SAM_JAX_CACHE"


def cache_folder() -> Path:
    """Where fetched and compiled files are kept: $SAM_JAX_CACHE, or ~/.cache/sam_jax."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "sam_jax")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, which is renamed to it when the block ends well.

    A file or nothing at `path` is replaced. What was made at the temporary path may be a file or
    a folder; after an error it is removed, and `path` is as it was.

    Raises:
      ValueError: `path` is a folder with something in it, or its parent is no folder.
    """
    path = Path(path)
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"path: {path} is a folder that is not empty; remove it or choose another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ValueError(f"path: can't write to {path.parent}: {error.strerror}") from error
    try:
        made = workplace / path.name
        yield made
        _usual_modes(workplace, made)
        if path.is_dir():
            path.rmdir()
        os.replace(made, path)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _usual_modes(workplace: Path, made: Path) -> None:
    """Gives files the permissions that any new file gets; safetensors makes private ones."""
    probe = workplace / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    for file in [made, *made.rglob("*")] if made.is_dir() else [made]:
        if file.is_file():
            file.chmod(mode)
