"""`python -m train.plot runs/NAME [OUT.png]`: a run's loss, IoU and validations by step."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def read_metrics(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    """The rows of a file of the run by rising step, none where there is no such file.

    Of a step logged twice the last counts.
    """
    if not (folder / name).is_file():
        return []
    with open(folder / name) as file:
        rows = {row["step"]: row for row in map(json.loads, file)}
    return [rows[step] for step in sorted(rows)]


def plot(rows: list[dict[str, float]], validations: list[dict[str, float]], out: Path) -> None:
    """Writes the picture: dice loss, mean IoU after first and last prompt, validations if any."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = 3 if validations else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.5 * panels, 3), layout="constrained")
    left, right = axes[:2]
    taught = [row for row in rows if "teacher" in row]
    rows = [row for row in rows if "dice" in row]
    steps = [row["step"] for row in rows]
    if rows:
        left.plot(steps, [row["dice"] for row in rows], label="dice loss, mean over rounds")
    if taught:
        missed = [row["teacher"] for row in taught]
        left.plot([row["step"] for row in taught], missed, label="missed of the teacher")
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    right.set(xlabel="step", ylabel="IoU on training batches", ylim=(0, 1))
    if rows:
        right.plot(steps, [row["iou_first"] for row in rows], label="first prompt, best of three")
        right.plot(steps, [row["iou_last"] for row in rows], label="last prompt")
        right.legend()
    if validations:
        steps = [row["step"] for row in validations]
        names = [n for n in validations[-1] if n != "step" and not n.endswith(" masks")]
        for name in names:
            values = [row.get(name, float("nan")) for row in validations]
            axes[2].plot(steps, values, marker=".", label=name.removeprefix("val/"))
        axes[2].set(xlabel="step", ylabel="mean IoU in validation", ylim=(0, 1))
        axes[2].legend(fontsize="x-small")
    figure.savefig(out, dpi=90)
    plt.close(figure)


def main(argv: list[str]) -> int:
    """The command: 0, or 2 for wrong input."""
    if not 1 <= len(argv) <= 2 or not (Path(argv[0]) / "metrics.jsonl").is_file():
        print("usage: python -m train.plot runs/NAME [OUT.png]", file=sys.stderr)
        return 2
    out = Path(argv[1] if len(argv) == 2 else Path(argv[0]) / "curves.png")
    folder = Path(argv[0])
    plot(read_metrics(folder), read_metrics(folder, "validation.jsonl"), out)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
