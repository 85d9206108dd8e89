"""The boundary benchmark of BSDS500: thinning, one-to-one matching, ODS, OIS, AP and R50.

What is counted is what the official benchmark counts (PROTOCOLS section 11b). That matches by an
assignment of minimum cost in which random edges stand in for "no partner"; here as many pixels as
possible are matched, those that are near a partner before others. Both match the same number of
pixels but for chance; see the README for how close the results come.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_flow

THRESHOLDS = np.linspace(0.01, 0.99, 99)
MAX_DISTANCE = 0.0075
"""How far partners may lie apart, in diagonals of the image."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is counted of one image, or added up over images; one number for each threshold.

    Attributes:
      true_found: pixels of the annotators' boundaries that have a partner.
      true_all: all of their pixels, every annotator's own.
      found_true: pixels of the map that have a partner in any annotator's boundaries.
      found_all: all pixels of the map.
    """

    true_found: np.ndarray
    true_all: np.ndarray
    found_true: np.ndarray
    found_all: np.ndarray

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The four fields, in their order."""
        return self.true_found, self.true_all, self.found_true, self.found_all

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self.arrays(), other.arrays(), strict=True)))

    def at(self, index: int) -> Counts:
        """The counts at one threshold."""
        return Counts(*(value[index] for value in self.arrays()))

    @property
    def recall(self) -> np.ndarray:
        """In 0..1; 0 where nothing is to be found."""
        return self.true_found / np.maximum(self.true_all, 1)

    @property
    def precision(self) -> np.ndarray:
        """In 0..1; 0 where nothing is found."""
        return self.found_true / np.maximum(self.found_all, 1)


def f_measure(recall, precision) -> np.ndarray:
    """The harmonic mean; 0 where both are 0."""
    total = recall + precision
    return 2 * recall * precision / np.where(total == 0, 1, total)


@functools.cache
def _thinning_tables() -> tuple[np.ndarray, np.ndarray]:
    """bool [256] twice: whether a pixel goes, by its neighbours' bits, in each half of a pass.

    Conditions G1, G2 and G3 of Guo and Hall's thinning as MATLAB's bwmorph documents them; bit i is
    neighbour x_(i+1), from the right one on anticlockwise.
    """
    x = (np.arange(256)[:, None] >> np.arange(8)) & 1
    x = np.concatenate([x, x[:, :1]], 1).astype(bool)  # x[8] is x1 again
    odd, even, following = x[:, 0:8:2], x[:, 1:8:2], x[:, 2:9:2]
    crossings = (~odd & (even | following)).sum(1)
    pairs = np.minimum((odd | even).sum(1), (even | following).sum(1))
    common = (crossings == 1) & (pairs >= 2) & (pairs <= 3)
    first = (x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0]
    second = (x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4]
    return common & ~first, common & ~second


def thin(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: a mask's lines made one pixel wide, as MATLAB's bwmorph(mask, 'thin', inf)."""
    out = np.pad(np.ascontiguousarray(mask, bool), 1)
    width = out.shape[1]
    flat = out.reshape(-1)
    offsets = np.array([1, 1 - width, -width, -1 - width, -1, width - 1, width, width + 1])
    alive, bits = np.flatnonzero(flat), 1 << np.arange(8)
    while True:
        before = len(alive)
        for table in _thinning_tables():
            code = flat[alive[:, None] + offsets] @ bits
            goes = table[code]
            flat[alive[goes]] = False
            alive = alive[~goes]
        if len(alive) == before:
            return out[1:-1, 1:-1]


class Partners:
    """The boundaries of one annotator, ready to be matched.

    Args:
      true: bool [H, W].
      radius: how far partners may lie apart, in pixels.
    """

    def __init__(self, true: np.ndarray, radius: float) -> None:
        true = np.ascontiguousarray(true, bool)  # files have them column by column
        self.margin = int(radius)
        padded = np.pad(true, self.margin)
        self.count = int(true.sum())
        self._index = np.full(padded.shape, -1, np.int64)
        self._index[padded] = np.arange(self.count)
        self._distance = ndimage.distance_transform_edt(~true) if self.count else None
        y, x = np.mgrid[-self.margin : self.margin + 1, -self.margin : self.margin + 1]
        near = np.hypot(x, y) <= radius
        order = np.argsort(np.hypot(x, y)[near], kind="stable")
        self._offsets = (y[near] * padded.shape[1] + x[near])[order]

    def match(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """bool [N]: which of some pixels have a partner when as many as possible have one."""
        matched = np.zeros(len(rows), bool)
        if not self.count or not len(rows):
            return matched
        order = np.argsort(self._distance[rows, columns], kind="stable")
        order = order[self._distance[rows[order], columns[order]] <= self.margin + 1]
        width = self._index.shape[1]
        flat = (rows[order] + self.margin) * width + columns[order] + self.margin
        partners = self._index.reshape(-1)[flat[:, None] + self._offsets]
        there = partners >= 0
        pointers = np.concatenate([[0], np.cumsum(there.sum(1))])
        matched[order] = have_partners(partners[there], pointers, self.count)
        return matched


def have_partners(candidates: np.ndarray, pointers: np.ndarray, others: int) -> np.ndarray:
    """Which of N pixels get a partner of their own when as many as possible do.

    A maximum flow: one unit from the source through each pixel and each of the others to the sink.

    Args:
      candidates: int [E], whom each pixel may have, the pixels one after another.
      pointers: int [N + 1]; pixel i may have candidates[pointers[i] : pointers[i + 1]].
      others: how many there are to be had.

    Returns:
      bool [N].
    """
    count = len(pointers) - 1
    source, first, sink = 1, 1 + count, 1 + count + others  # nodes: source, pixels, others, sink
    heads = np.concatenate([np.arange(1, first), candidates + first, np.full(others, sink)])
    lengths = np.concatenate([[0, count], np.diff(pointers), np.ones(others, int), [0]])
    net = sparse.csr_array(
        (np.ones(len(heads), np.int32), heads.astype(np.int32), np.cumsum(lengths, dtype=np.int32)),
        shape=(sink + 1, sink + 1),
    )
    flow = maximum_flow(net, 0, sink, method="dinic").flow
    taken = flow.indices[: flow.indptr[1]][flow.data[: flow.indptr[1]] > 0]
    matched = np.zeros(count, bool)
    matched[taken - source] = True
    return matched


def count_image(
    boundary: np.ndarray, annotators: Sequence[np.ndarray], thresholds: np.ndarray = THRESHOLDS
) -> Counts:
    """Compares one boundary map with its annotators.

    Args:
      boundary: float [H, W] in 0..1.
      annotators: bool [H, W] each.
      thresholds: [T].

    Raises:
      ValueError: maps of different sizes, or no annotator.
    """
    if not annotators or any(one.shape != boundary.shape for one in annotators):
        raise ValueError(
            f"annotators: expected maps of the boundary's size {boundary.shape}, got "
            f"{[one.shape for one in annotators]}"
        )
    radius = MAX_DISTANCE * float(np.hypot(*boundary.shape))
    partners = [Partners(np.asarray(one, bool), radius) for one in annotators]
    counts = np.zeros((4, len(thresholds)), np.int64)
    before, kept = None, None
    for i, threshold in enumerate(thresholds):
        above = boundary >= threshold
        if before is None or not np.array_equal(above, before):
            before, (rows, columns) = above, np.nonzero(thin(above))
            matches = np.array([one.match(rows, columns) for one in partners])
            kept = (
                int(matches.sum()),
                sum(one.count for one in partners),
                int(matches.any(0).sum()),
                len(rows),
            )
        counts[:, i] = kept
    return Counts(*counts)


@dataclasses.dataclass(frozen=True)
class Score:
    """The benchmark's numbers.

    Attributes:
      threshold, recall, precision: where the F of all images together is best.
      ods: that F.
      ois: F of the counts at each image's own best threshold.
      ap: area under the curve of precision over recall.
      r50: recall at a precision of 0.5.
    """

    threshold: float
    recall: float
    precision: float
    ods: float
    ois: float
    ap: float
    r50: float


def best_f(thresholds: np.ndarray, counts: Counts) -> tuple[float, float, float, float]:
    """Threshold, recall, precision and F where F is best, between thresholds too."""
    steps = np.linspace(0, 1, 100)[:, None]
    line = (thresholds, counts.recall, counts.precision)
    if len(thresholds) > 1:
        line = tuple((x[1:] * steps + x[:-1] * (1 - steps)).T.reshape(-1) for x in line)
    f = f_measure(line[1], line[2])
    k = int(f.argmax())
    return float(line[0][k]), float(line[1][k]), float(line[2][k]), float(f[k])


def score(counts: Sequence[Counts], thresholds: np.ndarray = THRESHOLDS) -> Score:
    """The numbers of a data set from those of its images.

    A map of two values has one point and no curve: its AP is recall times precision (the official
    benchmark says 0).
    """
    total = sum(counts[1:], counts[0])
    own = [one.at(int(f_measure(one.recall, one.precision).argmax())) for one in counts]
    best = sum(own[1:], own[0])
    recall, precision = total.recall, total.precision
    unique, index = np.unique(recall, return_index=True)
    ap = float(recall.max() * precision.max())
    if len(unique) > 1:
        at = np.arange(101) / 100
        ap = float(np.interp(at, unique, precision[index], left=0, right=0).sum() / 100)
    order = np.argsort(precision, kind="stable")
    inside = len(order) and precision[order[0]] <= 0.5 <= precision[order[-1]]
    r50 = float(np.interp(0.5, precision[order], recall[order])) if inside else float(recall.max())
    return Score(*best_f(thresholds, total), float(f_measure(best.recall, best.precision)), ap, r50)
