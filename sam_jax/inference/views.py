"""Photos and their crops through the model: encoded together, decoded by a grid of points."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from sam_jax.inference.compiled import CompiledModel, bucket
from sam_jax.inference.predictor import frames
from sam_jax.ops.boxes import crop_boxes
from sam_jax.ops.masks import Axis, axes
from sam_jax.ops.transforms import resized_hw, scale_points

TOGETHER = 4
"""Views that an accelerator encodes in one call; a CPU takes one."""
GATHERED = (16, 64, 256, 1024)
"""Numbers of masks that are brought to the host in one call."""


@dataclasses.dataclass(frozen=True)
class View:
    """What the encoder sees of a photo: the whole or a crop, and how its masks are enlarged.

    Attributes:
      photo: number of the photo.
      crop_box: x0, y0, x1, y1 with exclusive ends, pixels of the photo.
      image_hw: height and width of the photo.
      axes: from the decoder's logits to the crop's pixels.
    """

    photo: int
    crop_box: tuple[int, int, int, int]
    image_hw: tuple[int, int]
    axes: tuple[Axis, Axis]

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the crop."""
        x0, y0, x1, y1 = self.crop_box
        return y1 - y0, x1 - x0


class Decoded:
    """What the decoder made of N points of a view.

    Attributes:
      scores: numpy float32 [N, K], predicted IoU.
    """

    def __init__(self, logits: jax.Array, scores: jax.Array) -> None:
        self.scores = np.asarray(scores)[0]
        self._logits = logits

    def logits(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """float32 [h, w] of each of some masks; only these leave the device.

        Args:
          rows: int [M, 2], point and mask.
        """
        if next(iter(self._logits.devices())).platform == "cpu":
            host = np.asarray(self._logits)[0]
            yield from (host[i, k] for i, k in rows)
            return
        for start in range(0, len(rows), GATHERED[-1]):
            part = rows[start : start + GATHERED[-1]]
            index = np.zeros((bucket(len(part), GATHERED), 2), np.int32)
            index[: len(part)] = part
            yield from np.asarray(_gather(self._logits, index))[: len(part)]


@jax.jit
def _gather(logits: jax.Array, rows: jax.Array) -> jax.Array:
    return logits[0, rows[:, 0], rows[:, 1]]


def views_of(
    photo: int, image_hw: tuple[int, int], layer: int, overlap_ratio: float, model: CompiledModel
) -> list[View]:
    """The crops of one layer of a photo; layer 0 is the photo itself.

    Args:
      photo: its number.
      image_hw: its height and width.
      layer: of crops.
      overlap_ratio: see `crop_boxes`.
      model: whose frame they are made for.
    """
    side, patch = model.image_size, model.config.patch_size
    low_hw = (4 * (side // patch),) * 2
    views = []
    for box, of_layer in zip(*crop_boxes(image_hw, layer, overlap_ratio), strict=True):
        hw = (box[3] - box[1], box[2] - box[0])
        if of_layer == layer and min(hw) > 0:  # a photo of a few pixels has crops without any
            views.append(View(photo, box, image_hw, axes(low_hw, resized_hw(hw, side), hw, side)))
    return views


def encode_views(
    model: CompiledModel, photos: Sequence[np.ndarray], views: Sequence[View]
) -> jax.Array:
    """Embeddings float32 [V, h, w, D] of views, and of the last one again up to a full batch."""
    batch = together(model, len(views))
    padded = [*views, *[views[-1]] * (-len(views) % batch)]
    features = []
    for start in range(0, len(padded), batch):
        crops = []
        for view in padded[start : start + batch]:
            x0, y0, x1, y1 = view.crop_box
            crops.append(photos[view.photo][y0:y1, x0:x1])
        features.append(model.encode(*frames(crops, model.image_size)))
    return features[0] if len(features) == 1 else jax.numpy.concatenate(features)


def together(model: CompiledModel, views: int) -> int:
    """How many of so many views are encoded in one call."""
    return model.devices * (1 if model.on_cpu or views < TOGETHER else TOGETHER)


def decode_views(
    model: CompiledModel,
    features: jax.Array,
    views: Sequence[View],
    points_xy: np.ndarray,
    points_per_batch: int,
    least: float = -np.inf,
) -> Iterator[tuple[int, slice, Decoded]]:
    """The masks of points of views; the next call is on its way while the reader works.

    Args:
      model: of the views.
      features: of `encode_views`.
      views: V of them.
      points_xy: float64 [V, N, 2], pixels of each crop.
      points_per_batch: points that are decoded at a time, at most.
      least: predicted IoU; masks that are not above it may come without their logits.

    Yields:
      The number of a view, a slice of its points, and what became of these.
    """
    scaled = [
        scale_points(own, view.hw, model.image_size)
        for own, view in zip(points_xy, views, strict=True)
    ]
    sizes, count = model.point_counts, points_xy.shape[1]
    waiting: collections.deque = collections.deque()
    for first in range(0, len(views), model.devices):
        chosen = range(first, min(first + model.devices, len(views)))
        rows = np.array([*chosen, *[chosen[-1]] * (model.devices - len(chosen))])
        own = features if len(features) == len(rows) else features[rows]
        for start in range(0, count, sizes[-1]):
            part = slice(start, min(start + sizes[-1], count))
            size = part.stop - part.start
            batch = np.zeros((len(rows), bucket(size, sizes), 2), np.float32)
            batch[:, :size] = np.stack([scaled[i][part] for i in rows])
            decoded = model.decode_points(own, batch, points_per_batch, least)
            waiting.append((chosen, part, *decoded))
            if len(waiting) > 1:
                yield from _by_view(*waiting.popleft())
    while waiting:
        yield from _by_view(*waiting.popleft())


def _by_view(chosen: range, part: slice, logits: jax.Array, scores: jax.Array) -> Iterator[tuple]:
    """One call's results a view at a time, each where its device has it."""
    shards = [
        [piece.data for piece in sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)]
        for x in (logits, scores)
    ]
    for i, *own in zip(chosen, *shards, strict=False):
        yield i, part, Decoded(*own)
