"""What can be wrong with a record, and a count of what was seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sam_jax.data.coco import CROWD
from sam_jax.data.sources import RecordError, Source
from sam_jax.ops import rle as rle_ops

LARGE = 0.9  # of the picture; training leaves larger masks out (paper, appendix A)
TINY = 16  # pixels
KEPT = 1000  # problems of a kind that are kept by name; the rest is only counted


class Kind(NamedTuple):
    """A kind of problem: what it means, and whether it is one or only worth knowing."""

    meaning: str
    grave: bool = True


KINDS = {
    "image": Kind("Pictures that cannot be read. Training skips their records."),
    "record": Kind("Records that cannot be read. Training skips them."),
    "mask": Kind("Masks that cannot be read. Training skips their whole records."),
    "size": Kind("Masks of another size than their picture. Training skips their records."),
    "incomplete": Kind("Files without a partner, and damaged parts of the data."),
    "empty": Kind("Masks without a pixel. Training leaves them out."),
    "duplicate": Kind("Masks that are in their picture twice; they count twice in training."),
    "outside": Kind(
        "Boxes or outlines that reach beyond the picture: another picture's, or scaled?"
    ),
    "damaged map": Kind(
        "Masks that look resized with smoothing or saved with loss. Resize masks with nearest "
        "neighbour and save them as PNG."
    ),
    "box": Kind("Stated boxes that are not the box of the mask."),
    "area": Kind("Stated areas that are not the area of the mask."),
    "no usable mask": Kind(
        "Pictures whose masks are all empty, tiny or nearly the whole picture. Training hardly "
        "ever takes them."
    ),
    "no masks": Kind("Pictures without masks. They are never trained on.", grave=False),
    "large": Kind(f"Masks over {LARGE:.0%} of the picture. Training leaves them out.", False),
    "tiny": Kind(f"Masks of fewer than {TINY} pixels. They may be dirt.", grave=False),
    "crowd": Kind("Crowd regions (iscrowd). They are left out.", grave=False),
}
"""In the order in which they are told."""


class Problem(NamedTuple):
    """One thing that is wrong.

    kind: of KINDS. name: the record's or the file's. detail: in words. index, mask: the record
    and the mask in it, for a picture; -1 where there is none to show.
    """

    kind: str
    name: str
    detail: str
    index: int = -1
    mask: int = -1


class Measured(NamedTuple):
    """What one record holds: picture [height, width], mask areas in pixels, problems.

    `image_hw` is None for a record that cannot be read.
    """

    image_hw: tuple[int, int] | None
    areas: np.ndarray
    problems: list[Problem]


@dataclass
class Findings:
    """Everything seen so far.

    relative_sizes: counts by SIZE_EDGES of sqrt(mask area / picture area).
    per_image: counts by PER_IMAGE of the masks in a picture.
    """

    images: int = 0
    unreadable: int = 0
    masks: int = 0
    sides: Counter = field(default_factory=Counter)
    relative_sizes: np.ndarray = field(default_factory=lambda: np.zeros(len(SIZE_EDGES) - 1, int))
    per_image: np.ndarray = field(default_factory=lambda: np.zeros(len(PER_IMAGE), int))
    counts: Counter = field(default_factory=Counter)
    kept: dict[str, list[Problem]] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        """Counts a record."""
        for problem in measured.problems:
            self.note(problem)
        if measured.image_hw is None:
            self.unreadable += 1
            return
        height, width = measured.image_hw
        self.images += 1
        self.masks += len(measured.areas)
        self.sides[f"{width} x {height}"] += 1
        sizes = np.sqrt(measured.areas[measured.areas > 0] / (height * width))
        self.relative_sizes += np.histogram(sizes, SIZE_EDGES)[0]
        last = [upper for _, upper in PER_IMAGE]
        self.per_image[int(np.searchsorted(last, len(measured.areas)))] += 1

    def note(self, problem: Problem) -> None:
        """Counts a problem, and keeps it as long as there are few of its kind."""
        self.counts[problem.kind] += 1
        kept = self.kept.setdefault(problem.kind, [])
        if len(kept) < KEPT:
            kept.append(problem)

    @property
    def grave(self) -> int:
        """Number of problems, without what is only worth knowing."""
        return sum(n for kind, n in self.counts.items() if KINDS[kind].grave)


SIZE_EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0001)
PER_IMAGE = (
    ("0", 0),
    ("1 - 10", 10),
    ("11 - 50", 50),
    ("51 - 100", 100),
    ("101 - 200", 200),
    ("over 200", float("inf")),
)
"""The paper's bins (Fig. 6), but for pictures without masks."""


def of_source(source: Source) -> list[Problem]:
    """What a source left out when it was opened."""
    problems = [
        Problem("incomplete", name, reason)
        for name, reason in getattr(source, "damage", {}).items()
    ]
    for name, reason in getattr(source, "left_out", {}).items():
        problems.append(Problem("crowd" if reason == CROWD else "no masks", name, reason))
    return problems


def measure(source: Source, index: int) -> Measured:
    """Reads record `index` and everything in it; never raises for what is in the data."""
    try:
        record = source[index]
    except RecordError as error:
        name, _, reason = str(error).partition(": ")
        kind = error.kind if error.kind in KINDS else "record"
        return Measured(None, np.zeros(0), [Problem(kind, name, reason or name)])
    problems, areas, seen = [], [], {}
    image_hw = record["image"].shape[:2]
    name = str(record.get("name", index))

    def found(kind: str, detail: str, mask: int = -1) -> None:
        problems.append(Problem(kind, name, detail, index, mask))

    stated = record.get("stated") or [{}] * len(record["rles"])
    for number, (rle, says) in enumerate(zip(record["rles"], stated, strict=True)):
        try:
            counts = rle_ops.read_counts(rle)
        except ValueError as error:
            found("mask", f"mask {number}: {error}")
            continue
        areas.append(area := int(counts[1::2].sum()))
        twin = seen.setdefault((area, counts.tobytes()), number)
        if area and twin != number:
            found("duplicate", f"mask {number} is mask {twin}", number)
        bounds = rle_ops.bounds_xyxy(counts, int(rle["size"][0]))
        for kind, detail in _of_mask(area, bounds, image_hw, says):
            found(kind, f"mask {number}: {detail}", number)
    for note in record.get("notes", ()):
        found("damaged map", note)
    most = LARGE * image_hw[0] * image_hw[1]
    if not record["rles"]:
        found("no masks", "no masks")
    elif areas and not any(TINY <= area <= most for area in areas):
        found("no usable mask", f"{len(areas)} masks, none of {TINY} to {most:.0f} pixels")
    return Measured(image_hw, np.array(areas, float), problems)


def _of_mask(
    area: int, bounds: tuple | None, image_hw: tuple[int, int], says: dict[str, Any]
) -> list[tuple[str, str]]:
    """(kind, detail) of what is wrong with one mask; `bounds` as `rle.bounds_xyxy` gives them."""
    if bounds is None:
        return [("empty", "no pixel")]
    found = []
    share = area / (image_hw[0] * image_hw[1])
    if share > LARGE:
        found.append(("large", f"{share:.1%} of the picture"))
    if area < TINY:
        found.append(("tiny", f"{area} pixels"))
    true = np.array([bounds[0], bounds[1], bounds[2] + 1, bounds[3] + 1], float)
    if "extent" in says:
        found += _beyond(says["extent"], image_hw, "its polygons reach")
    if "bbox" in says:
        box = _numbers(says["bbox"], 4)
        if box is None:
            return [*found, ("box", f"{says['bbox']!r:.60} is no [x, y, width, height]")]
        corners = np.concatenate([box[:2], box[:2] + box[2:]])
        found += _beyond(corners, image_hw, "its box reaches")
        # SA-1B's boxes are a pixel smaller than the mask, and polygons lie between pixels.
        slack = 2 + 0.02 * max(true[2] - true[0], true[3] - true[1])
        if np.abs(corners - true).max() > slack:
            hint = ""
            if np.abs(box - true).max() <= slack:
                hint = "; it looks like [x0, y0, x1, y1], and COCO has [x, y, width, height]"
            x0, y0, x1, y1 = true.astype(int).tolist()
            found.append(
                ("box", f"{_brief(box)} is stated, {[x0, y0, x1 - x0, y1 - y0]} is true{hint}")
            )
    if "area" in says:
        value = _numbers([says["area"]], 1)
        # COCO's areas are those of the polygons, which differ along the outline.
        if value is None or abs(value[0] - area) > 0.1 * max(value[0], area) + 4 * area**0.5:
            found.append(("area", f"{says['area']!r:.30} is stated, {area} pixels are true"))
    return found


def _beyond(corners: Any, image_hw: tuple[int, int], what: str) -> list[tuple[str, str]]:
    """Whether x0, y0, x1, y1 leave the picture by more than a pixel."""
    height, width = image_hw
    x0, y0, x1, y1 = (float(v) for v in corners)
    if min(x0, y0) >= -1 and x1 <= width + 1 and y1 <= height + 1:
        return []
    reach = _brief(np.array([x0, y0, x1, y1]))
    return [("outside", f"{what} from x, y to x, y {reach}; the picture is {width} x {height}")]


def _numbers(values: Any, count: int) -> np.ndarray | None:
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError):
        return None
    return array if array.shape == (count,) and np.isfinite(array).all() else None


def _brief(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:g}" for value in np.round(values, 1)) + "]"
