"""Results on disk: written under a temporary name and renamed, so that none is ever half there."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from sam_jax.inference.overlay import colour


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Has `write` fill a temporary file next to `path`, then renames it.

    Raises:
      OSError: the folder cannot be written to; nothing is left behind.
    """
    written = temporary(path, secrets.token_hex(4))
    try:
        with open(written, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # so that a loss of power leaves no empty file either
        os.replace(written, path)
    except OSError as error:
        if error.errno is None:  # an encoder's
            raise OSError(f"{path}: {error}") from None
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        written.unlink(missing_ok=True)


def temporary(path: Path, token: str) -> Path:
    """Where `path` is written before it is renamed; long names are cut."""
    return path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.{token}.tmp")


def temporary_of(path: Path) -> Path | None:
    """`temporary` with an empty token of what a killed run was writing to, None for other files."""
    parts = path.name.rsplit(".", 2)
    if not path.name.startswith(".") or len(parts) != 3 or parts[2] != "tmp":
        return None
    return path.with_name(f"{parts[0]}..tmp")


def write_picture(path: Path, picture: Image.Image, quality: int = 92) -> None:
    """A PIL image as the format that the name ends in (.png, .jpg or .webp)."""
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    options = {"quality": quality} if kind != "PNG" else {}
    write_atomically(path, lambda file: picture.save(file, kind, **options))


def write_mask(path: Path, mask: np.ndarray) -> None:
    """bool [H, W] as a PNG of 0 and 255."""
    write_picture(path, Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))))


def write_labels(path: Path, labels: np.ndarray) -> None:
    """A label map as PNG: uint8 [H, W] with a palette of the masks' colours, uint16 as grey."""
    picture = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        palette = [(0, 0, 0), *(colour(i) for i in range(int(labels.max(initial=0))))]
        picture.putpalette([value for rgb in palette for value in rgb])
    write_picture(path, picture)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """`value` as JSON; NaN and infinity are errors."""
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def check_writable(path: Path) -> None:
    """Makes the folder of `path` and tries to write in it, before any long computation.

    Raises:
      OSError: it cannot be made or written to, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder; give the name of a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = temporary(path, secrets.token_hex(4))
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    probe.unlink()
