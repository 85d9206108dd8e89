"""One record -> one training sample.

A sample lives in the model frame: a square of S pixels whose top left holds the resized (and, for
scales above 1, cropped) photograph and whose rest is zero. All geometry is done by Pillow on 8-bit
images: it is fast and releases the interpreter lock, so that threads are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from sam_jax.data.colours import blurred, jittered
from sam_jax.data.sources import Record, RecordError
from sam_jax.ops import rle as rle_ops

Sample = dict[str, np.ndarray]

_IS_SET = [0] * 128 + [255] * 128  # a resized mask counts from half coverage on
_WINDOWS = 3  # windows tried on one record before giving it up


@dataclass(frozen=True)
class PipelineConfig:
    """How samples are made.

    Attributes:
      image_size: S, side of the model frame in pixels.
      mask_size: M, side of the coverage maps; divides S.
      max_masks: N, masks drawn from one record.
      scale_range: the photo's longest side becomes S times a number from this range (large-scale
        jitter; SAM used [0.1, 2] for its first two stages and none on SA-1B, paper appendix A).
      stretch: width and height are scaled apart, each by up to exp(this) either way.
      flip: mirror left and right half of the time.
      vertical_flip: mirror top and bottom half of the time.
      colour_jitter: brightness, contrast and saturation are scaled by 1 +- this.
      grey_probability: share of samples turned grey.
      invert_probability: share of samples turned into their negative (cells are photographed
        dark on light and light on dark).
      blur_probability: share of samples blurred, by a Gaussian of 0.4 to 1.6 pixels.
      max_mask_fraction: masks above this share of the picture are dropped (paper, appendix A).
      min_mask_pixels: masks below this many pixels of the model frame are dropped.
      area_power: masks are drawn with odds of area ** this: 0 draws them alike, as the paper
        does; 0.5 keeps pictures of many tiny masks from giving nothing else.
      repeat: a record with fewer than `max_masks` usable masks gives them again, in turn, until
        there are as many: every record counts alike then, and no row is computed for nothing.
      batch_size: samples in one batch, over all processes.
    """

    image_size: int = 512
    mask_size: int = 128
    max_masks: int = 8
    scale_range: tuple[float, float] = (0.6, 1.6)
    stretch: float = 0.0
    flip: bool = True
    vertical_flip: bool = False
    colour_jitter: float = 0.3
    grey_probability: float = 0.05
    invert_probability: float = 0.05
    blur_probability: float = 0.0
    max_mask_fraction: float = 0.9
    min_mask_pixels: int = 16
    area_power: float = 0.0
    repeat: bool = False
    batch_size: int = 8

    def __post_init__(self):
        if self.mask_size <= 0 or self.image_size % self.mask_size:
            raise ValueError(
                "mask_size must divide image_size, got "
                f"mask_size={self.mask_size}, image_size={self.image_size}"
            )
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range must be 0 < low <= high, got {self.scale_range}")
        if self.max_masks < 1 or self.batch_size < 1:
            raise ValueError(
                "max_masks and batch_size must be at least 1, got "
                f"{self.max_masks} and {self.batch_size}"
            )
        if not 0 <= self.colour_jitter < 1:
            raise ValueError(f"colour_jitter must be in [0, 1), got {self.colour_jitter}")
        if not 0 <= self.stretch <= 1:
            raise ValueError(f"stretch must be in [0, 1], got {self.stretch}")


@dataclass(frozen=True)
class _Mask:
    """One mask of a record, still run-length encoded: its place in the record, size, counts and
    relative bounds."""

    number: int
    hw: tuple[int, int]
    counts: np.ndarray
    area: int
    bounds: tuple[float, float, float, float]  # x0, y0, x1, y1 in 0..1 of the picture


@dataclass(frozen=True)
class _View:
    """A window of the picture (0..1) and the pixels [height, width] it is resized to."""

    box: tuple[float, float, float, float]
    hw: tuple[int, int]
    pixels: float  # pixels of the model frame under the whole picture
    mirror_x: bool
    mirror_y: bool


def make_sample(record: Record, rng: np.random.Generator, config: PipelineConfig) -> Sample | None:
    """One training sample from one record.

    Args:
      record: image uint8 [H, W, 3]; rles, COCO RLEs whose sizes have the picture's shape (they
        may be larger or smaller than the decoded picture); name.
      rng: decides window, masks, mirror and colours; nothing else is random.
      config: see `PipelineConfig`.

    Returns:
      image uint8 [S, S, 3]: zero outside the content, which sits at the top left. A record with
        an "embedding" gives that instead: it is of the whole picture, unchanged (`whole_frame`).
      image_hw int32 [2]: height and width of the content in pixels.
      masks uint8 [N, M, M]: 255 * share of each cell's pixels of the model frame under the mask.
      boxes_xyxy float32 [N, 4]: first and last column and row of the mask at S resolution, pixels.
      mask_valid bool [N]: False for rows that hold no mask (all zero).
      text float32 [N, T], for a record with "texts" [masks, V, T]: one of the V of each mask.
      look float32 [N, T], for a record with "looks" [masks, T]: of each mask.
      Or None when no window with a usable mask was found.

    Raises:
      RecordError: a mask of the record is damaged.
    """
    image = record["image"]
    candidates = _read_masks(record, config)
    if not candidates:
        return None
    for attempt in range(_WINDOWS):
        scale = rng.uniform(*config.scale_range)
        if attempt == _WINDOWS - 1:
            scale = min(1.0, config.scale_range[1])  # the whole picture: nothing is cut off
        centre = candidates[rng.integers(len(candidates))]
        stretch = 0.0 if attempt == _WINDOWS - 1 else config.stretch
        view = _draw_view(image.shape[:2], centre, scale, stretch, rng, config)
        drawn = _draw_masks(candidates, view, rng, config)
        if drawn:
            break
    else:
        return None
    if config.repeat:
        drawn = [drawn[row % len(drawn)] for row in range(config.max_masks)]
    masks = np.zeros((config.max_masks, config.mask_size, config.mask_size), np.uint8)
    boxes = np.zeros((config.max_masks, 4), np.float32)
    for row, (_, coverage, box) in enumerate(drawn):
        masks[row], boxes[row] = coverage, box
    if "embedding" in record:
        seen = {"embedding": record["embedding"]}
    else:
        seen = {"image": _draw_image(image, view, rng, config)}
    if "texts" in record:
        texts = [record["texts"][number] for number, _, _ in drawn]
        seen["text"] = _draw_texts(texts, rng, config)
    if "looks" in record:
        looks = [record["looks"][number] for number, _, _ in drawn]
        seen["look"] = np.zeros((config.max_masks, looks[0].shape[-1]), np.float32)
        seen["look"][: len(looks)] = looks
    return seen | {
        "image_hw": np.array(view.hw, np.int32),
        "masks": masks,
        "boxes_xyxy": boxes,
        "mask_valid": np.arange(config.max_masks) < len(drawn),
    }


def whole_frame(image: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What `make_sample` makes of a picture at a scale of 1, without mirror and changed colours.

    Args:
      image: uint8 [H, W, 3].
      image_size: S.

    Returns:
      uint8 [S, S, 3] with the picture at the top left, and int32 [2], its height and width there.
    """
    config = PipelineConfig(
        image_size=image_size,
        mask_size=image_size,
        colour_jitter=0.0,
        grey_probability=0.0,
        invert_probability=0.0,
    )
    h, w = (max(1, round(side * image_size / max(image.shape[:2]))) for side in image.shape[:2])
    view = _View((0.0, 0.0, 1.0, 1.0), (h, w), h * w, False, False)
    return _draw_image(image, view, np.random.default_rng(0), config), np.array([h, w], np.int32)


def _read_masks(record: Record, config: PipelineConfig) -> list[_Mask]:
    """The record's masks that are neither empty nor nearly the whole picture."""
    masks = []
    for number, rle in enumerate(record["rles"]):
        try:
            counts = rle_ops.read_counts(rle)
        except ValueError as error:
            raise RecordError(f"{record.get('name', '?')}: mask {number}: {error}") from error
        height, width = (int(side) for side in rle["size"])
        area = int(counts[1::2].sum())
        if 0 < area <= config.max_mask_fraction * height * width:
            x0, y0, x1, y1 = rle_ops.bounds_xyxy(counts, height)
            bounds = (x0 / width, y0 / height, (x1 + 1) / width, (y1 + 1) / height)
            masks.append(_Mask(number, (height, width), counts, area, bounds))
    return masks


def _draw_view(
    image_hw: tuple[int, int],
    centre: _Mask,
    scale: float,
    stretch: float,
    rng: np.random.Generator,
    config: PipelineConfig,
) -> _View:
    """The window: all of the picture, or a part of it that holds the middle of `centre`'s box."""
    size = config.image_size
    ratios = np.full(2, size * scale / max(image_hw))
    if stretch:
        ratios *= np.exp(rng.uniform(-stretch, stretch, 2))
    full = [max(1, round(side * ratio)) for side, ratio in zip(image_hw, ratios, strict=True)]
    window = [min(size, side) for side in full]
    starts = []
    for axis in (0, 1):  # y, x
        middle = (centre.bounds[1 - axis] + centre.bounds[3 - axis]) / 2 * full[axis]
        start = middle - window[axis] * rng.uniform(0.15, 0.85)
        starts.append(int(np.clip(round(start), 0, full[axis] - window[axis])))
    (y, x), (h, w) = starts, window
    return _View(
        box=(x / full[1], y / full[0], (x + w) / full[1], (y + h) / full[0]),
        hw=(h, w),
        pixels=full[0] * full[1],
        mirror_x=config.flip and rng.random() < 0.5,
        mirror_y=config.vertical_flip and rng.random() < 0.5,
    )


def _draw_masks(
    candidates: list[_Mask], view: _View, rng: np.random.Generator, config: PipelineConfig
) -> list[tuple[int, np.ndarray, tuple[float, ...]]]:
    """Up to N masks in random order as (number, coverage [M, M], box); only these are decoded."""
    most = config.max_mask_fraction * view.hw[0] * view.hw[1]
    drawn = []
    # Sorting log-odds plus Gumbel noise draws without replacement by those odds.
    odds = config.area_power * np.log([mask.area for mask in candidates])
    for number in np.argsort(-odds - rng.gumbel(size=len(candidates))):
        mask = candidates[number]
        share = mask.area / (mask.hw[0] * mask.hw[1])
        left, top, right, bottom = mask.bounds
        x0, y0, x1, y1 = view.box
        if (
            share * view.pixels < 0.5 * config.min_mask_pixels  # cannot reach the minimum
            or min(right, x1) <= max(left, x0)
            or min(bottom, y1) <= max(top, y0)
        ):
            continue
        part, x, y = _frame_mask(mask, view)
        hard = part.point(_IS_SET)
        pixels = hard.histogram()[255]
        if not max(1, config.min_mask_pixels) <= pixels <= most:
            continue
        left, top, right, bottom = hard.getbbox()
        box = (x + left, y + top, x + right - 1, y + bottom - 1)
        drawn.append((mask.number, _coverage(part, x, y, config), box))
        if len(drawn) == config.max_masks:
            break
    return drawn


def _draw_texts(
    texts: list[np.ndarray], rng: np.random.Generator, config: PipelineConfig
) -> np.ndarray:
    """float32 [N, T]: of each mask's embeddings [V, T] one, zeros where there is no mask."""
    drawn = np.zeros((config.max_masks, texts[0].shape[-1]), np.float32)
    for row, variants in enumerate(texts):
        drawn[row] = variants[rng.integers(len(variants))]
    return drawn


def _frame_mask(mask: _Mask, view: _View) -> tuple[Image.Image, int, int]:
    """The mask in the model frame, 0..255: only the part around it, and that part's x and y.

    Most masks are small: working on the whole frame would cost several times as much.
    """
    left, top, right, bottom = mask.bounds
    rows = _span(mask.hw[0], view.box[1], view.box[3], view.hw[0], top, bottom)
    columns = _span(mask.hw[1], view.box[0], view.box[2], view.hw[1], left, right)
    turned = Image.fromarray(_decode_part(mask, rows.taken, columns.taken))
    box = (rows.box[0], columns.box[0], rows.box[1], columns.box[1])  # transposed
    size = (rows.drawn[1] - rows.drawn[0], columns.drawn[1] - columns.drawn[0])
    part = turned.resize(size, Image.Resampling.BILINEAR, box=_inside(box, turned))
    part = part.transpose(Image.Transpose.TRANSPOSE)
    x = view.hw[1] - columns.drawn[1] if view.mirror_x else columns.drawn[0]
    y = view.hw[0] - rows.drawn[1] if view.mirror_y else rows.drawn[0]
    return _mirrored(part, view), x, y


class _Span(NamedTuple):
    """One axis of the part around a mask.

    drawn: first pixel of the frame, and the one after the last. taken: likewise the pixels of the
    mask that they are made from. box: where in `taken` the drawn pixels begin and end.
    """

    drawn: tuple[int, int]
    taken: tuple[int, int]
    box: tuple[float, float]


def _span(length: int, start: float, end: float, pixels: int, low: float, high: float) -> _Span:
    """The span of a mask from `low` to `high` where `start` to `end` becomes `pixels` pixels.

    All but `length`, the mask's pixels, and `pixels` are in 0..1 of the picture.
    """
    scale = pixels / ((end - start) * length)  # pixels of the frame for one of the mask
    reach = math.ceil(max(1.0, scale)) + 1  # of the bilinear filter, in pixels of the frame
    first = max(0, math.floor((low - start) * length * scale) - reach)
    last = min(pixels, math.ceil((high - start) * length * scale) + reach)
    begin, stop = (start * length + at / scale for at in (first, last))
    more = math.ceil(max(1.0, 1 / scale)) + 1  # likewise in pixels of the mask
    taken = (max(0, math.floor(begin) - more), min(length, math.ceil(stop) + more))
    return _Span((first, last), taken, (begin - taken[0], stop - taken[0]))


def _decode_part(mask: _Mask, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """uint8 [columns, rows] of the mask, 0 or 255: transposed, as the runs are."""
    height = mask.hw[0]
    ends = np.cumsum(mask.counts)
    inside = np.clip(ends, columns[0] * height, columns[1] * height)
    values = np.zeros(len(mask.counts), np.uint8)
    values[1::2] = 255
    flat = np.repeat(values, np.diff(inside, prepend=columns[0] * height))
    return np.ascontiguousarray(flat.reshape(-1, height)[:, rows[0] : rows[1]])


def _coverage(part: Image.Image, x: int, y: int, config: PipelineConfig) -> np.ndarray:
    """uint8 [M, M]: the mean of each cell of the frame, with `part` at (x, y) and 0 around it."""
    step = config.image_size // config.mask_size
    left, top = x // step, y // step
    right, bottom = -(-(x + part.width) // step), -(-(y + part.height) // step)
    aligned = Image.new("L", ((right - left) * step, (bottom - top) * step))
    aligned.paste(part, (x - left * step, y - top * step))
    coverage = np.zeros((config.mask_size, config.mask_size), np.uint8)
    coverage[top:bottom, left:right] = np.asarray(aligned.reduce(step))
    return coverage


def _draw_image(
    image: np.ndarray, view: _View, rng: np.random.Generator, config: PipelineConfig
) -> np.ndarray:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = view.box
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    part = _resize(Image.fromarray(image), box, (view.hw[1], view.hw[0]))
    part = blurred(jittered(_mirrored(part, view), rng, config), rng, config)
    framed = np.zeros((config.image_size, config.image_size, 3), np.uint8)
    framed[: view.hw[0], : view.hw[1]] = np.asarray(part)
    return framed


def _resize(image: Image.Image, box: tuple, size: tuple[int, int]) -> Image.Image:
    """Bilinear with antialiasing, as the released code resizes; gaps of 3 are reduced first."""
    box = _inside(box, image)
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _inside(box: tuple, image: Image.Image) -> tuple[float, float, float, float]:
    """The box without what rounding has put outside the image, which Pillow refuses."""
    return (max(0.0, box[0]), max(0.0, box[1]), min(image.width, box[2]), min(image.height, box[3]))


def _mirrored(image: Image.Image, view: _View) -> Image.Image:
    if view.mirror_x:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.mirror_y:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image
