"""What evaluations leave behind besides their tables: files, plots, sheets of pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.storage import replacing


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A CSV file with the columns of all rows, in the order in which they come up."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_plot(
    path: Path, draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 4.8)
) -> bool:
    """A plot where matplotlib is installed; a sentence where not.

    Args:
      path: of the PNG.
      draw: draws on a matplotlib Figure.
      size: in inches.

    Returns:
      Whether it was written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {path.name}: needs matplotlib (pip install 'sam_jax[plots]')")
        return False
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return True


def extremes(scores: Sequence[float], count: int) -> list[list[int]]:
    """Indices of the `count` best, those around the median, and the worst, each best first."""
    order = np.argsort(-np.asarray(scores), kind="stable").tolist()
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    return [order[:count], order[middle : middle + count], order[len(order) - count :]]


def write_sheet(path: Path, rows: Sequence[Sequence[Any]], side: int = 240) -> None:
    """Pictures in rows, each scaled into a square of `side` pixels, as a JPEG.

    Args:
      path: of the file.
      rows: PIL images.
      side: of a square.
    """
    from PIL import Image

    from sam_jax.inference.overlay import tile

    panels = []
    for row in rows:
        panels.append([])
        for picture in row:
            scale = side / max(picture.size)
            size = tuple(max(1, round(n * scale)) for n in picture.size)
            panel = Image.new("RGB", (side, side), (20, 20, 20))
            small = picture.resize(size, Image.Resampling.LANCZOS)
            panel.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
            panels[-1].append(panel)
    with replacing(path) as temporary:
        tile(panels).save(temporary, "JPEG", quality=90)
