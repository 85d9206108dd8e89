"""Whether masks are as good for one group as for another (paper section 6).

    sam-jax evaluate fairness --data DIR --groups GROUPS.csv

GROUPS.csv has a column `image` (the record's name, or its file name without folder and ending),
perhaps a column `mask` (its number in the record, from 0 on; without it a line is about all masks
of the image), and a column for each attribute, whose values are the groups; empty: not known. Only
masks that are in it are measured: mean IoU after 1 and 3 clicks, the first anywhere in the mask.

Intervals are bootstraps over images. Two groups differ significantly where the interval of their
difference is on one side of 0, at 95% for all pairs of an attribute together (Bonferroni).
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sam_jax.evaluation import data_sets, intervals, models, report
from sam_jax.evaluation.clicks import FACTS, Protocol
from sam_jax.evaluation.journal import Journal

CLICKS = ("1", "3")
RESAMPLES = 10_000
PAPER = {  # the paper's tables 2 and 6, ViT-H: mean IoU in percent and half its interval
    "gender, published": {"feminine": (54.4, 1.7, 90.4, 0.6), "masculine": (55.7, 1.7, 90.1, 0.6)},
    "age group, published": {
        "older": (62.9, 6.7, 92.6, 1.3),
        "middle": (54.5, 1.3, 90.2, 0.5),
        "young": (54.2, 2.2, 91.2, 0.7),
    },
    "skin tone, published": {
        "1": (52.9, 2.2, 91.0, 0.9),
        "2": (51.5, 1.4, 91.1, 0.5),
        "3": (52.2, 1.9, 91.4, 0.7),
        "4": (51.5, 2.7, 91.7, 1.0),
        "5": (52.4, 4.2, 92.5, 1.4),
        "6": (56.7, 6.3, 91.2, 2.4),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate fairness`."""
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", nargs="+", help=data_sets.HELP)
    add("--groups", required=True, metavar="FILE.csv", help="who is in which group, see above")
    add("--model", default="tiny", metavar="NAME", help=models.HELP)
    add("--first-click", choices=("centre", "random"), default="random", help="default random")
    add("--seed", type=int, default=0, metavar="N", help="of random first clicks (default 0)")
    add("--images", type=int, default=0, metavar="N", help="only the first N of each data set")
    add("--out", metavar="DIR", help="where rows, table and plot go; a second run goes on there")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate fairness`.

    Raises:
      ValueError: no data, no such model, another form of CSV, or none of the masks is in it.
    """
    from sam_jax.evaluation.single_point import measure

    groups = read_groups(Path(args.groups))
    sources = data_sets.open_data(args.data)
    predictor, about = models.open_model(args.model)
    protocol = Protocol(3, args.first_click, args.seed, boxes=False)
    out = Path(args.out) if args.out else None
    rows = []
    for name, source in sources.items():
        settings = {"table": "fairness", "data": repr(source), "records": len(source)}
        settings |= about | vars(protocol) | {"groups": groups.digest}
        with Journal(out and out / "rows" / f"{name}.jsonl", settings) as journal:
            wanted = _Wanted(source, groups)
            rows += measure(predictor, wanted, protocol, journal, args.images, name)
    rows = [row | {"groups": groups.of(row["image"], row["mask"])} for row in rows]
    if not rows:
        raise ValueError(
            f"--groups: none of the images and masks in {args.groups} is in the data; image is a "
            "record's name or its file name without ending, mask a number from 0 on"
        )
    figures = summarise(rows, groups.attributes)
    text = table(figures) + "\n\n" + "\n".join(statements(figures))
    print(text)
    if out:
        write(out, rows, figures, text)


class Groups:
    """Which groups masks belong to.

    Args:
      lines: of the CSV: "image", perhaps "mask", and attributes.
      attributes: their names.

    Attributes:
      attributes: as given.
      digest: tells contents apart, for a journal.
    """

    def __init__(self, lines: list[dict[str, str]], attributes: list[str]) -> None:
        import hashlib
        import json

        self.attributes = attributes
        text = json.dumps(lines, sort_keys=True).encode()
        self.digest = hashlib.blake2b(text, digest_size=8).hexdigest()
        self._of: dict[tuple[str, int | None], dict[str, str]] = {}
        for line in lines:
            mask = line.get("mask")
            key = (line["image"], int(mask) if mask else None)
            values = {a: line[a] for a in attributes if line[a]}
            self._of.setdefault(key, {}).update(values)

    def of(self, image: str, mask: int) -> dict[str, str]:
        """{attribute: group} of a mask, by its record's name and its number there."""
        found: dict[str, str] = {}
        for name in _names(image):
            for number in (None, mask):
                found |= self._of.get((name, number), {})
        return found


def _names(image: str) -> tuple[str, ...]:
    """What a record may be called in the CSV."""
    path = PurePosixPath(image)
    return tuple(dict.fromkeys((path.stem, path.name, str(path.with_suffix("")), image)))


def read_groups(path: Path) -> Groups:
    """Reads the CSV.

    Raises:
      ValueError: it cannot be read, or has no column `image`, no attribute, or a bad mask number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            lines = [{k: (v or "").strip() for k, v in line.items() if k} for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--groups: can't read {path}: {error}") from error
    attributes = [name for name in columns if name and name not in ("image", "mask")]
    if "image" not in columns or not attributes:
        raise ValueError(
            f"--groups: expected the columns image, perhaps mask, and attributes, {path} has "
            f"{', '.join(columns) or 'none'}"
        )
    for number, line in enumerate(lines, 2):
        if line.get("mask") and not line["mask"].isdigit():
            raise ValueError(
                f"--groups: {path} line {number}: mask must be a number from 0 on, "
                f"got {line['mask']!r}"
            )
    return Groups(lines, attributes)


class _Wanted:
    """A source in which masks of no group are empty."""

    def __init__(self, source: Any, groups: Groups) -> None:
        self._source, self._groups = source, groups

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[index]
        rles = [
            mask
            if self._groups.of(record["name"], number)
            else {"size": mask["size"], "counts": [mask["size"][0] * mask["size"][1]]}
            for number, mask in enumerate(record["rles"])
        ]
        return {**record, "rles": rles}


def summarise(rows: list[dict[str, Any]], attributes: list[str]) -> dict[str, dict[str, Any]]:
    """{attribute: {"groups": {group: ...}, "differences": [...]}}.

    A group has "masks", "images", and for each of CLICKS [mean, low, high]; a difference has
    "pair", "clicks", "difference", "interval" (at the level that holds for all pairs) and
    "significant".

    Args:
      rows: with the IoUs, and "groups".
      attributes: names.
    """
    figures = {}
    for attribute in attributes:
        own = [row for row in rows if attribute in row["groups"]]
        names = sorted({row["groups"][attribute] for row in own})
        if not names:
            continue
        drawn = _resampled(own, attribute, names)  # [R, groups, clicks]
        groups = {}
        for k, name in enumerate(names):
            members = [row for row in own if row["groups"][attribute] == name]
            images = len({row["image"] for row in members})
            groups[name] = {"masks": len(members), "images": images}
            for c, clicks in enumerate(CLICKS):
                low, high = np.nanquantile(drawn[:, k, c], [0.025, 0.975])
                mean = np.mean([row[clicks] for row in members])
                groups[name][clicks] = [float(mean), float(low), float(high)]
        figures[attribute] = {"groups": groups, "differences": _differences(groups, drawn)}
    return figures


def _resampled(rows: list[dict[str, Any]], attribute: str, names: list[str]) -> np.ndarray:
    """Group means [R, groups, clicks] over images drawn with replacement; NaN: none drawn."""
    images, image = np.unique([row["image"] for row in rows], return_inverse=True)
    group = np.array([names.index(row["groups"][attribute]) for row in rows])
    sums = np.zeros((len(images), len(names), len(CLICKS)))
    counts = np.zeros((len(images), len(names)))
    np.add.at(sums, (image, group), np.array([[row[c] for c in CLICKS] for row in rows]))
    np.add.at(counts, (image, group), 1)
    parts = []
    for weights in intervals.image_weights(len(images), RESAMPLES):
        total = weights @ counts
        mean = np.tensordot(weights, sums, 1) / np.where(total == 0, 1, total)[..., None]
        parts.append(np.where((total == 0)[..., None], np.nan, mean))
    return np.concatenate(parts)


def _differences(groups: dict[str, dict[str, Any]], drawn: np.ndarray) -> list[dict[str, Any]]:
    """Every pair of groups of two images or more, at each number of clicks."""
    usable = [(k, n) for k, n in enumerate(groups) if groups[n]["images"] > 1]
    pairs = list(itertools.combinations(usable, 2))
    tail = 0.025 / max(len(pairs), 1)
    result = []
    for (i, first), (j, second) in pairs:
        for c, clicks in enumerate(CLICKS):
            low, high = np.nanquantile(drawn[:, i, c] - drawn[:, j, c], [tail, 1 - tail])
            result.append(
                {
                    "pair": [first, second],
                    "clicks": int(clicks),
                    "difference": groups[first][clicks][0] - groups[second][clicks][0],
                    "interval": [float(low), float(high)],
                    "significant": bool(low > 0 or high < 0),
                }
            )
    return result


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The groups' means in percent, +- half their interval, and the paper's, as Markdown."""
    rows = []
    for attribute, one in figures.items():
        for name, group in one["groups"].items():
            cells = []
            for clicks in CLICKS:
                mean, low, high = (100 * v for v in group[clicks])
                width = f" +- {(high - low) / 2:.1f}" if group["images"] > 1 else ""
                cells.append(f"{mean:.1f}{width}")
            rows.append([attribute, name, str(group["masks"]), *cells])
    for attribute, groups in PAPER.items():
        for name, (one, width, three, width_three) in groups.items():
            cells = [f"{one:.1f} +- {width:.1f}", f"{three:.1f} +- {width_three:.1f}"]
            rows.append([attribute, name, "", *cells])
    return report.markdown(["attribute", "group", "masks", "1 click", "3 clicks"], rows)


def statements(figures: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each attribute and significant difference, or that there is none."""
    lines = []
    for attribute, one in figures.items():
        clear = [d for d in one["differences"] if d["significant"]]
        if not one["differences"]:
            lines.append(
                f"{attribute}: fewer than two groups of two images or more; no comparison."
            )
        elif not clear:
            lines.append(f"{attribute}: no significant difference between any two groups.")
        for d in clear:
            first, second = d["pair"] if d["difference"] > 0 else d["pair"][::-1]
            low, high = sorted(abs(100 * end) for end in d["interval"])
            lines.append(
                f"{attribute}: {first} is significantly better than {second} after {d['clicks']} "
                f"click{'s' * (d['clicks'] != 1)}, by {abs(100 * d['difference']):.1f} "
                f"({low:.1f} to {high:.1f})."
            )
    return lines


def write(
    out: Path, rows: list[dict[str, Any]], figures: dict[str, dict[str, Any]], text: str
) -> None:
    """masks.csv, scores.json, table.md and groups.png."""
    flat = [
        {k: row[k] for k in FACTS} | row["groups"] | {k: row[k] for k in ("1", "2", "3")}
        for row in rows
    ]
    report.write_csv(out / "masks.csv", flat)
    report.write_json(out / "scores.json", figures)
    report.write_text(out / "table.md", text + "\n")
    lines = sum(len(one["groups"]) + 1 for one in figures.values())
    report.write_plot(
        out / "groups.png", lambda figure: _draw(figure, figures), (6.4, 1.2 + 0.3 * lines)
    )
    print(f"results in {out}")


def _draw(figure: Any, figures: dict[str, dict[str, Any]]) -> None:
    """Means and intervals of all groups, attribute after attribute."""
    axes, labels = figure.add_subplot(), []
    for attribute, one in figures.items():
        for name, group in one["groups"].items():
            for clicks, colour in zip(CLICKS, ("#1565c0", "#2e7d32"), strict=True):
                mean, low, high = group[clicks]
                axes.plot([low, high], [len(labels)] * 2, color=colour, lw=2)
                axes.plot(mean, len(labels), "o", color=colour)
            labels.append(f"{attribute}: {name} ({group['masks']})")
        labels.append("")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="mean IoU after 1 (blue) and 3 (green) clicks", xlim=(0, 1))
    axes.grid(axis="x", alpha=0.3)
