"""Whatever holds a picture -> uint8 [H, W, 3] RGB, or one clear sentence why not."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)


class ImageError(ValueError):
    """A picture that cannot be read; the message names it and says why in one sentence."""


def read_image(
    source: str | os.PathLike | bytes | Image.Image | np.ndarray,
    *,
    at_least: int | None = None,
    apply_orientation: bool = True,
    name: str = "the picture",
) -> np.ndarray:
    """Reads a picture as 8-bit RGB.

    Grey becomes three equal channels, 16-bit grey is divided by 257, CMYK and the other colour
    spaces are converted, and a file's EXIF orientation is applied. Transparency, where there is
    any, is composited on white; a picture whose alpha is 255 everywhere keeps its colours. (The
    released demo reads files with OpenCV, which drops alpha and shows the colours hidden under
    it.) Of an animation the first frame is read.

    Args:
      source: a path, the bytes of a file, a PIL image, or an array: uint8 [H, W], [H, W, 1],
        [H, W, 3] RGB or [H, W, 4] RGBA.
      at_least: JPEG files only: lets the decoder shrink by 2, 4 or 8 (much faster) as long as
        the longest side keeps at least this many pixels. None reads every pixel.
      apply_orientation: False leaves the pixels as they are stored.
      name: what errors call a picture that is given as bytes.

    Returns:
      uint8 [H, W, 3], C-contiguous, never sharing memory with a PIL image.

    Raises:
      ImageError: no such file, a folder, not a picture, truncated, without pixels, too many
        pixels, or an array of another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image", apply_orientation)
    if isinstance(source, bytes):
        return _from_file(io.BytesIO(source), name, at_least, apply_orientation)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            "source must be a path, a PIL image or a uint8 numpy array, "
            f"got {type(source).__name__}; convert other arrays with np.asarray(x)"
        )
    return _from_path(Path(source), at_least, apply_orientation)


def image_hw(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width that `read_image` would give, from the picture's head alone.

    Raises:
      ImageError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ImageError(f"{path} is not readable: {error}") from error
    return (width, height) if turned else (height, width)


def find_images(folder: str | os.PathLike) -> list[Path]:
    """All pictures under `folder`, sub-folders included, sorted; hidden files are left out.

    Raises:
      ImageError: `folder` is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(f"folder must be an existing folder, got {root}")
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _from_path(path: Path, at_least: int | None, apply_orientation: bool) -> np.ndarray:
    if path.is_dir():
        raise ImageError(f"{path} is a folder, not a picture; find_images lists the pictures in it")
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes)")
    return _from_file(path, str(path), at_least, apply_orientation)


def _from_file(
    file: Path | io.BytesIO, name: str, at_least: int | None, apply_orientation: bool
) -> np.ndarray:
    try:
        with Image.open(file) as image:
            if at_least is not None:
                _draft(image, at_least)
            image.load()
            return _from_pil(image, name, apply_orientation)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(
            f"{name} has more than {limit} pixels and may be a decompression bomb; if you trust "
            "it, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except PermissionError:
        raise ImageError(f"{name} may not be read: permission denied") from None
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ImageError(f"{name} is truncated or damaged: {error}") from error


def _draft(image: Image.Image, at_least: int) -> None:
    """Asks the JPEG decoder for 1/2, 1/4 or 1/8 size, never below `at_least` on the longest."""
    longest = max(image.size)
    shrink = max((n for n in (1, 2, 4, 8) if longest // n >= at_least), default=1)
    if shrink > 1:
        image.draft(None, (image.width // shrink, image.height // shrink))


def _from_pil(image: Image.Image, name: str, apply_orientation: bool) -> np.ndarray:
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name} has no pixels: {image.width} x {image.height}")
    if apply_orientation:
        image = _oriented(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _three_channels(_sixteen_bit_to_eight(image, name))
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if has_alpha:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _oriented(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF must not cost the picture
        return image


def _sixteen_bit_to_eight(image: Image.Image, name: str) -> np.ndarray:
    values = np.asarray(image)
    if values.dtype.kind == "f":
        raise ImageError(
            f"{name} holds floating-point values whose range is unknown; scale them to 0..255 and "
            "convert to uint8"
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name} holds integers from {low} to {high}; grey values of 16 bits (0..65535) are "
            "read, so scale these to 0..255 and convert to uint8"
        )
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_array(array: np.ndarray) -> np.ndarray:
    shape: tuple[int, ...] = array.shape
    if array.dtype != np.uint8:
        hint = "multiply values in 0..1 by 255, round and" if array.dtype.kind == "f" else "please"
        raise ImageError(
            f"image array must be uint8 with values 0..255, got {array.dtype}; "
            f"{hint} convert with .astype(np.uint8)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(
            "image array must be [H, W], [H, W, 3] or [H, W, 4], got shape "
            f"{shape}; move channels last and pass one picture at a time"
        )
    if array.size == 0:
        raise ImageError(f"image array has no pixels: shape {shape}")
    if array.ndim == 2 or shape[2] == 1:
        return _three_channels(array.reshape(shape[:2]))
    return _on_white(array) if shape[2] == 4 else np.ascontiguousarray(array)


def _three_channels(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    colours: Any = rgba[..., :3]
    alpha = rgba[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(colours)
    mixed = colours.astype(np.uint16) * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
