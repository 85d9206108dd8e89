"""Contact sheets: the best, the middle and the worst masks of a data set, true and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SIDE = 220
"""Pixels of a panel."""


def contact_sheet(
    predictor: Any, source: Any, rows: Sequence[dict[str, Any]], count: int
) -> list[list[Any]]:
    """Three rows of pictures in pairs, best first: the true mask, and the one after one click.

    Args:
      predictor: of the model that the rows are of; it predicts the masks shown again.
      source: of their records.
      rows: of `single_point.measure`.
      count: masks in a row.

    Returns:
      Three lists of PIL images.
    """
    from sam_jax.data.sources import RecordError
    from sam_jax.evaluation.report import extremes

    groups = extremes([row["1"] for row in rows], count)
    seen: dict[int, tuple[dict, Any]] = {}
    sheet = []
    for group in groups:
        sheet.append([])
        for row in (rows[i] for i in group):
            try:
                if row["record"] not in seen:
                    record = source[row["record"]]
                    seen[row["record"]] = record, predictor.embed(record["image"])
            except RecordError:  # it could be read before
                continue
            record, embedding = seen[row["record"]]
            sheet[-1] += _pair(predictor, embedding, record, row)
    return [row for row in sheet if row]


def _pair(predictor: Any, embedding: Any, record: dict[str, Any], row: dict[str, Any]) -> list[Any]:
    """Two pictures of a mask's surroundings: what is true, and the click with what came of it."""
    from PIL import Image

    from sam_jax.inference.overlay import draw_masks, draw_prompt, write_text
    from sam_jax.ops.masks import mask_boxes
    from sam_jax.ops.rle import decode

    true = decode(record["rles"][row["mask"]])
    point = (row["x"], row["y"])
    out = predictor.predict(embedding, [point], [1], multimask=True)
    best = out.masks[int(np.argmax(out.scores))]
    x0, y0, x1, y1 = mask_boxes(true)
    side = max(x1 - x0, y1 - y0, 32) * 3 // 4
    centre_x, centre_y = (x0 + x1) // 2, (y0 + y1) // 2
    height, width = true.shape
    rows = slice(max(centre_y - side, 0), min(centre_y + side, height))
    columns = slice(max(centre_x - side, 0), min(centre_x + side, width))
    pictures = []
    for mask, first in ((true, 2), (best, 0)):
        part = np.ascontiguousarray(record["image"][rows, columns])
        picture = Image.fromarray(part)
        scale = SIDE / max(picture.size)
        size = tuple(max(1, round(n * scale)) for n in picture.size)
        large = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        own = Image.fromarray(np.ascontiguousarray(mask[rows, columns])).resize(size, 0)
        picture = Image.fromarray(draw_masks(large, [np.asarray(own, bool)], first))
        if first == 0:
            at = ((point[0] + 0.5 - columns.start) * scale, (point[1] + 0.5 - rows.start) * scale)
            draw_prompt(picture, [at], [1], None)
            write_text(picture, (0, 0), f"{row['1']:.2f}", (255, 255, 255))
        pictures.append(picture)
    return pictures
