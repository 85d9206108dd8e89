"""What a data set's masks are like: the figures of the paper's section 5 on SA-1B.

Masks a photo, relative size (the square root of a mask's area over the photo's), concavity (1 minus
its area over that of its convex hull), and where masks lie (their centres, in parts of the photo's
width and height). Several data sets stand beside each other. Concavity grows with size, so it is
also compared on equal numbers of masks of each size ("concavity, sizes matched").
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.evaluation import report
from sam_jax.evaluation.journal import Journal, each_record, in_order

COUNT_BINS = (10, 50, 100, 200)
"""Upper ends, inclusive, of the paper's bins of masks a photo; the last bin is open."""
SIZE_BINS = np.linspace(0, 1, 11)
"""Edges of the bins of relative size."""
CENTRE_BINS = 10
"""Cells a side of the map of centres."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate dataset`."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="DIR",
        nargs="+",
        help="data sets, in any form that is read",
    )
    add("--images", type=int, default=0, metavar="N", help="only the first N photos of each")
    add(
        "--out",
        metavar="DIR",
        help="where masks.csv, figures.json and figures.png go; a second run goes on there",
    )


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate dataset`.

    Raises:
      ValueError: no data, no masks in one of them, or two of the same name.
    """
    from sam_jax.data.open_source import open_source

    sources = {}
    for path in args.data:
        name = Path(path).name or str(path)
        if name in sources:
            name = str(path)
        if name in sources:
            raise ValueError(f"--data: {path} is given twice")
        try:
            sources[name] = open_source(path, at_least=1)  # the pixels are not looked at
        except ValueError as error:
            raise ValueError(f"--data: {error}") from error
    out, found = Path(args.out) if args.out else None, {}
    for name, source in sources.items():
        settings = {"table": "dataset", "data": repr(source), "records": len(source)}
        file = f"{name.strip('/').replace('/', '_')}.jsonl"
        with Journal(out and out / "rows" / file, settings) as journal:
            found[name] = measure(source, args.images, name, journal)
        if not len(found[name].relative):
            raise ValueError(f"--data: no masks in {name}")
    figures = summarise(found)
    print(table(figures))
    if out:
        write(out, found, figures)


@dataclasses.dataclass
class Masks:
    """All masks of a data set.

    Attributes:
      photos: int [I], masks of each photo.
      image: names [M] of the photos.
      area: int [M], pixels.
      relative: float [M], relative size.
      concavity: float [M].
      centres_xy: float [M, 2], in 0..1.
    """

    photos: np.ndarray
    image: list[str]
    area: np.ndarray
    relative: np.ndarray
    concavity: np.ndarray
    centres_xy: np.ndarray


def measure(source: Any, images: int = 0, name: str = "", journal: Journal | None = None) -> Masks:
    """The masks of the first photos of a source; what cannot be read is printed and left out.

    Args:
      source: of records, see `sam_jax.data.sources`.
      images: only the first so many; 0: all.
      name: shown beside the progress bar.
      journal: what it holds is not measured again.
    """

    def of(record: dict[str, Any]) -> dict[str, Any]:
        shapes = [shape for shape in map(mask_shape, record["rles"]) if shape is not None]
        return {"image": record["name"], "masks": shapes}

    journal = journal or Journal(None, {})
    each_record(source, journal, of, name=name, images=images)
    found = list(in_order(journal, source, images))
    columns = np.array([m for one in found for m in one["masks"]], np.float64).reshape(-1, 5)
    return Masks(
        np.array([len(one["masks"]) for one in found], np.int64),
        [one["image"] for one in found for _ in one["masks"]],
        columns[:, 0].astype(np.int64),
        columns[:, 1],
        columns[:, 2],
        columns[:, 3:],
    )


def mask_shape(mask: dict[str, Any]) -> tuple[float, float, float, float, float] | None:
    """Area, relative size, concavity and centre (x, y in 0..1) of a COCO RLE; None when empty."""
    from sam_jax.ops import rle

    height, width = mask["size"]
    x0, y0, w, h = rle.bbox_xywh(mask)
    if not w:
        return None
    part = rle.decode_part(mask, (y0, x0), (h, w))
    area = int(np.count_nonzero(part))
    x, y = (float(np.average(np.arange(n) + 0.5, weights=part.sum(i))) for i, n in ((0, w), (1, h)))
    concavity = 1 - area / hull_area(part)
    centre = (x0 + x) / width, (y0 + y) / height
    return area, (area / (height * width)) ** 0.5, concavity, *centre


def hull_area(mask: np.ndarray) -> float:
    """Area in pixels of the convex hull of a mask bool [H, W] that is not empty.

    A pixel is a square, so a filled rectangle is its own hull.
    """
    from scipy.spatial import ConvexHull

    columns = np.flatnonzero(mask.any(0))
    first = mask[:, columns].argmax(0)
    last = len(mask) - mask[::-1, columns].argmax(0)
    x, y = np.concatenate([columns, columns]), np.concatenate([first, last])
    corners = np.stack([np.concatenate([x, x + 1]), np.concatenate([y, y])], 1)
    return float(ConvexHull(corners).volume)  # in two dimensions the volume is the area


def summarise(found: dict[str, Masks]) -> dict[str, dict[str, Any]]:
    """The figures of each data set, by name, ready for JSON."""
    matched = size_matched(list(found.values()))
    figures = {}
    for (name, masks), rows in zip(found.items(), matched, strict=True):
        bins = np.searchsorted(COUNT_BINS, masks.photos, "left")
        centres = np.histogram2d(
            *masks.centres_xy[:, ::-1].T, bins=CENTRE_BINS, range=[[0, 1], [0, 1]]
        )[0]
        sizes = np.histogram(masks.relative, SIZE_BINS)[0]
        figures[name] = {
            "photos": len(masks.photos),
            "masks": len(masks.relative),
            "masks a photo": float(masks.photos.mean()),
            "masks a photo, median": float(np.median(masks.photos)),
            "photos by masks": (np.bincount(bins, minlength=5) / len(bins)).tolist(),
            "masks by relative size": (sizes / len(masks.relative)).tolist(),
            "relative size, median": float(np.median(masks.relative)),
            "concavity": float(masks.concavity.mean()),
            "concavity, sizes matched": float(masks.concavity[rows].mean()) if len(rows) else None,
            "masks of matched size": len(rows),
            "centres": (centres / len(masks.relative)).tolist(),
            "centres in the middle ninth": float(
                (np.abs(masks.centres_xy - 0.5) < 1 / 6).all(1).mean()
            ),
        }
    return figures


def size_matched(found: Sequence[Masks], seed: int = 0) -> list[np.ndarray]:
    """Rows of each data set such that all have equal numbers of masks of each relative size."""
    rng = np.random.default_rng(seed)
    bins = [np.digitize(masks.relative, SIZE_BINS[1:-1]) for masks in found]
    rows: list[list[np.ndarray]] = [[] for _ in found]
    for k in range(len(SIZE_BINS) - 1):
        own = [np.flatnonzero(b == k) for b in bins]
        count = min(map(len, own))
        for chosen, candidates in zip(rows, own, strict=True):
            chosen.append(rng.choice(candidates, count, replace=False))
    return [np.sort(np.concatenate(parts)) for parts in rows]


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown, a column for each data set."""
    names = list(figures)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]

    def row(title: str, values: Sequence[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(values) + " |")

    def each(key: str, form: str) -> list[str]:
        values = [figures[name][key] for name in names]
        return ["" if value is None else format(value, form) for value in values]

    row("photos", each("photos", ",d"))
    row("masks", each("masks", ",d"))
    row("masks a photo: mean", each("masks a photo", ".1f"))
    row("median", each("masks a photo, median", ".0f"))
    edges = (0, *COUNT_BINS)
    titles = [f"{a + 1} to {b}" for a, b in zip(edges[1:-1], edges[2:], strict=True)]
    for k, title in enumerate([f"up to {edges[1]}", *titles, f"over {edges[-1]}"]):
        row(f"photos with {title}", [f"{figures[n]['photos by masks'][k]:.1%}" for n in names])
    row("relative size: median", each("relative size, median", ".3f"))
    for k in range(3):
        title = f"{SIZE_BINS[k]:.1f} to {SIZE_BINS[k + 1]:.1f}"
        row(title, [f"{figures[n]['masks by relative size'][k]:.1%}" for n in names])
    row("concavity: mean", each("concavity", ".3f"))
    if len(names) > 1:
        row("sizes matched", each("concavity, sizes matched", ".3f"))
    row("centres in the middle ninth", each("centres in the middle ninth", ".1%"))
    return "\n".join(lines)


def write(out: Path, found: dict[str, Masks], figures: dict[str, dict[str, Any]]) -> None:
    """masks.csv with a row a mask, figures.json, and figures.png where matplotlib is installed."""
    rows = []
    for name, masks in found.items():
        columns = (masks.image, masks.area, masks.relative, masks.concavity, masks.centres_xy)
        for image, area, size, concavity, (x, y) in zip(*columns, strict=True):
            numbers = {"relative size": size, "concavity": concavity, "x": x, "y": y}
            row = {"data": name, "image": image, "area": int(area)}
            rows.append(row | {k: f"{v:.5f}" for k, v in numbers.items()})
    report.write_csv(out / "masks.csv", rows)
    report.write_json(out / "figures.json", figures)
    size = (4 * max(3, len(found)), 7.5)
    report.write_plot(out / "figures.png", lambda figure: draw(figure, found, figures), size)
    print(f"results in {out}")


def draw(figure: Any, found: dict[str, Masks], figures: dict[str, dict[str, Any]]) -> None:
    """The paper's figures 5 and 6: where centres lie, masks a photo, sizes, concavity."""
    columns = max(3, len(found))
    grid = figure.add_gridspec(2, 6 * columns)
    for k, (name, own) in enumerate(figures.items()):
        axes = figure.add_subplot(grid[0, 6 * k : 6 * (k + 1)])
        axes.imshow(own["centres"], cmap="magma", vmin=0, extent=(0, 1, 1, 0))
        axes.set_title(f"centres, {name} ({own['masks']:,} masks)")
    matched = size_matched(list(found.values()))
    thirds = [grid[1, 2 * columns * k : 2 * columns * (k + 1)] for k in range(3)]
    counts, sizes, concavity = (figure.add_subplot(part) for part in thirds)
    edges = np.linspace(0, 0.8, 33)
    for k, (name, masks) in enumerate(found.items()):
        share = figures[name]["photos by masks"]
        wide = 0.8 / len(found)
        counts.bar(np.arange(5) + wide * (k - (len(found) - 1) / 2), share, wide, label=name)
        for axes, values, bins in (
            (sizes, masks.relative, SIZE_BINS),
            (concavity, masks.concavity[matched[k]], edges),
        ):
            heights, _ = np.histogram(values, bins)
            axes.plot((bins[1:] + bins[:-1]) / 2, heights / max(len(values), 1), label=name)
    counts.set_xticks(range(5), ["up to 10", "11-50", "51-100", "101-200", "over 200"])
    counts.set(xlabel="masks a photo", ylabel="share of photos")
    sizes.set(xlabel="relative size", ylabel="share of masks", yscale="log")
    concavity.set(xlabel="concavity, sizes matched", ylabel="share of masks")
    for axes in (counts, sizes, concavity):
        axes.legend()
