"""Stops a run whose numbers are no numbers any more, and keeps the batch that did it.

    python -m train.guard runs/NAME/bad_batch_STEP.npz [OUT.png]

prints what is in such a batch and draws its images with their masks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sam_jax.storage import replacing

WATCHED = ("loss", "grad_norm")


class NanGuard:
    """Looks at each step's loss and gradient norm one step late, so that no step waits for it.

    `check` is called after a step was started and looks at the step before, which is done or
    nearly so; `finish` looks at the last one. Call it before anything is saved: weights after a
    step that is not finite are worth nothing.

    Args:
      folder: where the batch goes.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._last: tuple[int, dict[str, Any], dict[str, Any]] | None = None

    def check(self, step: int, metrics: dict[str, Any], batch: dict[str, Any]) -> None:
        """Looks at the step before this one.

        Args:
          step: the number of the step that was just started.
          metrics: its metrics, of which WATCHED are looked at.
          batch: what it was given, numpy arrays or arrays of this process's devices.

        Raises:
          FloatingPointError: the step before was not finite; its batch is saved.
        """
        before, self._last = self._last, (step, metrics, batch)
        if before is not None:
            self._look(*before)

    def finish(self) -> None:
        """Looks at the last step that was checked in; raises as `check` does."""
        before, self._last = self._last, None
        if before is not None:
            self._look(*before)

    def _look(self, step: int, metrics: dict[str, Any], batch: dict[str, Any]) -> None:
        values = {name: float(jax.device_get(metrics[name])) for name in WATCHED if name in metrics}
        if all(np.isfinite(value) for value in values.values()):
            return
        part = f"_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._folder / f"bad_batch_{step}{part}.npz"
        with replacing(path) as temporary:
            np.savez(temporary, **{name: _local(value) for name, value in batch.items()})
        found = ", ".join(f"{name} {value}" for name, value in values.items())
        raise FloatingPointError(
            f"step {step} is not finite ({found}); its batch is in {path}, and python -m "
            f"train.guard {path} shows it. If nothing is wrong with it, try a lower --optim.lr or "
            "--optim.clip 1. Nothing was saved since: the same command goes on from the last "
            "checkpoint"
        )


def _local(value: Any) -> np.ndarray:
    """The part of an array that this process has."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return np.concatenate([np.asarray(shard.data) for shard in value.addressable_shards])
    return np.asarray(jax.device_get(value))


def describe(batch: dict[str, np.ndarray]) -> list[str]:
    """A line for each array: name, type, shape, least and largest value, what is not finite."""
    lines = []
    for name, value in batch.items():
        text = f"{name:12s} {value.dtype} {list(value.shape)}"
        if value.size:
            text += f"  from {value.min()} to {value.max()}"
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            text += f"  NOT FINITE: {(~np.isfinite(value)).sum()} values"
        lines.append(text)
    if "mask_valid" in batch:
        lines.append(f"masks of each image: {batch['mask_valid'].sum(1).tolist()}")
    return lines


def draw(batch: dict[str, np.ndarray]) -> np.ndarray | None:
    """uint8 [H, W, 3]: each image beside itself with its masks; None where it has no images."""
    from PIL import Image

    from sam_jax.inference.overlay import draw_masks, tile

    if "image" not in batch:
        return None
    rows = []
    for image, masks, valid in zip(
        batch["image"], batch["masks"], batch["mask_valid"], strict=True
    ):
        step = image.shape[0] // masks.shape[-1]
        shown = [np.kron(m >= 128, np.ones((step, step), bool)) for m in masks[valid]]
        rows.append([Image.fromarray(p) for p in (image, draw_masks(image, shown))])
    return np.asarray(tile(rows).convert("RGB"))


def main(argv: list[str]) -> int:
    """The command: 0, or 2 for wrong input."""
    if not 1 <= len(argv) <= 2 or not Path(argv[0]).is_file():
        print("usage: python -m train.guard FOLDER/bad_batch_STEP.npz [OUT.png]", file=sys.stderr)
        return 2
    with np.load(argv[0]) as file:
        batch = dict(file)
    print("\n".join(describe(batch)))
    picture = draw(batch)
    if picture is not None:
        from PIL import Image

        out = Path(argv[1]) if len(argv) == 2 else Path(argv[0]).with_suffix(".png")
        Image.fromarray(picture).save(out)
        print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
