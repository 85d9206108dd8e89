"""What a run tells: a bar or lines, metrics.jsonl, TensorBoard, pictures, profiles."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from sam_jax.storage import replacing

NAMED_AT_THE_END = 10
"""Skipped records that are named in the last words; skipped.json names all."""


class Watch:
    """Writes down and shows what a run measures.

    In a terminal a bar, elsewhere a line for each row; metrics.jsonl and validation.jsonl always,
    TensorBoard events where tensorboardX is installed, pictures as PNG files. A resumed run goes
    on in the same files, in which what came after its checkpoint is cut. Where `chief` is False,
    as on all processes of a pod but one, nothing is written or printed.

    Args:
      folder: the run's, which exists.
      total_steps: of the whole run.
      start_step: steps that were done before.
      chief: whether this process speaks for all.
      skipped: the dict that `sam_jax.data.pipeline.batches` fills: {key: "NAME: reason"}.
      profile: (first step, number of steps) to trace; no steps: none.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        start_step: int = 0,
        chief: bool = True,
        skipped: dict[str, str] | None = None,
        profile: tuple[int, int] = (0, 0),
    ):
        self._folder, self._total, self._chief = folder, total_steps, chief
        self._step, self._since = start_step, time.perf_counter()
        self._flops_per_step: float | None = None
        self._peak: float | None = None
        self._skipped = {} if skipped is None else skipped
        self._profile, self._tracing = profile, False
        self._bar = None
        if chief and sys.stdout.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                dynamic_ncols=True,
                file=sys.stdout,
            )
        self._log = _open_log(folder / "metrics.jsonl", start_step) if chief else None
        if chief:
            _open_log(folder / "validation.jsonl", start_step).close()
        self._board = _summary_writer(folder / "tensorboard") if chief else None

    def set_cost(self, flops_per_step: float | None, peak: float | None) -> None:
        """What a step computes and what the devices can: their ratio is told from here on.

        Args:
          flops_per_step: floating-point operations of a step on all devices together.
          peak: operations a second that all devices together reach at most; None: not known, as
            on a CPU, and no share is told.
        """
        self._flops_per_step, self._peak = flops_per_step, peak

    def scalars(self, step: int, row: dict[str, float], images: int) -> dict[str, float]:
        """Notes the means of the steps since the last call.

        Args:
          step: how many steps are done.
          row: with "loss"; "dice", "iou_first" and "iou_last" unless no masks are learned;
            "teacher" where embeddings are.
          images: how many images those steps saw in all.

        Returns:
          The row with "step", "seconds_per_step", "images_per_second" and, where it is known,
          "peak_share" (0..1).
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        per_step = seconds / max(step - self._step, 1)
        row = row | {
            "step": step,
            "seconds_per_step": per_step,
            "images_per_second": images / seconds,
        }
        if self._flops_per_step and self._peak:
            row["peak_share"] = self._flops_per_step / per_step / self._peak
        if self._log is not None:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()
        self._to_board(row, "train/")
        text = self._text(row)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(text)
        else:
            self.say(f"step {step}/{self._total}  {text}  {per_step:.2f} s/step")
        self._step = step
        self.restart_clock()
        return row

    def _text(self, row: dict[str, float]) -> str:
        text = f"loss {row['loss']:.3f}  "
        if "dice" in row:
            text += f"dice {row['dice']:.3f}  iou {row['iou_first']:.3f} -> {row['iou_last']:.3f}  "
        if "teacher" in row:
            text += f"missed of the teacher {row['teacher']:.3f}  "
        if "answers" in row:
            text += f"of its answers {row['answers']:.3f}  "
        text += f"{row['images_per_second']:.1f} images/s"
        if "peak_share" in row:
            text += f"  {row['peak_share']:.0%} of peak"
        return text + (f"  skipped {len(self._skipped)}" if self._skipped else "")

    def validation(
        self, step: int, row: dict[str, float], pictures: np.ndarray | None = None
    ) -> None:
        """Notes a validation: {"val/FOLDER/PROMPT": value}, and uint8 [H, W, 3] of its masks."""
        if not self._chief:
            return
        with open(self._folder / "validation.jsonl", "a") as log:
            log.write(json.dumps({"step": step, **row}) + "\n")
        self._to_board({"step": step, **row}, "")
        for line in _validation_lines(row):
            self.say(f"validation at step {step}: {line}")
        if pictures is not None:
            path = self._folder / "pictures" / f"step_{step:07d}.png"
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                Image.fromarray(pictures).save(temporary)
            if self._board is not None:
                self._board.add_image("validation", pictures, step, dataformats="HWC")
        if self._board is not None:
            self._board.flush()

    def trace(self, step: int, last: Any = None) -> None:
        """Called before each step: begins and ends the profile where its steps begin and end.

        Args:
          step: how many steps are done.
          last: arrays of the step before, which are waited for.
        """
        first, count = self._profile
        if not self._chief or not count:
            return
        if not self._tracing and first <= step < first + count:
            jax.block_until_ready(last)
            jax.profiler.start_trace(str(self._folder / "profile"), create_perfetto_trace=True)
            self._tracing = True
        elif self._tracing and step >= first + count:
            jax.block_until_ready(last)
            with self.paused():
                self._end_trace()

    def _end_trace(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False
        self.say(
            f"profile: {self._folder / 'profile'}; open its perfetto_trace.json.gz at "
            "https://ui.perfetto.dev, or the folder in TensorBoard or XProf"
        )

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        elif self._chief:
            print(text, flush=True)

    def restart_clock(self) -> None:
        """The time of the next steps counts from here on."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within (saving, validating) is not counted as training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def close(self) -> None:
        """Ends bar, files and profile, and names what the loader skipped."""
        if self._tracing:
            self._end_trace()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        for file in (self._log, self._board):
            if file is not None:
                file.close()
        self._log = self._board = None
        if self._chief and self._skipped:
            self._name_skipped()

    def _name_skipped(self) -> None:
        path = self._folder / "skipped.json"
        reasons = dict(sorted(self._skipped.items()))
        every = (json.loads(path.read_text()) if path.exists() else {}) | reasons
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(every, indent=1) + "\n")
        print(f"skipped {len(reasons)} records that cannot be read; all are in {path}:")
        for reason in list(reasons.values())[:NAMED_AT_THE_END]:
            print(f"  {reason}")
        if len(reasons) > NAMED_AT_THE_END:
            print(f"  and {len(reasons) - NAMED_AT_THE_END} more", flush=True)

    def _to_board(self, row: dict[str, float], prefix: str) -> None:
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(prefix + name, value, row["step"])


def _open_log(path: Path, done: int):
    """A file of rows, open for those after step `done`; rows of steps that were lost are cut."""
    rows = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= done]
    path.write_text("".join(kept))
    return open(path, "a")


def _validation_lines(row: dict[str, float]) -> list[str]:
    """One line a folder: "FOLDER: 1 0.725  box 0.800"."""
    folders: dict[str, list[str]] = {}
    for name, value in row.items():
        _, folder, prompt = name.split("/", 2)
        folders.setdefault(folder, []).append(f"{prompt} {value:.3f}")
    return [f"{folder}: {'  '.join(parts)}" for folder, parts in folders.items()]


def _summary_writer(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
