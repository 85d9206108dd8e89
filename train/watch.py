"""What a run tells while it runs: a line, metrics.jsonl, TensorBoard, validation, pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam_jax.checkpoint.load import Sam
from sam_jax.data.sources import RecordError, Sa1bFolder
from sam_jax.evaluation.single_point import measure_folder
from sam_jax.inference.overlay import draw_masks, tile
from sam_jax.inference.predictor import Predictor
from sam_jax.ops.clicks import centre_click
from sam_jax.ops.masks import mask_boxes
from sam_jax.ops.rle import decode

PICTURES = 4


class Watch:
    """Writes what a run measures: metrics.jsonl always, TensorBoard where tensorboardX is there.

    A resumed run goes on in the same files. Nothing is written where `chief` is False, as on all
    processes of a pod but one.
    """

    def __init__(self, folder: Path, total_steps: int, start: int, chief: bool = True):
        self._chief, self._since, self._step = chief, time.time(), start
        self._bar = tqdm(
            total=total_steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=None if chief else True,
        )
        self._log = open(folder / "metrics.jsonl", "a") if chief else None
        self._board = _summary_writer(folder / "tensorboard") if chief else None

    def scalars(self, step: int, row: dict[str, float], images: int) -> dict[str, float]:
        """Notes the means since the last call, over steps that saw `images` images in all.

        Returns:
          The row with "seconds_per_step" and "images_per_second" added.
        """
        seconds = time.time() - self._since
        row = row | {
            "step": step,
            "seconds_per_step": seconds / max(step - self._step, 1),
            "images_per_second": images / max(seconds, 1e-9),
        }
        self._write(row)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(
            f"loss {row['loss']:.3f} iou {row['iou_first']:.3f} -> {row['iou_last']:.3f} "
            f"{row['images_per_second']:.1f} images/s"
        )
        self._step = step
        self.restart_clock()
        return row

    def validation(self, step: int, row: dict[str, float], pictures: np.ndarray | None) -> None:
        """Notes a validation's numbers and uint8 [H, W, 3] of its masks."""
        self._write({"step": step, **row})
        if self._chief:
            self._bar.write(f"step {step}: " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()))
        if self._board is not None and pictures is not None:
            self._board.add_image("validation", pictures, step, dataformats="HWC")
            self._board.flush()
        self.restart_clock()

    def restart_clock(self) -> None:
        """What happened since the last call (saving, validating) is not counted as training."""
        self._since = time.time()

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        for file in (self._log, self._board):
            if file is not None:
                file.close()

    def _write(self, row: dict[str, float]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(
                        name if "/" in name else f"train/{name}", value, row["step"]
                    )


def _summary_writer(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def validate(sam: Sam, folders: list[Path], images: int, clicks: int = 3) -> dict[str, float]:
    """Mean IoU by folder and prompt: {"val/FOLDER/1": ..., "val/FOLDER/box": ...}.

    Args:
      sam: the model.
      folders: in SA-1B form.
      images: only the first so many of each; 0: all.
      clicks: the most clicks.
    """
    predictor, result = Predictor(sam), {}
    for folder in folders:
        rows = list(measure_folder(predictor, folder, clicks, images))
        names = [n for n in rows[0] if n not in ("image", "mask", "area")] if rows else []
        result |= {f"val/{folder.name}/{n}": float(np.mean([r[n] for r in rows])) for n in names}
    return result


def prediction_sheet(sam: Sam, folder: Path, count: int = PICTURES, side: int = 256) -> np.ndarray:
    """The first photos of a folder: truth, the mask of one click, that of a box; uint8 [H, W, 3].

    Each photo shows its largest mask.
    """
    from PIL import Image

    predictor, source, rows = Predictor(sam), Sa1bFolder(folder), []
    for index in range(len(source)):
        try:
            record = source[index]
        except RecordError:
            continue
        masks = [mask for mask in map(decode, record["rles"]) if mask.any()]
        if not masks:
            continue
        true = max(masks, key=np.count_nonzero).astype(bool)
        embedding = predictor.embed(record["image"])
        box = mask_boxes(true[None])[0] + np.array([0, 0, 1, 1])
        click = predictor.predict(embedding, [centre_click(true)], [1], multimask=True)
        boxed = predictor.predict(embedding, boxes_xyxy=box, multimask=True)
        shown = [true] + [out.masks[int(np.argmax(out.scores))] for out in (click, boxed)]
        rows.append([_thumbnail(draw_masks(record["image"], [m]), side) for m in shown])
        if len(rows) == count:
            break
    if not rows:
        raise ValueError(f"folder: {folder} has no photo with a mask")
    return np.asarray(tile([[Image.fromarray(t) for t in row] for row in rows]).convert("RGB"))


def _thumbnail(photo: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.pad(Image.fromarray(photo), (side, side)))
