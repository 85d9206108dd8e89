"""Masks from clicks and boxes on data with true masks (paper section 7.1, appendix D.1).

For each true mask: a click in its middle, then up to eight more, each in the middle of the largest
error that is left; and, apart from that, its bounding box. Beside them stand two baselines from the
same box: the box filled, and OpenCV's GrabCut where OpenCV is installed (--grabcut).

The first click takes the mask of highest predicted IoU of the three ("1 click"), and for
"1 oracle" the best of them. Later clicks feed the last mask back and take the single mask. A line
says how far the predicted IoUs of the three rank as their true ones do (Spearman).

The mean over data sets weighs each alike; +- is half a 95% interval (bootstrap over images).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.evaluation import clicks as clicking
from sam_jax.evaluation import data_sets, intervals, models, report
from sam_jax.evaluation.clicks import Protocol
from sam_jax.evaluation.journal import Journal, each_batch, in_order

PAPER = {  # mean over the 23 sets after 1 and 5 clicks (SAM 2's table 15; SAM's has plots alone)
    "SAM ViT-H, 23 sets, published": {"1": 0.581, "5": 0.813},
    "SAM ViT-B, 23 sets, published": {"1": 0.559, "5": 0.809},
}
SHOWN = 5
"""Masks in each row of a contact sheet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate single-point`."""
    add = parser.add_argument
    add("--data", metavar="DIR", nargs="+", default=[], help=data_sets.HELP)
    add("--model", default="tiny", metavar="NAME", help=models.HELP)
    add("--clicks", type=int, default=9, metavar="N", help="the most clicks (default 9)")
    add(
        "--first-click",
        choices=("centre", "random"),
        default="centre",
        help="where the first one lies in the mask; later ones are the same",
    )
    add("--seed", type=int, default=0, metavar="N", help="of random first clicks (default 0)")
    add("--images", type=int, default=0, metavar="N", help="only the first N of each data set")
    add("--grabcut", action="store_true", help="also OpenCV's GrabCut from the box")
    add(
        "--out",
        metavar="DIR",
        help="where a row for each mask, the table, plots and contact sheets go; "
        "a run that was stopped goes on there",
    )
    add("--layouts", action="store_true", help="list the paper's 23 data sets and their files")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate single-point`, a row of the table for each data set.

    Raises:
      ValueError: no data, no such model, or clicks below 1.
    """
    if args.layouts:
        print(data_sets.layouts())
        return
    if not args.data:
        raise ValueError("--data: expected at least one data set; --layouts lists the paper's")
    if args.clicks < 1:
        raise ValueError(f"--clicks: expected at least 1, got {args.clicks}")
    if args.grabcut:
        clicking.import_cv2()
    sources = data_sets.open_data(args.data)
    predictor, about = models.open_model(args.model)
    protocol = Protocol(args.clicks, args.first_click, args.seed, True, args.grabcut)
    out = Path(args.out) if args.out else None
    tables = measure_all(predictor, sources, protocol, out, about, args.images)
    figures = summarise(tables)
    lines = table_rows(tables, figures)
    for line in lines[len(tables) :]:
        print("| " + " | ".join(line) + " |")
    for sentence in drops(tables) + rankings(figures):
        print(sentence)
    if out:
        write(out, predictor, sources, tables, figures, lines)


def measure_all(
    predictor: Any,
    sources: dict[str, Any],
    protocol: Protocol,
    out: Path | None,
    about: dict[str, Any],
    images: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each data set by its name; its line of the table is printed when it is done.

    Args:
      predictor: a `sam_jax.Predictor`.
      sources: of records, by name.
      protocol: what is asked.
      out: where journals are kept, or None.
      about: what `open_model` says of the model.
      images: only the first so many records of each; 0: all.

    Raises:
      ValueError: a data set without masks, or a journal of other settings.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, source in sources.items():
        settings = {"table": "single-point", "data": repr(source), "records": len(source)}
        settings |= about | vars(protocol)
        with Journal(out and out / "rows" / f"{name}.jsonl", settings) as journal:
            tables[name] = measure(predictor, source, protocol, journal, images, name)
        if not tables[name]:
            raise ValueError(f"--data: {name} has no masks that can be measured")
        print_row(name, tables[name], header=len(tables) == 1)
    return tables


def measure(
    predictor: Any,
    source: Any,
    protocol: Protocol,
    journal: Journal,
    images: int = 0,
    name: str = "",
) -> list[dict[str, Any]]:
    """One row a mask: the FACTS of `clicks`, the IoU by name of the prompt, and CANDIDATES.

    Args:
      predictor: a `sam_jax.Predictor`, or what has its `embed` and `predict`.
      source: of records, see `sam_jax.data.sources`; what cannot be read is printed and skipped.
      protocol: what is asked.
      journal: what it holds is not measured again.
      images: only the first so many records; 0: all.
      name: shown beside the progress bar.
    """

    def of(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        embeddings = models.embed_each(predictor, records)
        return [
            clicking.measure_record(predictor, embedding, record, protocol)
            for embedding, record in zip(embeddings, records, strict=True)
        ]

    at_once = models.images_at_once(predictor)
    each_batch(source, journal, of, at_once, name=name, images=images)
    return [row for rows in in_order(journal, source, images) for row in rows]


def measure_source(
    predictor: Any, source: Any, clicks: int, images: int = 0, name: str = ""
) -> list[dict[str, Any]]:
    """`measure` by the paper's protocol, kept nowhere."""
    return measure(predictor, source, Protocol(clicks), Journal(None, {}), images, name)


def title(prompt: str) -> str:
    """ "1 click", "2 clicks", and other prompts by their own names."""
    return f"{prompt} click{'s' * (prompt != '1')}" if prompt.isdigit() else prompt


def print_row(name: str, rows: list[dict], header: bool) -> None:
    """Prints the means over a data set's masks, as a row of a Markdown table."""
    names = clicking.names_of(rows)
    if header:
        print(report.markdown(["data", "masks", *map(title, names)], []))
    print("| " + " | ".join(_means(name, rows)) + " |", flush=True)


def _means(name: str, rows: list[dict]) -> list[str]:
    means = [f"{np.mean([row[n] for row in rows]):.3f}" for n in clicking.names_of(rows)]
    return [name, str(len(rows)), *means]


def summarise(tables: dict[str, list[dict]]) -> dict[str, dict[str, Any]]:
    """Means and 95% intervals of each data set, and of the unweighted mean over all ("mean").

    Returns:
      {data set: {"images", "masks", "iou": {prompt: mean}, "interval": {prompt: [low, high]},
      "rank_correlation": of `rank_correlation`}}; "mean", for two data sets or more, has all but
      the last.
    """
    result, means, drawn = {}, [], []
    for seed, (name, rows) in enumerate(tables.items()):
        prompts = clicking.names_of(rows)
        values = np.array([[row[p] for p in prompts] for row in rows])
        images = [row["image"] for row in rows]
        means.append(values.mean(0))
        drawn.append(intervals.resampled_means(values, images, seed=seed))
        about = {"images": len(set(images)), "masks": len(rows)}
        about["rank_correlation"] = rank_correlation(rows)
        result[name] = about | _with_interval(prompts, means[-1], drawn[-1])
    if len(tables) > 1:
        about = {k: sum(one[k] for one in result.values()) for k in ("images", "masks")}
        prompts = clicking.names_of(next(iter(tables.values())))
        mean = _with_interval(prompts, np.mean(means, 0), np.mean(drawn, 0))
        result["mean"] = about | mean
    return result


def rank_correlation(rows: list[dict]) -> float | None:
    """Spearman's, of predicted and true IoU over all candidates; None where one never varies."""
    from scipy.stats import spearmanr

    true, predicted = (
        np.array([[row[name] for name in clicking.CANDIDATES[part::2]] for row in rows]).ravel()
        for part in (0, 1)
    )
    if np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return None
    return float(spearmanr(true, predicted).statistic)


def rankings(figures: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each data set: how far predicted IoUs rank as true ones do."""
    found = {name: one.get("rank_correlation") for name, one in figures.items()}
    return [
        f"{name}: predicted and true IoU of the three masks have a rank correlation of {value:.2f}"
        for name, value in found.items()
        if value is not None
    ]


def _with_interval(prompts: list[str], mean: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    ends = np.stack(intervals.bounds(drawn), 1)
    return {
        "iou": dict(zip(prompts, mean.tolist(), strict=True)),
        "interval": dict(zip(prompts, ends.tolist(), strict=True)),
    }


def table_rows(
    tables: dict[str, list[dict]], figures: dict[str, dict[str, Any]]
) -> list[list[str]]:
    """The table's lines: each data set, the mean over them with its interval, what is published.

    Args:
      tables: the rows of each data set.
      figures: of `summarise`.
    """
    lines = [_means(name, rows) for name, rows in tables.items()]
    prompts = clicking.names_of(next(iter(tables.values())))
    last = figures["mean" if len(tables) > 1 else next(iter(tables))]
    if len(tables) > 1:
        lines.append(["**mean**", str(last["masks"]), *(f"{last['iou'][p]:.3f}" for p in prompts)])
    if all(one["images"] > 1 for one in figures.values()):  # else chance cannot be seen
        halves = ((last["interval"][p][1] - last["interval"][p][0]) / 2 for p in prompts)
        lines.append(["+-", "", *(f"{half:.3f}" for half in halves)])
    for name, published in PAPER.items():
        values = (f"{published[p]:.3f}" if p in published else "" for p in prompts)
        lines.append([name, "", *values])
    return lines


def drops(tables: dict[str, list[dict]]) -> list[str]:
    """A sentence wherever more clicks lower a mean by more than chance explains."""
    sentences = []
    for name, rows in tables.items():
        if len({row["image"] for row in rows}) < 2:  # chance cannot be seen
            continue
        counted = [p for p in clicking.names_of(rows) if p.isdigit()]
        for fewer, more in itertools.pairwise(counted):
            mean, low, high = _gain(rows, more, fewer)
            if high < 0:
                sentences.append(
                    f"{name}: {title(more)} are worse than {title(fewer)} by {-mean:.4f} "
                    f"({-high:.4f} to {-low:.4f})"
                )
    return sentences


def write(
    out: Path,
    predictor: Any,
    sources: dict[str, Any],
    tables: dict[str, list[dict]],
    figures: dict[str, dict[str, Any]],
    lines: list[list[str]],
) -> None:
    """masks.csv, scores.json, table.md, two plots, and a contact sheet for each data set."""
    from sam_jax.evaluation.sheets import contact_sheet

    rows = [{"data": name, **row} for name, rows in tables.items() for row in rows]
    report.write_csv(out / "masks.csv", rows)
    report.write_json(out / "scores.json", figures)
    prompts = clicking.names_of(next(iter(tables.values())))
    text = report.markdown(["data", "masks", *map(title, prompts)], lines)
    report.write_text(out / "table.md", text + "\n")
    report.write_plot(out / "clicks.png", lambda figure: _draw_clicks(figure, figures))
    baseline = "GrabCut" if "GrabCut" in prompts else "filled box"
    gains = {name: _gain(rows, "box", baseline) for name, rows in tables.items()}
    label = f"mean IoU from a box: model minus {baseline}"
    report.write_plot(
        out / "differences.png",
        lambda figure: draw_differences(figure, gains, label),
        (6.4, 1.5 + 0.3 * len(gains)),
    )
    for name, rows in tables.items():
        sheet = contact_sheet(predictor, sources[name], rows, SHOWN)
        report.write_sheet(out / f"{name}.jpg", sheet)
    print(f"results in {out}")


def _gain(rows: list[dict], prompt: str, baseline: str) -> tuple[float, float, float]:
    """Mean difference of two prompts and the ends of its interval."""
    values = np.array([row[prompt] - row[baseline] for row in rows])
    drawn = intervals.resampled_means(values, [row["image"] for row in rows])
    return float(values.mean()), *(float(v) for v in intervals.bounds(drawn))


def _draw_clicks(figure: Any, figures: dict[str, dict[str, Any]]) -> None:
    """IoU by clicks, as in the paper's figure 9 (c)."""
    axes = figure.add_subplot()
    for name, one in figures.items():
        prompts = [p for p in one["iou"] if p.isdigit()]
        x, y = [int(p) for p in prompts], [one["iou"][p] for p in prompts]
        bold = name == "mean" or len(figures) == 1
        (line,) = axes.plot(x, y, "o-", lw=3 if bold else 1, alpha=1 if bold else 0.7, label=name)
        if bold:
            ends = np.array([one["interval"][p] for p in prompts])
            axes.fill_between(x, *ends.T, color=line.get_color(), alpha=0.2, lw=0)
        axes.plot([1], [one["iou"]["1 oracle"]], "^", mfc="none", color=line.get_color())
    axes.plot([], [], "^", mfc="none", color="gray", label="best of three")
    axes.set(xlabel="clicks", ylabel="mean IoU", ylim=(0, 1))
    axes.legend(fontsize=8)


def draw_differences(figure: Any, gains: dict[str, tuple[float, float, float]], label: str) -> None:
    """Differences and their intervals by data set, sorted, as in the paper's figure 9 (a)."""
    order = sorted(gains, key=lambda name: gains[name][0])
    axes = figure.add_subplot()
    for place, name in enumerate(order):
        mean, low, high = gains[name]
        axes.barh(place, mean, color="#2e7d32" if mean >= 0 else "#c62828", alpha=0.8)
        axes.plot([low, high], [place, place], color="black", lw=1)
        axes.annotate(
            f"{mean:+.3f}", (max(mean, high, 0), place), xytext=(4, -3), textcoords="offset points"
        )
    axes.set_yticks(range(len(order)), order)
    axes.margins(x=0.2)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel(label)
