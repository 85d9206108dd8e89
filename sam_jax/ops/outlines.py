"""Outlines of masks along the edges of their pixels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

RIGHT, DOWN, LEFT, UP = range(4)
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])


def outlines(mask: np.ndarray) -> list[list[np.ndarray]]:
    """The connected parts of a mask (pixels that share a side) as outlines and holes.

    Edges between a set and an unset pixel are walked with the mask on the right hand; where two
    set pixels meet only at a corner the walk turns right, so that they stay apart.

    Args:
      mask: bool [H, W].

    Returns:
      For each part a list of rings float64 [P, 2] of (x, y): its outline, clockwise on the screen,
      then its holes, anticlockwise; corners only, the first not repeated.
    """
    mask = np.asarray(mask, bool)
    padded = np.pad(mask, 1)
    parts, count = ndimage.label(padded)
    rings: list[list[np.ndarray]] = [[] for _ in range(count)]
    height, width = padded.shape
    # For each direction the grid corners (y, x) that an edge in it starts from.
    starts = np.zeros((4, height + 1, width + 1), bool)
    above, left = ~padded[:-1] & padded[1:], ~padded[:, :-1] & padded[:, 1:]
    below, right = padded[:-1] & ~padded[1:], padded[:, :-1] & ~padded[:, 1:]
    starts[RIGHT, 1:-1, :-1] = above
    starts[LEFT, 1:-1, 1:] = below
    starts[UP, 1:, 1:-1] = left
    starts[DOWN, :-1, 1:-1] = right
    for y, x in zip(*np.nonzero(starts[RIGHT]), strict=True):
        if starts[RIGHT, y, x]:
            ring = _walk(starts, int(y), int(x))
            part = rings[parts[y, x] - 1]
            # The first edge met of a part, from the top, belongs to its outline.
            part.append(ring - 1.0)
    return rings


def _walk(starts: np.ndarray, y: int, x: int) -> np.ndarray:
    """Follows one ring from an edge to the right, taking its edges out; its corners [P, 2]."""
    corners, direction, begin = [], RIGHT, (y, x)
    while True:
        starts[direction, y, x] = False
        x, y = x + int(_STEPS[direction][0]), y + int(_STEPS[direction][1])
        for turn in (1, 0, 3):  # right, straight on, left
            following = (direction + turn) % 4
            if starts[following, y, x]:
                break
        else:  # the edge that it began with
            if direction != RIGHT:
                corners.append((x, y))
            assert (y, x) == begin
            return np.array(corners, np.float64)
        if following != direction:
            corners.append((x, y))
        direction = following


def simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A ring [P, 2] with fewer corners, none of those left out farther than `tolerance` from it.

    The method of Douglas and Peucker, from the corner that is farthest from the first.
    """
    if tolerance <= 0 or len(ring) < 4:
        return ring
    far = int(np.linalg.norm(ring - ring[0], axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), bool)
    kept[[0, far, -1]] = True
    todo = [(0, far), (far, len(closed) - 1)]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        between, a, b = closed[first + 1 : last], closed[first], closed[last]
        along = b - a
        length = np.hypot(*along)
        offset = between - a
        if length == 0:
            distance = np.hypot(*offset.T)
        else:
            t = np.clip(offset @ along / length**2, 0, 1)
            distance = np.hypot(*(offset - t[:, None] * along).T)
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            kept[middle] = True
            todo += [(first, middle), (middle, last)]
    return closed[:-1][kept[:-1]]
