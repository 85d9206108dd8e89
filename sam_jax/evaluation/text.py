"""Masks for category names, scored on any data in COCO's form (paper section 7.5).

For each image and each category in it, the category's name is the prompt; what is right is the
union of all of its masks. The mask of highest predicted IoU of the three counts, and for the oracle
the best of them.

The model must take text (SamConfig.text_width). Names are read by the text tower in its file;
where it came without one, or others are to be tried, --embeddings is an .npz or .safetensors with
a text embedding [T] for each name.

--data drawn:100 asks for the objects of 100 drawn scenes by phrases instead; with --clip, the CLIP
that the model was trained beside, also by their own crops, as in training: the modality gap.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.checkpoint.clip import load_clip
from sam_jax.evaluation import described, intervals, models, report
from sam_jax.evaluation.coco_scores import digest, open_truth
from sam_jax.evaluation.journal import Journal, each_record, in_order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax evaluate text`."""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="DATA",
        help="FILE.json, or FILE.json:FOLDER with pictures, or drawn:NUMBER of scenes",
    )
    add("--model", required=True, metavar="NAME", help="a model that takes text: " + models.HELP)
    add("--embeddings", metavar="FILE", help="text embeddings by name, see above")
    add("--clip", metavar="PATH", help="a CLIP with both towers, for drawn scenes")
    add("--images", type=int, default=0, metavar="N", help="only the first N images")
    add(
        "--out",
        metavar="DIR",
        help="where rows and table go; a second run goes on there, but for drawn scenes",
    )


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax evaluate text`.

    Raises:
      ValueError: no data, no categories in it, no such model, one that takes no text, or a category
        without an embedding of the model's width, or that the text tower cannot read.
    """
    drawn = args.data.startswith("drawn:")
    useless = ("embeddings", "images") if drawn else ("clip",)
    for name in useless:
        if getattr(args, name):
            raise ValueError(f"--{name}: says nothing with --data {args.data}; leave it out")
    if drawn:
        _run_drawn(args)
        return
    truth = open_truth(args.data)
    if truth.document is None:
        raise ValueError(f"--data: expected a COCO file with categories, got {truth!r}")
    predictor, about = models.open_model(args.model)
    if not predictor.config.text_width:
        raise ValueError(f"--model: {args.model} takes no text (its text_width is 0)")
    names = list(truth.categories.values())
    if args.embeddings:
        embeddings = embed_names(names, args.embeddings, predictor.config)
    else:
        embeddings = dict(zip(names, predictor.text_tower.embed(names), strict=True))
    out = Path(args.out) if args.out else None
    settings = {"table": "text", "data": repr(truth), "records": len(truth)}
    settings |= about
    if args.embeddings:
        settings["embeddings"] = digest(args.embeddings)
    with Journal(out and out / "text.jsonl", settings) as journal:
        measured = measure(predictor, truth.categories, embeddings)
        each_record(truth, journal, measured, name="text", images=args.images)
    rows = [row for rows in in_order(journal, truth, args.images) for row in rows]
    if not rows:
        raise ValueError("--data: no image with masks could be measured")
    figures = summarise(rows)
    text = table(args.model, figures)
    print(text)
    if out:
        report.write_csv(out / "rows.csv", rows)
        report.write_json(out / "scores.json", figures)
        report.write_text(out / "table.md", text + "\n")
        print(f"results in {out}")


def _run_drawn(args: argparse.Namespace) -> None:
    """Drawn scenes: see `described`."""
    count = args.data.removeprefix("drawn:")
    if not count.isdecimal() or not int(count):
        raise ValueError(f"--data: expected drawn:NUMBER, as drawn:100, got {args.data}")
    predictor, _ = models.open_model(args.model)
    predictor.text_tower  # noqa: B018  its error comes before the work
    clip = load_clip(args.clip) if args.clip else None
    rows = described.measure(predictor, int(count), clip)
    figures = described.summarise(rows)
    text = described.table(args.model, figures)
    print(text)
    if args.out:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        report.write_csv(out / "rows.csv", rows)
        report.write_json(out / "scores.json", figures)
        report.write_text(out / "table.md", text + "\n")
        print(f"results in {out}")


def embed_names(names: Sequence[str], path: str, config: Any) -> dict[str, np.ndarray]:
    """The text embedding float32 [T] of each name.

    Args:
      names: of categories.
      path: an .npz or .safetensors with an array for each.
      config: the model's.

    Raises:
      ValueError: the file cannot be read, or an array is missing or of another width.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.numpy import load_file

            arrays: Any = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    except Exception as error:  # both raise whatever damaged bytes lead to
        raise ValueError(f"--embeddings: can't read {path}: {error}") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"--embeddings: {path} has no embedding of {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    for name in names:
        if arrays[name].shape != (config.text_width,):
            raise ValueError(
                f"--embeddings: {name}: expected {config.text_width} numbers (the model's "
                f"text_width), got shape {list(arrays[name].shape)}"
            )
    return {name: np.asarray(arrays[name], np.float32) for name in names}


def measure(
    predictor: Any, categories: dict[int, str], embeddings: dict[str, np.ndarray]
) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """From a record of a Truth to a row for each category in it."""
    from sam_jax.ops.clicks import iou
    from sam_jax.ops.rle import decode

    def of(record: dict[str, Any]) -> list[dict[str, Any]]:
        unions: dict[str, np.ndarray] = {}
        for one in record["truth"]:
            name, mask = categories[one["category_id"]], decode(one["segmentation"])
            unions[name] = unions[name] | mask if name in unions else mask
        unions = {name: mask for name, mask in unions.items() if mask.any()}
        if not unions:
            return []
        embedding, rows = predictor.embed(record["image"]), []
        for name, true in unions.items():
            out = predictor.predict(embedding, text=embeddings[name], multimask=True)
            ious = [iou(mask, true) for mask in out.masks]
            scores = {"iou": ious[int(np.argmax(out.scores))], "oracle": max(ious)}
            rows.append({"image": record["name"], "category": name} | scores)
        return rows

    return of


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean over pairs of image and category with its interval, and over categories."""
    values = np.array([[row["iou"], row["oracle"]] for row in rows])
    low, high = intervals.bounds(intervals.resampled_means(values, [row["image"] for row in rows]))
    by_name: dict[str, list[np.ndarray]] = {}
    for row, value in zip(rows, values, strict=True):
        by_name.setdefault(row["category"], []).append(value)
    means = {name: np.mean(own, 0) for name, own in by_name.items()}
    return {
        "pairs": len(rows),
        "images": len({row["image"] for row in rows}),
        "iou": float(values[:, 0].mean()),
        "interval": [float(low[0]), float(high[0])],
        "oracle": float(values[:, 1].mean()),
        "over categories": float(np.mean([mean[0] for mean in means.values()])),
        "by category": {name: float(mean[0]) for name, mean in sorted(means.items())},
    }


def table(name: str, figures: dict[str, Any]) -> str:
    """The means as Markdown, and the best and worst categories; the paper has no numbers."""
    low, high = figures["interval"]
    half = f" +- {(high - low) / 2:.3f}" if figures["images"] > 1 else ""
    row = [name, str(figures["images"]), str(figures["pairs"]), f"{figures['iou']:.3f}{half}"]
    row += [f"{figures['oracle']:.3f}", f"{figures['over categories']:.3f}"]
    header = ["text", "images", "prompts", "mean IoU", "oracle", "mean over categories"]
    order = sorted(figures["by category"], key=figures["by category"].get, reverse=True)
    ends = order if len(order) <= 10 else [*order[:5], *order[-5:]]
    listed = ", ".join(f"{n} {figures['by category'][n]:.2f}" for n in ends)
    return report.markdown(header, [row]) + f"\n\nbest to worst: {listed}"
