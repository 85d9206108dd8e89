"""Many annotators at once on one server: errors, lost masks, how long a click takes.

    python -m tests.benchmarks.annotators ../shared/data/val/coco_cc --annotators 20 --seconds 120

FOLDER holds photographs with true masks in SA-1B form. Each simulated annotator takes a random
photo and mask again and again, clicks on it, corrects and saves, with `--think` seconds between
clicks.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from sam_jax.data.sources import Sa1bFolder
from sam_jax.data.store import Store
from sam_jax.ops.rle import area, decode
from tests.engine.client import Annotator, Server


class Thinks(Annotator):
    """One that looks at each answer for a moment."""

    seconds = 1.0

    def think(self) -> None:
        time.sleep(self.seconds * self.rng.uniform(0.5, 1.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--think", type=float, default=1.0)
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    source = Sa1bFolder(args.folder)
    with tempfile.TemporaryDirectory() as work:
        photos = Path(work) / "photos"
        photos.mkdir()
        trues = {}
        for index in range(min(len(source), 30)):
            record = source[index]
            name = Path(record["name"]).stem + ".jpg"
            shutil.copy(args.folder / name, photos / name)
            trues[name] = [decode(mask) for mask in record["rles"] if area(mask) > 400]
        trues = {name: masks for name, masks in trues.items() if masks}
        with Server(photos, "--model", args.model) as server:
            people, errors = run(server, trues, args)
        kept = {e["id"] for e in Store(photos / "sam_jax_store").events() if e["event"] == "mask"}
    said = [key for person in people for key in person.saved]
    clicks = np.array([seconds for person in people for seconds in person.clicks]) * 1e3
    print(
        f"{args.annotators} annotators, {args.seconds:.0f} s: {len(clicks)} clicks, "
        f"{len(said)} masks saved, {len(set(said) - kept)} lost, {len(errors)} errors"
    )
    for error in errors[:5]:
        print(" ", error)
    quantiles = np.quantile(clicks, [0.5, 0.95, 0.99])
    print("a click, with HTTP: p50 {:.0f} ms, p95 {:.0f} ms, p99 {:.0f} ms".format(*quantiles))


def run(
    server: Server, trues: dict[str, list[np.ndarray]], args: argparse.Namespace
) -> tuple[list[Thinks], list[str]]:
    """Lets everybody work until the time is over; the people, and the errors they met."""
    errors, names = [], sorted(trues)
    people = [Thinks(server.url, f"person {k}", patience=3) for k in range(args.annotators)]
    for k, person in enumerate(people):
        person.rng, person.seconds = np.random.default_rng(k), args.think
    for name in names:  # as if the queue had been at work before they came
        people[0].open(name)
    end = time.monotonic() + args.seconds

    def work(person: Thinks) -> None:
        while time.monotonic() < end:
            name = names[person.rng.integers(len(names))]
            true = trues[name][person.rng.integers(len(trues[name]))]
            try:
                person.open(name)
                person.annotate(name, true)
            except Exception as error:  # counted, and shown in the end
                errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return people, errors


if __name__ == "__main__":
    main()
