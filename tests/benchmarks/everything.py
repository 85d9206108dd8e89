"""All masks of each photograph of a folder on one sheet, to look at with one's own eyes.

    python -m tests.benchmarks.everything FOLDER --out sheet.jpg --pred-iou-thresh 0.7

Beside the sheet it prints how many masks each photograph got.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sam_jax
from sam_jax.data.images import find_images, read_image
from sam_jax.evaluation.report import write_sheet
from sam_jax.inference.folder import draw_overlay

ACROSS = 4


def main() -> int:
    """Generates, draws, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("folder", help="of the photographs")
    add("--model", default="tiny", help="a name or a file")
    add("--out", default="sheet.jpg", help="the sheet")
    add("--side", type=int, default=300, help="longest side of a photograph on it, pixels")
    add("--pred-iou-thresh", type=float, default=0.88)
    add("--stability-score-thresh", type=float, default=0.95)
    add("--max-overlap", type=float, default=0.0, help="drop masks that overlap more; 0: keep all")
    args = parser.parse_args()
    generator = sam_jax.MaskGenerator(
        sam_jax.load(args.model),
        pred_iou_thresh=args.pred_iou_thresh,
        stability_score_thresh=args.stability_score_thresh,
    )
    cells = []
    for path in find_images(args.folder):
        photo = read_image(path)
        records = generator.generate(photo)
        if args.max_overlap:
            records = sam_jax.remove_overlaps(records, max_iou=args.max_overlap)
        print(f"{path.name}: {len(records)} masks", flush=True)
        cells.append(draw_overlay(photo, records))
    rows = [cells[i : i + ACROSS] for i in range(0, len(cells), ACROSS)]
    write_sheet(Path(args.out), rows, args.side)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
