"""One whole turn of the data engine on real photographs, with a simulated annotator.

    python -m tests.benchmarks.turn FOLDER --start START.safetensors --val VAL --work DIR

FOLDER holds photographs in SA-1B form whose true masks play the annotator's mind; START must not
have been trained on them. A third is annotated with the model's help through the server's own
routes, and the model retrained on the store; on the second third confident masks are pre-filled,
looked through and completed; the last third gets automatic masks; and the model is retrained on all
of it. Printed: the ledger, and mean IoU on VAL before, in between and after.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from sam_jax.data.sources import Sa1bFolder
from sam_jax.data.store import Store
from sam_jax.engine.ledger import figures
from sam_jax.ops.rle import area, decode
from tests.engine.client import Annotator, Server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--masks", type=int, default=25, help="of a photo that are annotated")
    parser.add_argument("--steps", type=int, default=200, help="of each retraining")
    parser.add_argument("--enough", type=float, default=0.8, help="IoU that a mask must have")
    parser.add_argument(
        "--sure", type=float, default=0.6, help="predicted IoU of masks by no person"
    )
    parser.add_argument("--stable", type=float, default=0.65, help="and their stability")
    parser.add_argument("--val-images", type=int, default=20)
    args = parser.parse_args()
    source, photos = Sa1bFolder(args.folder), args.work / "photos"
    photos.mkdir(parents=True)
    trues, store = {}, photos / "sam_jax_store"
    step = max(1, len(source) // args.images)
    for index in range(0, step * args.images, step):
        record = source[index]
        name = next(n for n in (Path(record["name"]).stem + s for s in (".jpg", ".png"))
                    if (args.folder / n).is_file())  # fmt: skip
        shutil.copy(args.folder / name, photos / name)
        largest = sorted(record["rles"], key=area)[::-1][: args.masks]
        trues[name] = [decode(mask) for mask in largest]
    names = sorted(trues)
    third = len(names) // 3
    sure = ["--pred-iou-thresh", str(args.sure), "--stability-score-thresh", str(args.stable)]
    work(photos, [args.start, "--stage", "assisted"], names[:third], trues, args.enough)
    first = retrain(args, store, args.start, "first")
    semi = [first, "--stage", "semi-automatic", *sure]
    work(photos, semi, names[third : 2 * third], trues, args.enough)
    automatic = ["--stage", "automatic", "--preset", "default", "--model", first, *sure]
    command("sam_jax", "annotate", str(photos), *automatic)
    second = retrain(args, store, args.start, "second")
    numbers = figures(Store(store))
    print(
        json.dumps(
            {k: numbers[k] for k in ("photos", "done", "masks", "by stage", "quality")}, indent=1
        )
    )
    for model in (args.start, first, second):
        command("sam_jax", "evaluate", "single-point", "--data", args.val, "--model", model,
                "--clicks", "5", "--images", str(args.val_images))  # fmt: skip


def work(photos: Path, model: list[str], names: list[str], trues: dict, enough: float) -> None:
    """The annotator looks after some photos."""
    stage = model[2]
    with Server(photos, "--model", *model) as server:
        person = Annotator(server.url, "simulated", enough)
        total: dict[str, int] = {}
        for name in names:
            for key, count in person.work_on(name, trues[name]).items():
                total[key] = total.get(key, 0) + count
    clicks = len(person.clicks) / max(len(person.saved), 1)
    print(f"{stage}: {len(names)} photos, {total}, {clicks:.1f} clicks a saved mask", flush=True)


def retrain(args: argparse.Namespace, store: Path, start: str, name: str) -> str:
    """Fine-tunes all of a model on everything in the store."""
    runs = args.work / "runs"
    command("train", "--config", "configs/finetune.py", "--name", name, "--init-from", start,
            "--data-root", str(store.parent.resolve()), "--photos", store.name, "1.0",
            "--workdir", str(runs), "--stages.0.steps", str(args.steps),
            "--lora.rank", "0", "--optim.frozen", "--optim.lr", "3e-4")  # fmt: skip
    return str(runs / name / "model.safetensors")


def command(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
