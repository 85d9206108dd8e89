"""The page of `python -m train.check_data`: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
import itertools
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sam_jax.data.sources import Record, RecordError, Source
from sam_jax.inference import overlay
from sam_jax.ops import rle as rle_ops
from sam_jax.storage import replacing
from train.data_problems import KINDS, PER_IMAGE, SIZE_EDGES, Findings, Problem

SIDE = 480  # of the pictures on the page, pixels at most
EACH = 4  # pictures of each kind of problem
NAMED = 50  # problems of a kind that are named
MASKS = 200  # masks drawn into one picture at most

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse } td, th { padding: .1em .8em; text-align: right }
td.bar { width: 20em; text-align: left } td.bar div { background: #3a7bd5; height: .8em }
.pictures { display: flex; flex-wrap: wrap; gap: 12px } figure { margin: 0; max-width: 480px }
figcaption { font-size: 13px; color: #555; overflow-wrap: anywhere }
img { max-width: 100%; display: block } li { overflow-wrap: anywhere } .grave { color: #b00020 }
"""


def write_report(
    out: Path, title: str, source: Source, indices: np.ndarray, findings: Findings, samples: int
) -> None:
    """Writes the page; it needs no other file and no network.

    Args:
      out: the HTML file; written to a temporary name and renamed.
      title: what the data is called.
      source: read again for the pictures.
      indices: int [R], the records that were read.
      findings: what was found.
      samples: records that are shown as a sample.
    """
    f = findings
    verdict = f"{f.grave:,} problems" if f.grave else "Nothing is wrong"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(repr(source))}</p>",
        f"<p><b class={'grave' if f.grave else 'fine'}>{verdict}.</b> {f.images:,} images "
        f"with {f.masks:,} masks; {f.unreadable:,} records could not be read.</p>",
        "<h2>Relative size of masks</h2><p>sqrt(mask area / image area)</p>",
        _bars(
            [f"{a:.2f} &ndash; {b:.2f}" for a, b in itertools.pairwise(SIZE_EDGES)],
            f.relative_sizes,
        ),
        "<h2>Masks in an image</h2>",
        _bars([name for name, _ in PER_IMAGE], f.per_image),
    ]
    parts += [_section(kind, source, f) for kind in KINDS if f.counts[kind]]
    chosen = np.linspace(0, len(indices) - 1, min(samples, len(indices))).round().astype(int)
    pictures = [_figure(source, int(index), [], "") for index in indices[chosen]]
    parts += ["<h2>A sample</h2>", f"<div class=pictures>{''.join(pictures)}</div>"]
    with replacing(out) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _bars(names: list[str], counts: np.ndarray) -> str:
    most = max(1, int(counts.max()))
    rows = "".join(
        f"<tr><td>{name}<td>{count:,}<td class=bar><div style='width:{100 * count / most:.1f}%'>"
        "</div>"
        for name, count in zip(names, counts.tolist(), strict=True)
    )
    return f"<table>{rows}</table>"


def _section(kind: str, source: Source, findings: Findings) -> str:
    """One kind of problem: what it means, pictures, names."""
    about, problems = KINDS[kind], findings.kept[kind]
    mark = " class=grave" if about.grave else ""
    text = f"<h2{mark}>{escape(kind)}: {findings.counts[kind]:,}</h2><p>{escape(about.meaning)}</p>"
    shown: dict[int, list[Problem]] = {}
    for problem in problems:  # different records where there are some
        if problem.index >= 0 and (problem.index in shown or len(shown) < EACH):
            shown.setdefault(problem.index, []).append(problem)
    figures = []
    for index, ones in shown.items():
        detail = "; ".join(one.detail for one in ones[:5]) + "; ..." * (len(ones) > 5)
        figures.append(_figure(source, index, [p.mask for p in ones if p.mask >= 0], detail))
    names = "".join(f"<li>{escape(p.name)}: {escape(p.detail)}" for p in problems[:NAMED])
    more = findings.counts[kind] - min(len(problems), NAMED)
    names += f"<li>and {more:,} more" if more else ""
    return f"{text}<div class=pictures>{''.join(figures)}</div><ul>{names}</ul>"


def _figure(source: Source, index: int, marked: list[int], detail: str) -> str:
    """A record with its masks, or only those that are marked."""
    try:
        record = source[index]
        picture = draw_record(record, marked)
    except (RecordError, ValueError) as error:
        return f"<figure><figcaption>{escape(str(error))}</figcaption></figure>"
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    caption = f"{record['name']}, {len(record['rles'])} masks" + f". {detail}" * bool(detail)
    return (
        f"<figure><img src='data:image/jpeg;base64,{data}' alt=''>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def draw_record(record: Record, marked: list[int]) -> Image.Image:
    """A record at SIDE pixels at most with its masks in colour.

    Args:
      record: image uint8 [H, W, 3] and rles.
      marked: numbers of the masks to draw, with a ring around small ones; [] draws all alike.

    Raises:
      ValueError: a mask is damaged.
    """
    image = Image.fromarray(record["image"])
    image.thumbnail((SIDE, SIDE))
    numbers = marked or range(min(len(record["rles"]), MASKS))
    masks, boxes = [], []
    for number in numbers:
        rle = record["rles"][number]
        mask = Image.fromarray(rle_ops.decode(rle))
        masks.append(np.asarray(mask.resize(image.size, Image.Resampling.NEAREST)))
        boxes.append(rle_ops.bbox_xywh(rle))
    picture = Image.fromarray(overlay.draw_masks(np.asarray(image), masks))
    if marked:
        draw = ImageDraw.Draw(picture)
        for (x, y, width, height), number in zip(boxes, numbers, strict=True):
            scale = image.width / record["rles"][number]["size"][1]
            x, y = (x + width / 2) * scale, (y + height / 2) * scale
            radius = max(10.0, 0.75 * scale * max(width, height))
            ring = [x - radius, y - radius, x + radius, y + radius]
            if width and radius < SIDE / 4:  # larger ones are seen without
                draw.ellipse(ring, outline=(255, 0, 60), width=2)
    return picture
