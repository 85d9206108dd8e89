"""Two models, or two precisions of one, on the same masks and the same clicks.

    sam-jax evaluate compare tiny runs/mine/model.safetensors --data DIR
    sam-jax evaluate compare vit_b vit_b@bfloat16 --data DIR

Every mask is measured with both, so that what is hard for both drops out of their difference. The
clicks are those that are simulated on A, and B gets the same ones. That favours A after the first,
as they lie where A errs; exchange A and B to see by how much, or give each its own with
--own-clicks. The difference is B minus A, with its 95% interval (bootstrap over images).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.evaluation import clicks as clicking
from sam_jax.evaluation import data_sets, intervals, models, report
from sam_jax.evaluation.clicks import Protocol
from sam_jax.evaluation.journal import Journal, each_batch, in_order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate compare`."""
    add = parser.add_argument
    add("models", nargs=2, metavar=("A", "B"), help=models.HELP)
    add("--data", required=True, metavar="DIR", nargs="+", help=data_sets.HELP)
    add("--clicks", type=int, default=5, metavar="N", help="the most clicks (default 5)")
    add(
        "--first-click",
        choices=("centre", "random"),
        default="centre",
        help="the first one's place",
    )
    add("--seed", type=int, default=0, metavar="N", help="of random first clicks (default 0)")
    add("--own-clicks", action="store_true", help="later clicks lie where each model itself errs")
    add("--images", type=int, default=0, metavar="N", help="only the first N of each data set")
    add("--out", metavar="DIR", help="where rows, table and plot go; a second run goes on there")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate compare`.

    Raises:
      ValueError: no data, no such model, or clicks below 1.
    """
    if args.clicks < 1:
        raise ValueError(f"--clicks: expected at least 1, got {args.clicks}")
    sources = data_sets.open_data(args.data)
    opened = [models.open_model(name) for name in args.models]
    predictors = [predictor for predictor, _ in opened]
    protocol = Protocol(args.clicks, args.first_click, args.seed)
    out = Path(args.out) if args.out else None
    tables = {}
    for name, source in sources.items():
        settings = {"table": "compare", "data": repr(source), "records": len(source)}
        settings |= vars(protocol) | {"own clicks": args.own_clicks}
        settings |= {"A": opened[0][1], "B": opened[1][1]}
        with Journal(out and out / "rows" / f"{name}.jsonl", settings) as journal:
            tables[name] = measure(
                predictors, source, protocol, journal, args.images, args.own_clicks, name
            )
        if not tables[name]:
            raise ValueError(f"--data: {name} has no masks that can be measured")
    figures = summarise(tables)
    text = table(figures, args.models)
    print(text)
    if out:
        write(out, tables, figures, text, args.models)


def measure(
    predictors: list[Any],
    source: Any,
    protocol: Protocol,
    journal: Journal,
    images: int = 0,
    own_clicks: bool = False,
    name: str = "",
) -> list[dict[str, Any]]:
    """One row a mask: the FACTS of `clicks`, and {prompt: [IoU of A, IoU of B]}.

    Args:
      predictors: two `sam_jax.Predictor`s.
      source: of records.
      protocol: what is asked of both.
      journal: what it holds is not measured again.
      images: only the first so many records; 0: all.
      own_clicks: whether later clicks follow each model's own errors.
      name: shown beside the progress bar.
    """

    def of(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        embedded = [models.embed_each(predictor, records) for predictor in predictors]
        return [
            _rows(predictors, both, record, protocol, own_clicks)
            for record, *both in zip(records, *embedded, strict=True)
        ]

    at_once = models.images_at_once(predictors[0])
    each_batch(source, journal, of, at_once, name=name, images=images)
    return [row for rows in in_order(journal, source, images) for row in rows]


def _rows(
    predictors: list[Any],
    embeddings: list[Any],
    record: dict[str, Any],
    protocol: Protocol,
    own_clicks: bool,
) -> list[dict[str, Any]]:
    rows = []
    for numbers, masks in clicking.true_masks(record):
        firsts = clicking.first_clicks(masks, protocol, record["name"], numbers)
        replay, ious = None, []
        for predictor, embedding in zip(predictors, embeddings, strict=True):
            clicked = clicking.click(predictor, embedding, masks, protocol.clicks, firsts, replay)
            if not own_clicks:
                replay = clicked.points_xy, clicked.labels
            box = clicking.measure_boxes(predictor, embedding, masks, record["image"])["box"]
            ious.append(clicked.ious | {"box": box})
        for i, row in enumerate(clicking.facts_of(record, numbers, masks, firsts)):
            rows.append(row | {p: [float(one[p][i]) for one in ious] for p in ious[0]})
    return rows


def summarise(tables: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{data set: {prompt: {"a", "b", "difference", "interval", "masks", "images"}}}.

    "mean" is the unweighted mean over data sets, where there are two or more.
    """
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    every_drawn, every_mean = [], []
    for seed, (name, rows) in enumerate(tables.items()):
        prompts = clicking.names_of(rows)
        values = np.array([[row[p] for p in prompts] for row in rows])  # [M, prompts, 2]
        images = [row["image"] for row in rows]
        drawn = intervals.resampled_means(values[..., 1] - values[..., 0], images, seed=seed)
        every_drawn.append(drawn)
        every_mean.append(values.mean(0))
        figures[name] = _figures(prompts, every_mean[-1], drawn, len(rows), len(set(images)))
    if len(tables) > 1:
        counts = (
            sum(next(iter(f.values()))[k] for f in figures.values()) for k in ("masks", "images")
        )
        mean, drawn = np.mean(every_mean, 0), np.mean(every_drawn, 0)
        figures["mean"] = _figures(prompts, mean, drawn, *counts)
    return figures


def _figures(prompts, mean: np.ndarray, drawn: np.ndarray, masks: int, images: int) -> dict:
    low, high = intervals.bounds(drawn)
    return {
        prompt: {
            "a": float(mean[k, 0]),
            "b": float(mean[k, 1]),
            "difference": float(mean[k, 1] - mean[k, 0]),
            "interval": [float(low[k]), float(high[k])],
            "masks": masks,
            "images": images,
        }
        for k, prompt in enumerate(prompts)
    }


def table(figures: dict[str, dict[str, dict[str, Any]]], names: list[str]) -> str:
    """The figures as Markdown, a row for each data set and prompt."""
    from sam_jax.evaluation.single_point import title

    rows = []
    # Of one image chance cannot be seen, nor in a mean over data sets that such a one is among.
    fewest = min(one["images"] for prompts in figures.values() for one in prompts.values())
    for data, prompts in figures.items():
        for prompt, one in prompts.items():
            low, high = one["interval"]
            several = (fewest if data == "mean" else one["images"]) > 1
            ends = f"{low:+.4f} to {high:+.4f}" if several else "one image"
            clear = several and (low > 0 or high < 0)
            better = ("B" if low > 0 else "A") if clear else "not clear"
            numbers = [f"{one['a']:.4f}", f"{one['b']:.4f}", f"{one['difference']:+.4f}"]
            rows.append([data, str(one["masks"]), title(prompt), *numbers, ends, better])
    header = ["data", "masks", "prompt", f"A: {names[0]}", f"B: {names[1]}", "B - A"]
    return report.markdown([*header, "95% interval", "better"], rows)


def write(
    out: Path,
    tables: dict[str, list[dict[str, Any]]],
    figures: dict[str, dict[str, dict[str, Any]]],
    text: str,
    names: list[str],
) -> None:
    """masks.csv, scores.json, table.md and differences.png."""
    from sam_jax.evaluation.single_point import draw_differences, title

    rows = []
    for data, own in tables.items():
        for row in own:
            facts = {"data": data} | {k: row[k] for k in clicking.FACTS}
            both = {
                f"{m} {p}": row[p][i] for p in clicking.names_of(own) for i, m in enumerate("AB")
            }
            rows.append(facts | both)
    report.write_csv(out / "masks.csv", rows)
    report.write_json(out / "scores.json", figures)
    report.write_text(out / "table.md", text + "\n")
    prompts = [p for p in ("1", "5", "box") if p in clicking.names_of(next(iter(tables.values())))]

    def draw(figure: Any) -> None:
        parts = figure.subfigures(len(prompts), 1, squeeze=False)[:, 0]
        for part, prompt in zip(parts, prompts, strict=True):
            gains = {
                n: (f[prompt]["difference"], *f[prompt]["interval"]) for n, f in figures.items()
            }
            draw_differences(part, gains, f"mean IoU, {title(prompt)}: {names[1]} minus {names[0]}")

    size = (6.4, len(prompts) * (1.2 + 0.3 * len(figures)))
    report.write_plot(out / "differences.png", draw, size)
    print(f"results in {out}")
