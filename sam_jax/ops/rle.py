"""COCO run-length encoding of masks, in numpy.

A mask is read column by column; `counts` are the lengths of its runs, the first of them a run of
zeros (so a mask whose first pixel is set starts with 0). In files the counts are usually one
string: each count from the fourth on is written as its difference from the count two places
before, in groups of 5 bits, low bits first, bit 5 saying that another group follows, plus 48 to
be printable. Source: the COCO API's `maskApi.c`, whose strings these functions reproduce byte for
byte. Everything is vectorised over the runs: a string is read in tens of microseconds.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

LAZY_FROM = 1 << 20
"""Pixels from which on a decoded mask takes memory only where it is written."""
_MAX_GROUPS = 12  # 12 * 5 bits hold any difference that fits in an int64 image size


def encode(mask: np.ndarray) -> dict[str, Any]:
    """One mask as a COCO RLE that `json.dumps` accepts.

    Args:
      mask: bool [H, W]; other dtypes count as set where they are not zero.

    Returns:
      {"size": [H, W], "counts": str}.

    Raises:
      ValueError: `mask` is not two-dimensional or has no pixels.
    """
    rle = uncompressed(mask)
    return {"size": rle["size"], "counts": compress_counts(np.asarray(rle["counts"]))}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """One mask as {"size": [H, W], "counts": list of int}; arguments and errors as `encode`."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(
            f"mask must be bool [H, W] with at least one pixel, got shape {mask.shape}; "
            "encode a stack of masks one at a time"
        )
    flat = np.ascontiguousarray(mask.T if mask.dtype == bool else mask.T != 0).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return {"size": list(mask.shape), "counts": _counts_from_changes(changes, flat).tolist()}


def uncompressed_part(
    part: np.ndarray, top_left: tuple[int, int], image_hw: tuple[int, int]
) -> dict[str, Any]:
    """The RLE of a mask of which only a part can be set, without making the whole mask.

    Args:
      part: bool [h, w].
      top_left: row and column of the part in the mask.
      image_hw: height and width of the mask; the part lies within.

    Returns:
      {"size", "counts": list of int}, as `uncompressed` of the whole mask.
    """
    (h, w), (top, left), (height, width) = part.shape, top_left, image_hw
    flat = np.zeros((w, h + 1), bool)  # a row of zeros below ends every run with its column
    flat[:, :h] = part.T
    changes = np.flatnonzero(np.diff(flat.reshape(-1), prepend=False))
    # Position k of this is row k % (h + 1) of column k // (h + 1).
    whole = (changes // (h + 1) + left) * height + changes % (h + 1) + top
    if h == height:  # runs that reach the bottom go on in the next column
        goes_on = np.flatnonzero(whole[1:-1:2] == whole[2::2])
        whole = np.delete(whole, np.concatenate([2 * goes_on + 1, 2 * goes_on + 2]))
    counts = np.diff(np.concatenate([[0], whole, [height * width]]))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return {"size": [height, width], "counts": counts.tolist()}


def encode_part(
    part: np.ndarray, top_left: tuple[int, int], image_hw: tuple[int, int]
) -> dict[str, Any]:
    """`uncompressed_part` with its counts as a string."""
    rle = uncompressed_part(part, top_left, image_hw)
    return {"size": rle["size"], "counts": compress_counts(np.asarray(rle["counts"]))}


def decode(rle: dict[str, Any]) -> np.ndarray:
    """The mask of a COCO RLE.

    Args:
      rle: {"size": [H, W], "counts": ...} with counts as str, bytes or a list of int.

    Returns:
      bool [H, W], column-major.

    Raises:
      ValueError: `rle` is no RLE, or its counts do not fill its size.
    """
    counts = read_counts(rle)
    height, width = rle["size"]
    flat = _zeros(height * width)
    if len(counts) > 1:  # what lies before the first and after the last set pixel is not touched
        inner = counts[1 : len(counts) - len(counts) % 2]
        values = np.arange(len(inner)) % 2 == 0
        flat[counts[0] : counts[0] + int(inner.sum())] = np.repeat(values, inner)
    return flat.reshape(width, height).T


def _zeros(count: int) -> np.ndarray:
    """bool zeros that take memory only where they are written, whatever allocator is in use.

    So the masks of a large photo take as much as their columns, not as much as the photo.
    """
    if count < LAZY_FROM:
        return np.zeros(count, bool)
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    memory = mmap.mmap(-1, count, private) if private else mmap.mmap(-1, count)
    return np.frombuffer(memory, bool)


def decode_part(rle: dict[str, Any], top_left: tuple[int, int], hw: tuple[int, int]) -> np.ndarray:
    """bool [h, w]: the part of a mask whose first pixel is at row, column `top_left`.

    Costs as much as the columns of the part; errors as `decode`.
    """
    counts, height = read_counts(rle), int(rle["size"][0])
    start, stop = top_left[1] * height, (top_left[1] + hw[1]) * height
    ends = np.cumsum(counts)
    first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
    bounds = np.clip(ends[first : last + 1], start, stop)
    values = np.arange(first, last + 1) % 2 == 1
    flat = np.repeat(values, np.diff(np.concatenate([[start], bounds])))
    return flat.reshape(hw[1], height)[:, top_left[0] : top_left[0] + hw[0]].T


def area(rle: dict[str, Any]) -> int:
    """Number of set pixels of a COCO RLE, without decoding it; errors as `decode`."""
    return int(read_counts(rle)[1::2].sum())


def bbox_xywh(rle: dict[str, Any]) -> list[int]:
    """Tight box [x, y, width, height] in pixels, as COCO's `bbox`; [0, 0, 0, 0] when empty."""
    counts = read_counts(rle)
    box = bounds_xyxy(counts, int(rle["size"][0]))
    if box is None:
        return [0, 0, 0, 0]
    return [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1]


def bounds_xyxy(counts: np.ndarray, height: int) -> tuple[int, int, int, int] | None:
    """First and last set pixel in x and y of checked counts (inclusive), None when empty.

    Args:
      counts: int64 [R] as `read_counts` gives them.
      height: H of the mask.
    """
    ends = np.cumsum(counts)[1::2]
    lengths = counts[1::2]
    filled = lengths > 0
    if not filled.any():
        return None
    first, last = (ends - lengths)[filled], ends[filled] - 1
    x_first, x_last = first // height, last // height
    if (x_first != x_last).any():  # a run that wraps touches the bottom row and the top row
        y0, y1 = 0, height - 1
    else:
        y0, y1 = int((first % height).min()), int((last % height).max())
    return int(x_first.min()), y0, int(x_last.max()), y1


def read_counts(rle: dict[str, Any]) -> np.ndarray:
    """The run lengths of a COCO RLE, checked against its size.

    Args:
      rle: as for `decode`.

    Returns:
      int64 [R], zeros-run first, all >= 0, summing to H * W.

    Raises:
      ValueError: as for `decode`.
    """
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise ValueError(
            f"rle must be a dict with 'size' and 'counts', got {_brief(rle)}; "
            "polygons have to be rasterised first"
        )
    height, width = _checked_size(rle["size"])
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        counts = decompress_counts(counts)
    else:
        counts = _checked_list(counts)
    if len(counts) and counts.min() < 0:
        raise ValueError(
            f"rle counts must not be negative, got {int(counts.min())}; the string is damaged"
        )
    total = int(counts.sum())
    if total != height * width:
        raise ValueError(
            f"rle counts must sum to height * width = {height} * {width} = {height * width}, "
            f"got {total}; size and counts belong to different masks, or the counts are damaged"
        )
    return counts


def compress_counts(counts: np.ndarray) -> str:
    """Run lengths int [R] as COCO's compressed string."""
    counts = np.asarray(counts, dtype=np.int64)
    deltas = counts.copy()
    deltas[3:] -= counts[1:-2]
    # Group g is written when the groups before it do not hold the number as a signed value.
    shifts = 5 * np.arange(_MAX_GROUPS)
    groups = deltas[:, None] >> shifts
    low = groups & 0x1F
    rest = groups >> 5
    more = np.where(low & 0x10, rest != -1, rest != 0)
    written = np.ones_like(more)
    written[:, 1:] = np.logical_and.accumulate(more[:, :-1], axis=1)
    characters = (low | np.where(more, 0x20, 0)) + 48
    return characters[written].astype(np.uint8).tobytes().decode("ascii")


def decompress_counts(text: str | bytes) -> np.ndarray:
    """COCO's compressed string as run lengths int64 [R]; the sum is not checked here.

    Raises:
      ValueError: a character outside the code, or a string that ends inside a number.
    """
    data = text.encode("latin-1", "replace") if isinstance(text, str) else text
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return codes
    if codes.min() < 0 or codes.max() > 0x3F:
        bad = int(np.flatnonzero((codes < 0) | (codes > 0x3F))[0])
        raise ValueError(
            f"rle counts hold a character outside COCO's code at position {bad}: {_brief(text)}"
        )
    last = (codes & 0x20) == 0
    if not last[-1]:
        raise ValueError(f"rle counts end inside a number; the string is cut short: {_brief(text)}")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _MAX_GROUPS:
        raise ValueError(f"rle counts hold a number of more than 60 bits: {_brief(text)}")
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[ends] & 0x10) != 0
    values = np.where(negative, values - (np.int64(1) << (5 * (ends - starts + 1))), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def encode_groups(labels: np.ndarray, groups: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """COCO RLEs of unions of labels, much faster than encoding each union as a mask.

    Args:
      labels: int [H, W], values in 0..L-1.
      groups: for each mask the labels it is made of.

    Returns:
      One {"size": [H, W], "counts": str} for each group.

    Raises:
      ValueError: `labels` is not a non-empty two-dimensional array of integers.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers [H, W], got {labels.dtype} with shape {labels.shape}"
        )
    size = list(labels.shape)
    flat = np.ascontiguousarray(labels.T).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    run_labels = flat[starts]
    table = np.zeros(int(flat.max()) + 1, dtype=bool)
    rles = []
    for group in groups:
        table[:] = False
        table[[label for label in group if label < len(table)]] = True
        inside = table[run_labels]
        changes = starts[1:][inside[1:] != inside[:-1]]
        bounds = np.concatenate([[0], changes, [flat.size]])
        counts = np.diff(bounds)
        if inside[0]:
            counts = np.concatenate([[0], counts])
        rles.append({"size": size, "counts": compress_counts(counts)})
    return rles


def _counts_from_changes(changes: np.ndarray, flat: np.ndarray) -> np.ndarray:
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return np.concatenate([[0], counts]) if flat[0] else counts


def _checked_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError):
        raise ValueError(f"rle size must be [height, width], got {_brief(size)}") from None
    if height <= 0 or width <= 0:
        raise ValueError(f"rle size must be positive [height, width], got [{height}, {width}]")
    return height, width


def _checked_list(counts: Any) -> np.ndarray:
    try:
        array = np.asarray(counts)
        whole = array.ndim == 1 and (array.dtype.kind in "iu" or array.size == 0)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"rle counts must be a string or a list of integers, got {_brief(counts)}")
    return array.astype(np.int64)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
