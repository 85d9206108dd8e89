"""Objects without a background: pictures whose opaque pixels are the one mask."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from sam_jax.data.images import find_images
from sam_jax.data.sources import Record, RecordError
from sam_jax.ops import rle

_MARGIN = 0.2  # of the object's longer side around it: less, and it looks like a whole picture
_RIM = 2  # pixels inside the object's edge in which a background may show
_LARGEST = 1024  # pixels of its longer side
_SEEN = 20  # pictures that tell what a folder holds


class CutOuts:
    """A folder of pictures with transparent pixels, sub-folders included: stickers, renderings.

    A record is one picture, cut to its object: the pixels of at least half opacity. Around it the
    colours of the object's edge go on, so that nothing of a background is pasted along with it.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Lists the pictures.

        Args:
          path: the folder.

        Raises:
          ValueError: no such folder, or no picture in it.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"path: expected a folder of pictures, got {path}")
        self._files = find_images(self.path)
        if not self._files:
            raise ValueError(f"path: expected pictures with transparent pixels, {path} has none")

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"CutOuts({str(self.path)!r})"

    def __getitem__(self, index: int) -> Record:
        """Record `index`, in sorted order.

        Raises:
          RecordError: the picture cannot be read, or has no transparent or no opaque pixel.
        """
        name = str(self._files[index].relative_to(self.path))
        try:
            with Image.open(self._files[index]) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGBA")
        except Exception as error:  # decoders of damaged files raise almost anything
            raise RecordError(f"{name} is not readable: {error}", "image") from error
        opaque = image.getchannel("A").point([0] * 128 + [255] * 128)
        box = opaque.getbbox()
        if box is None or opaque.histogram()[0] == 0:
            missing = "opaque" if box is None else "transparent"
            raise RecordError(f"{name} has no {missing} pixel", "mask")
        image = image.crop(box)
        image.thumbnail((_LARGEST, _LARGEST), reducing_gap=3.0)
        margin = round(_MARGIN * max(image.size)) + _RIM
        pixels = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)))
        alpha = pixels[..., 3]
        mask = alpha >= 128
        solid = (alpha >= 250) | ndimage.binary_erosion(mask, iterations=_RIM)
        if not solid.any():
            solid = mask
        nearest = ndimage.distance_transform_edt(
            ~solid, return_distances=False, return_indices=True
        )
        colours = np.ascontiguousarray(pixels[..., :3][tuple(nearest)])
        return {"image": colours, "rles": [rle.encode(mask)], "name": name}


def are_cut_outs(files: list[Path]) -> bool:
    """Whether all of a folder's pictures can be transparent, and some from all over it are.

    What cannot be read decides nothing.
    """
    seen = files[:: max(1, len(files) // _SEEN)]
    return (
        all(_asked(_has_alpha, files)) and any(answers := _asked(_is_clear, seen)) and all(answers)
    )


def _asked(question: Callable[[Image.Image], bool], files: list[Path]) -> list[bool]:
    answers = []
    for path in files:
        with contextlib.suppress(Exception), Image.open(path) as image:  # decoders raise anything
            answers.append(question(image))
            if not answers[-1]:
                break
    return answers


def _has_alpha(image: Image.Image) -> bool:
    return bool(set(image.mode) & {"A", "a"}) or "transparency" in image.info


def _is_clear(image: Image.Image) -> bool:
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 128
