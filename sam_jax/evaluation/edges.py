"""Edges from masks, measured on BSDS500 (paper section 7.2, appendix D.2).

A 16 x 16 grid of points gives 768 masks. Without any filter but box NMS, each adds its edge: the
Sobel magnitude of its probabilities on its outer boundary. The highest at each pixel, scaled to
0..1 and thinned across the edge, is the boundary map. The benchmark is that of BSDS500: lines are
thinned, matched one to one with each annotator's, and ODS, OIS, AP and R50 are read off.

--results scores boundary maps that somebody else made.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.evaluation import boundaries, models, report
from sam_jax.evaluation.journal import Journal, each_record, in_order, indices

PAPER = (  # method, ODS, OIS, AP, R50: the paper's table 3 and its references
    ("SAM (ViT-H), the paper", 0.768, 0.786, 0.794, 0.928),
    ("EDETR, the paper", 0.840, 0.858, 0.896, 0.930),
    ("HED, the paper", 0.788, 0.808, 0.840, 0.923),
    ("Canny, the paper", 0.600, 0.640, 0.580, None),
    ("Sobel, the paper", 0.539, None, None, None),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate edges`."""
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="BSDS500: its folder, or that of its images")
    add("--split", default="test", help="test (default), val or train")
    add("--model", default="tiny", metavar="NAME", help=models.HELP)
    add(
        "--results",
        metavar="DIR",
        help="score these maps and run no model: NAME.png, or NAME.mat with ucm2 or pb",
    )
    add("--images", type=int, default=0, metavar="N", help="only the first N images")
    add("--points-per-side", type=int, default=16, metavar="N", help="of the grid (default 16)")
    add("--nms", type=float, default=0.7, metavar="IOU", help="of box NMS (default 0.7)")
    add("--out", metavar="DIR", help="where maps, counts and plots go; a second run goes on there")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate edges`.

    Raises:
      ValueError: no data, no such model, or a bad number.
    """
    from sam_jax.data.bsds import Bsds500

    if args.points_per_side < 1:
        raise ValueError(f"--points-per-side: expected at least 1, got {args.points_per_side}")
    if not 0 <= args.nms <= 1:
        raise ValueError(f"--nms: expected 0 to 1, got {args.nms}")
    try:
        source = Bsds500(args.data, args.split)
    except ValueError as error:
        raise ValueError(f"--data: {error}") from error
    out = Path(args.out) if args.out else None
    settings = {"table": "edges", "data": repr(source), "images": len(source)}
    if args.results:
        make, made_by = _stored_maps(Path(args.results), args.split)
    else:
        make, made_by = _model_maps(args, out and out / "maps")
    with Journal(out and out / "edges.jsonl", settings | made_by) as journal:
        each_record(source, journal, _measure(make), name="edges", images=args.images)
    found = list(in_order(journal, source, args.images))
    if not found:
        raise ValueError("--data: no image could be measured")
    counts = [boundaries.Counts(*np.array(one["counts"])) for one in found]
    score = boundaries.score(counts)
    name = Path(args.results).name if args.results else args.model
    text = table(name, score, len(counts))
    print(text)
    if out:
        write(out, source, args.images, found, counts, score, text)


def _stored_maps(folder: Path, split: str) -> tuple[Callable[[dict], np.ndarray], dict[str, Any]]:
    """Looks a record's map up in a folder, or in its sub-folder of the split; and what it has."""
    from sam_jax.data.bsds import read_boundary_map
    from sam_jax.data.sources import RecordError

    places = (place for place in (folder, folder / split) if place.is_dir())
    held = [p for p in places if any(f.suffix in (".png", ".mat") for f in p.iterdir())]
    if not held:
        raise ValueError(f"--results: expected a folder of NAME.png or NAME.mat, got {folder}")

    def make(record: dict[str, Any]) -> np.ndarray:
        for suffix in (".png", ".mat"):
            path = held[0] / (record["name"] + suffix)
            if path.is_file():
                return read_boundary_map(path)
        raise RecordError(f"{record['name']}: no map of that name in {held[0]}")

    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(held[0].iterdir())]
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    return make, {"results": f"{folder} {digest}"}


def _model_maps(
    args: argparse.Namespace, maps: Path | None
) -> tuple[Callable[[dict], np.ndarray], dict[str, Any]]:
    """Makes a record's map with a model, in 8 bits as it is kept; and what it depends on."""
    from PIL import Image

    from sam_jax.inference.files import write_picture

    predictor, about = models.open_model(args.model)
    settings = about | {"points per side": args.points_per_side, "nms": args.nms}

    def make(record: dict[str, Any]) -> np.ndarray:
        found = boundary_map(predictor, record["image"], args.points_per_side, args.nms)
        levels = np.round(found * 255).astype(np.uint8)
        if maps:
            maps.mkdir(parents=True, exist_ok=True)
            write_picture(maps / f"{record['name']}.png", Image.fromarray(levels))
        return levels / 255

    return make, settings


def boundary_map(
    predictor: Any, photo: np.ndarray, points_per_side: int = 16, nms_thresh: float = 0.7
) -> np.ndarray:
    """The edges that the masks of a grid of points have.

    Args:
      predictor: a `sam_jax.Predictor`.
      photo: uint8 [H, W, 3].
      points_per_side: of the grid.
      nms_thresh: masks whose boxes overlap a likelier one's more than this are left out.

    Returns:
      float32 [H, W] in 0..1, lines about a pixel wide.
    """
    from sam_jax.inference.views import decode_views, encode_views, views_of
    from sam_jax.ops.boxes import point_grid
    from sam_jax.ops.cutouts import cut_out, measure
    from sam_jax.ops.edges import edge_nms
    from sam_jax.ops.nms import nms

    model = predictor.compiled
    views = views_of(0, photo.shape[:2], 0, 0.0, model)
    features = encode_views(model, [photo], views)
    points = (point_grid(points_per_side) * np.array([views[0].hw[::-1]]))[None]
    low, boxes, scores = [], [], []
    for _, part, decoded in decode_views(model, features, views, points, 64):
        rows = np.argwhere(np.ones_like(decoded.scores[: part.stop - part.start], bool))
        for row, logits in zip(rows, decoded.logits(rows), strict=True):
            cutout = cut_out(logits, 0.0, views[0].axes)
            one = measure(cutout, views[0].axes, 0.0, 0.0)
            if one.area:
                low.append(np.array(logits))
                boxes.append(one.box_xyxy)
                scores.append(decoded.scores[tuple(row)])
    edges = np.zeros(photo.shape[:2], np.float32)
    kept = nms(np.array(boxes), np.array(scores), nms_thresh) if low else []
    for i in kept:
        _add_edges(edges, low[i], boxes[i], views[0].axes)
    return edge_nms(edges)


def _add_edges(edges: np.ndarray, logits: np.ndarray, box_xyxy, axes) -> None:
    """Raises `edges` to those of one mask, which lie in its box and a pixel around it."""
    from sam_jax.ops.edges import mask_edges
    from sam_jax.ops.masks import stripes

    margin = 3  # the boundary outside, and what Sobel's filter sees from there
    x0, y0, x1, y1 = box_xyxy
    at = (
        slice(max(y0 - margin, 0), min(y1 + 1 + margin, edges.shape[0])),
        slice(max(x0 - margin, 0), min(x1 + 1 + margin, edges.shape[1])),
    )
    part = logits[axes[0].samples(at[0]), axes[1].samples(at[1])]
    full = np.concatenate([stripe for _, stripe in stripes(part, *axes, at)])
    np.maximum(edges[at], mask_edges(full), out=edges[at])


def _measure(make: Callable[[dict], np.ndarray]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """From a record to its counts, by the map that `make` gives."""
    from sam_jax.data.sources import RecordError

    def measure(record: dict[str, Any]) -> dict[str, Any]:
        found = make(record)
        if found.shape != record["boundaries"][0].shape:
            raise RecordError(
                f"{record['name']}: a map of {list(found.shape)} for a picture of "
                f"{list(record['boundaries'][0].shape)} (height, width)",
                "size",
            )
        counts = boundaries.count_image(found, record["boundaries"])
        threshold, recall, precision, f = boundaries.best_f(boundaries.THRESHOLDS, counts)
        return {
            "image": record["name"],
            "threshold": threshold,
            "recall": recall,
            "precision": precision,
            "f": f,
            "counts": [c.tolist() for c in counts.arrays()],
        }

    return measure


def table(name: str, score: boundaries.Score, images: int) -> str:
    """The score as Markdown, beside the paper's."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    own = (f"{name} ({images} images)", score.ods, score.ois, score.ap, score.r50)
    rows = [[method, *map(number, values)] for method, *values in (own, *PAPER)]
    where = f"ODS at threshold {score.threshold:.3f}: recall {score.recall:.4f}, "
    where += f"precision {score.precision:.4f}, F {score.ods:.4f}; OIS {score.ois:.4f}, "
    where += f"AP {score.ap:.4f}"
    return report.markdown(["edges", "ODS", "OIS", "AP", "R50"], rows) + f"\n\n{where}"


def write(
    out: Path,
    source: Any,
    images: int,
    found: Sequence[dict[str, Any]],
    counts: Sequence[boundaries.Counts],
    score: boundaries.Score,
    text: str,
) -> None:
    """table.md, scores.json, images.csv, curve.png, and sheet.jpg where maps were made."""
    report.write_text(out / "table.md", text + "\n")
    report.write_json(out / "scores.json", dataclasses.asdict(score) | {"images": len(found)})
    columns = ("image", "threshold", "recall", "precision", "f")
    report.write_csv(out / "images.csv", [{k: one[k] for k in columns} for one in found])
    total = sum(counts[1:], counts[0])
    report.write_plot(out / "curve.png", lambda figure: _draw_curve(figure, total, score), (6, 5))
    names = {source.name(i): i for i in indices(source, images)}
    kept = [one for one in found if (out / "maps" / f"{one['image']}.png").is_file()]
    if kept:
        report.write_sheet(out / "sheet.jpg", _sheet_rows(out, source, names, kept))
    print(f"results in {out}")


def _draw_curve(figure: Any, total: boundaries.Counts, score: boundaries.Score) -> None:
    axes = figure.add_subplot()
    grid = np.linspace(0.01, 1, 100)
    f = boundaries.f_measure(*np.meshgrid(grid, grid))
    lines = axes.contour(grid, grid, f, np.arange(0.1, 1, 0.1), colors="#9cc", linewidths=0.7)
    axes.clabel(lines, fontsize=7)
    there = total.found_all > 0
    axes.plot(total.recall[there], total.precision[there], color="#1565c0")
    axes.plot(score.recall, score.precision, "o", color="#1565c0", label=f"ODS {score.ods:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="lower left")


def _sheet_rows(out: Path, source: Any, names: dict[str, int], found: Sequence[dict]) -> list:
    """Best, median and worst images: the photo, its map, and all annotators' boundaries."""
    from PIL import Image

    from sam_jax.data.sources import RecordError
    from sam_jax.inference.overlay import write_text

    rows = []
    for group in report.extremes([one["f"] for one in found], 3):
        row = []
        for i in group:
            name = found[i]["image"]
            try:
                record = source[names[name]]
            except RecordError:
                continue
            photo = Image.fromarray(record["image"])
            write_text(photo, (0, 0), f"{name} F {found[i]['f']:.3f}", (255, 255, 255))
            with Image.open(out / "maps" / f"{name}.png") as file:
                lines = Image.eval(file.convert("RGB"), lambda v: 255 - v)
            drawn = np.mean(record["boundaries"], 0)
            true = Image.fromarray(np.uint8(255 - 255 * drawn)).convert("RGB")
            row += [photo, lines, true]
        rows.append(row)
    return [row for row in rows if row]
