"""`python -m train.plot runs/NAME [OUT.png]`: a run's loss and IoU by step, from its metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl by rising step; of a step logged twice the last."""
    with open(folder / "metrics.jsonl") as file:
        rows = {row["step"]: row for row in map(json.loads, file)}
    return [rows[step] for step in sorted(rows)]


def plot(rows: list[dict[str, float]], out: Path) -> None:
    """Writes the picture: dice loss on the left, mean IoU after first and last prompt right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [row["step"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(steps, [row["dice"] for row in rows])
    left.set(xlabel="step", ylabel="dice loss, mean over rounds")
    right.plot(steps, [row["iou_first"] for row in rows], label="first prompt, best of three")
    right.plot(steps, [row["iou_last"] for row in rows], label="last prompt")
    right.set(xlabel="step", ylabel="IoU on training batches", ylim=(0, 1))
    right.legend()
    figure.savefig(out, dpi=90)
    plt.close(figure)


def main(argv: list[str]) -> int:
    """The command: 0, or 2 for wrong input."""
    if not 1 <= len(argv) <= 2 or not (Path(argv[0]) / "metrics.jsonl").is_file():
        print("usage: python -m train.plot runs/NAME [OUT.png]", file=sys.stderr)
        return 2
    out = Path(argv[1] if len(argv) == 2 else Path(argv[0]) / "curves.png")
    plot(read_metrics(Path(argv[0])), out)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
