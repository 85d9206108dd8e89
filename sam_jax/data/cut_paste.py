"""Objects cut out of photographs and pasted on other photographs, with correct occlusion."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from PIL import Image, ImageFilter

from sam_jax.data.sources import Record, RecordError, Source
from sam_jax.ops import rle as rle_ops

log = logging.getLogger(__name__)

MIN_PIXELS = 30  # masks with fewer visible pixels are left out
_DONORS_TRIED = 10
_INSIDE = 0.9  # a mask of which this share lies in another is a part of it and goes along


Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in 0..1 of the picture


@dataclass
class _Layer:
    """Visible pixels of one mask: bool [h, w] with its top left at pixel (x, y) of the scene."""

    x: int
    y: int
    pixels: np.ndarray


@dataclass
class _Scene:
    """A picture under construction and its masks."""

    image: Image.Image
    layers: list[_Layer] = field(default_factory=list)


class CutPaste:
    """A source: each photograph of `source` with 1 to 4 objects of `donors`' photographs on it.

    An object comes with the masks inside it, at a random scale and place, perhaps mirrored, with
    a feathered edge and shifted colours. Masks that it covers lose those pixels. Record i depends
    on (seed, i, size), the source and the donors, and on nothing else.
    """

    def __init__(
        self,
        source: Source,
        size: int = 512,
        seed: int = 0,
        length: int | None = None,
        donors: Sequence[tuple[Source, float]] = (),
    ):
        """
        Args:
          source: photographs with masks; at least one record.
          size: longest side of the records made, pixels.
          seed: of everything random.
          length: number of records; by default that of `source`. More give other pastings on the
            same photographs.
          donors: (source, weight) pairs of photographs whose objects are pasted; by default those
            of `source`.

        Raises:
          ValueError: an empty source or donor, a weight below 0 or none above it, a size below 64,
            or a length below 1.
        """
        donors = list(donors) or [(source, 1.0)]
        if not len(source) or not all(len(donor) for donor, _ in donors):
            raise ValueError("source and donors must hold at least one record, got none")
        weights = np.array([weight for _, weight in donors], np.float64)
        if not (weights >= 0).all() or not weights.sum() > 0:
            raise ValueError(
                f"donors: expected weights of 0 or more, and one above 0, got {weights.tolist()}"
            )
        if size < 64 or (length is not None and length < 1):
            raise ValueError(
                f"size must be at least 64 and length at least 1, got {size} and {length}"
            )
        self.source, self.size, self.seed = source, size, seed
        self.length = len(source) if length is None else length
        self.donors, self._odds = donors, weights / weights.sum()
        self._named: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"CutPaste({self.source!r}, size={self.size}, seed={self.seed})"

    def __getitem__(self, index: int) -> Record:
        """Record `index`; its longest side is `size`.

        Raises:
          IndexError: beyond the length.
          RecordError: the photograph cannot be used, or none of several that might give objects.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"index must be in 0..{self.length - 1}, got {index}")
        rng = np.random.default_rng([self.seed, int(index)])
        record = self.source[index % len(self.source)]
        scene = _resized(record, self.size)
        for _ in range(int(rng.integers(1, 3))):  # photographs that give objects
            donor = self._donor(rng)
            for _ in range(int(rng.integers(1, 3))):
                _paste_object(scene, donor, rng)
        return {
            "image": np.array(scene.image),
            "rles": _encoded(scene),
            "name": f"cutpaste:{self.seed}:{index}:{record['name']}",
        }

    def _donor(self, rng: np.random.Generator) -> Record:
        """A record that gives objects; one that cannot be read is named once and another drawn."""
        problem = ""
        for _ in range(_DONORS_TRIED):
            number = int(rng.choice(len(self.donors), p=self._odds))
            source = self.donors[number][0]
            index = int(rng.integers(len(source)))
            try:
                return source[index]
            except RecordError as error:
                problem = str(error)
            if (number, index) not in self._named:
                self._named.add((number, index))
                log.warning("no object from record %d of %r (%s)", index, source, problem)
        raise RecordError(f"{_DONORS_TRIED} donors in a row cannot be used; the last: {problem}")


def _resized(record: Record, size: int) -> _Scene:
    """The record with its longest side resized to `size`."""
    image = Image.fromarray(record["image"])
    ratio = size / max(image.size)
    width, height = (max(1, round(side * ratio)) for side in image.size)
    scene = _Scene(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0))
    for rle in record["rles"]:
        bounds = _bounds(rle, record)
        if bounds is None:
            continue
        x0, y0 = int(bounds[0] * width), int(bounds[1] * height)
        x1, y1 = ceil(bounds[2] * width - 1e-6), ceil(bounds[3] * height - 1e-6)
        box = (x0 / width, y0 / height, x1 / width, y1 / height)
        pixels = _cut(rle_ops.decode(rle), box, (x1 - x0, y1 - y0)) >= 128
        scene.layers.append(_Layer(x0, y0, pixels))
    return scene


def _paste_object(scene: _Scene, donor: Record, rng: np.random.Generator) -> None:
    """Pastes one object of the donor that is neither tiny nor most of its picture, if any."""
    rles = donor["rles"]
    bounds = [_bounds(rle, donor) for rle in rles]
    areas = np.array([rle_ops.area(rle) / (rle["size"][0] * rle["size"][1]) for rle in rles])
    usable = np.flatnonzero((areas >= 0.001) & (areas <= 0.6))
    if len(usable) == 0:
        return
    odds = np.sqrt(areas[usable])  # most masks are small, and small ones give poor objects
    chosen = int(rng.choice(usable, p=odds / odds.sum()))
    box, whole = bounds[chosen], rle_ops.decode(rles[chosen])
    masks = [whole]
    for k, rle in enumerate(rles):
        within = bounds[k] is not None and _overlap(bounds[k], box)
        if k != chosen and within and areas[k] <= areas[chosen]:
            mask = rle_ops.decode(rle)
            if np.count_nonzero(mask & whole) >= _INSIDE * np.count_nonzero(mask):
                masks.append(mask)
    image = Image.fromarray(donor["image"])
    cut = tuple(b * side for b, side in zip(box, image.size * 2, strict=True))
    wide, high = cut[2] - cut[0], cut[3] - cut[1]
    # The object's longer side becomes 8 to 60 % of the picture, and at most 1.5 times as large.
    longest = max(scene.image.size) * float(np.exp(rng.uniform(np.log(0.08), np.log(0.6))))
    ratio = min(longest / max(wide, high), 1.5)
    shape = (max(2, round(wide * ratio)), max(2, round(high * ratio)))
    patch = image.resize(shape, Image.Resampling.BILINEAR, box=cut, reducing_gap=3.0)
    layers = [_cut(mask, box, shape) for mask in masks]
    if rng.random() < 0.5:
        patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        layers = [np.ascontiguousarray(layer[:, ::-1]) for layer in layers]
    _blend_in(scene, _shifted(patch, rng), layers, rng)


def _blend_in(
    scene: _Scene, patch: Image.Image, layers: list[np.ndarray], rng: np.random.Generator
) -> None:
    """Puts the patch at a random place, feathered, at most a third of it outside.

    Args:
      scene: changed in place.
      patch: RGB.
      layers: coverage uint8 of the patch's size: the object, then its parts.
      rng: decides place and feather.
    """
    width, height = scene.image.size
    x = int(rng.uniform(-patch.width / 3, width - patch.width * 2 / 3))
    y = int(rng.uniform(-patch.height / 3, height - patch.height * 2 / 3))
    margin = 4
    alpha = Image.new("L", (patch.width + 2 * margin, patch.height + 2 * margin))
    alpha.paste(Image.fromarray(layers[0]), (margin, margin))
    feather = alpha.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    inside = (margin, margin, margin + patch.width, margin + patch.height)
    scene.image.paste(patch, (x, y), feather.crop(inside))
    top, left = max(0, y), max(0, x)
    bottom, right = min(height, y + patch.height), min(width, x + patch.width)
    visible = [layer[top - y : bottom - y, left - x : right - x] >= 128 for layer in layers]
    for layer in scene.layers:
        _hide(layer, _Layer(left, top, visible[0]))
    scene.layers += [_Layer(left, top, pixels & visible[0]) for pixels in visible]


def _hide(layer: _Layer, cover: _Layer) -> None:
    """Clears the pixels of `layer`, in place, that lie under `cover`."""
    x0, y0 = max(layer.x, cover.x), max(layer.y, cover.y)
    x1 = min(layer.x + layer.pixels.shape[1], cover.x + cover.pixels.shape[1])
    y1 = min(layer.y + layer.pixels.shape[0], cover.y + cover.pixels.shape[0])
    if x1 > x0 and y1 > y0:
        part = cover.pixels[y0 - cover.y : y1 - cover.y, x0 - cover.x : x1 - cover.x]
        layer.pixels[y0 - layer.y : y1 - layer.y, x0 - layer.x : x1 - layer.x] &= ~part


def _encoded(scene: _Scene) -> list[dict]:
    width, height = scene.image.size
    rles = []
    for layer in scene.layers:
        if np.count_nonzero(layer.pixels) >= MIN_PIXELS:
            mask = np.zeros((height, width), bool)
            h, w = layer.pixels.shape
            mask[layer.y : layer.y + h, layer.x : layer.x + w] = layer.pixels
            rles.append(rle_ops.encode(mask))
    return rles


def _shifted(patch: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gain of each colour +-15 % and an offset of +-20 grey levels."""
    gain, offset = rng.uniform(0.85, 1.15, 3), rng.uniform(-20, 20)
    matrix = np.column_stack([np.diag(gain), np.full(3, offset)])
    return patch.convert("RGB", tuple(matrix.reshape(-1).tolist()))


def _cut(mask: np.ndarray, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """Coverage uint8 [height, width] of the part `box` of a mask, resized to (width, height)."""
    height, width = mask.shape
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    left, top = max(0, int(x0) - 4), max(0, int(y0) - 4)  # the resizing filter looks around
    part = mask[top : ceil(y1) + 4, left : ceil(x1) + 4].astype(np.uint8) * 255
    image = Image.fromarray(np.ascontiguousarray(part))
    inner = (x0 - left, y0 - top, min(x1 - left, image.width), min(y1 - top, image.height))
    resized = image.resize(shape, Image.Resampling.BILINEAR, box=inner, reducing_gap=3.0)
    return np.array(resized)


def _bounds(rle: dict, record: Record) -> Box | None:
    """The mask's box, None when it is empty."""
    try:
        x, y, w, h = rle_ops.bbox_xywh(rle)
    except ValueError as error:
        raise RecordError(f"{record['name']}: {error}") from error
    height, width = rle["size"]
    return (x / width, y / height, (x + w) / width, (y + h) / height) if w else None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
