"""How fast the loader makes SA-1B-sized training samples, and whether its memory stays flat.

    python -m tests.benchmarks.loader [--images 10000] [--threads 2] [--full]

Run by hand, on a machine with nothing else to do. Writes a tar of 16 synthesised records (JPEGs of
1500 x 2250 with 100 masks each, as in SA-1B; kept in the folder for temporary files), reads them
over and over through `Sa1bTars` and `sam_jax.data.pipeline.batches` with the paper's settings
(frames of 1024, 64 masks an image), and prints the time of each part, images a second, and resident
memory on the way. The tar stays in the page cache: this measures computing, not disks.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sam_jax.data.pipeline import PipelineConfig, batches, make_sample
from sam_jax.data.scenes import ProceduralScenes
from sam_jax.data.sources import Record, Source
from sam_jax.data.tars import Sa1bTars
from sam_jax.ops import rle

HW = (1500, 2250)
MASKS = 100
BATCH = 4
PREFETCH = 4
PAPER = PipelineConfig(
    image_size=1024,
    mask_size=256,
    max_masks=64,
    scale_range=(1.0, 1.0),
    flip=False,
    colour_jitter=0.0,
    grey_probability=0.0,
    invert_probability=0.0,
    batch_size=BATCH,
)


class Repeated:
    """A source over and over, as one of `length` records."""

    def __init__(self, source: Source, length: int):
        self.source, self.length = source, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        return self.source[index % len(self.source)]


def write_tar(path: Path, count: int) -> None:
    """`count` records with the shape of SA-1B's: enlarged procedural scenes with sensor noise."""
    scenes = ProceduralScenes(length=count * 10, size=512, seed=0)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            picture, document = _record(scenes, number)
            for suffix, data in (("jpg", picture), ("json", document)):
                member = tarfile.TarInfo(f"sa_{number}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _record(scenes: ProceduralScenes, number: int) -> tuple[bytes, bytes]:
    """JPEG and JSON: the picture of one scene, and the masks of as many as give MASKS."""
    rng = np.random.default_rng(number)
    image = _enlarged(Image.fromarray(scenes[10 * number]["image"]))
    noisy = np.asarray(image) + rng.normal(0, 4, (*HW, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    annotations: list[dict] = []
    for k in range(10):
        for small in scenes[10 * number + k]["rles"]:
            grey = Image.fromarray(rle.decode(small).astype(np.uint8) * 255)
            mask = np.asarray(_enlarged(grey)) >= 128
            if len(annotations) < MASKS and mask.any():
                annotations.append({"id": len(annotations), "segmentation": rle.encode(mask)})
    about = {"height": HW[0], "width": HW[1], "file_name": f"sa_{number}.jpg"}
    return file.getvalue(), json.dumps({"image": about, "annotations": annotations}).encode()


def _enlarged(image: Image.Image) -> Image.Image:
    """512 x 512 -> HW, the lower part cut off."""
    return image.resize((HW[1], HW[1]), Image.Resampling.BILINEAR).crop((0, 0, HW[1], HW[0]))


def resident_mb() -> float:
    """Resident memory of this process in MB (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def parts(source: Source, count: int) -> None:
    """Prints the time of reading and of making a sample, in one thread."""
    seconds = np.zeros(2)
    for index in range(count):
        start = time.perf_counter()
        record = source[index % len(source)]
        middle = time.perf_counter()
        make_sample(record, np.random.default_rng(index), PAPER)
        seconds += middle - start, time.perf_counter() - middle
    read, made = 1000 * seconds / count
    print(f"one thread: {read:.0f} ms reading and decoding, {made:.0f} ms making the sample")


def measure(source: Source, images: int, threads: int) -> None:
    """Reads `images` samples and prints speed and memory twenty times on the way."""
    reader = batches([(Repeated(source, images), 1.0)], PAPER, threads=threads, prefetch=PREFETCH)
    for _ in range(PREFETCH + 1):  # starts the threads; what was made ahead is not counted
        next(reader)
    total = max(1, images // BATCH)
    every, memory = max(1, total // 20), []
    start = time.perf_counter()
    for done in range(1, total + 1):
        next(reader)
        if done % every == 0 or done == total:
            memory.append(resident_mb())
            rate = done * BATCH / (time.perf_counter() - start)
            print(f"{done * BATCH:>7} images  {rate:6.2f} images/s  {memory[-1]:7.0f} MB resident")
    reader.close()
    quarter = memory[len(memory) // 4]
    print(
        f"{rate:.2f} images/s with {threads} threads on {os.cpu_count()} cores; resident memory "
        f"{quarter:.0f} MB after a quarter, {memory[-1]:.0f} MB at the end, {max(memory):.0f} most"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loader")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--records", type=int, default=16, help="different ones in the tar")
    parser.add_argument("--full", action="store_true", help="decode every pixel of the JPEGs")
    args = parser.parse_args()
    tar = Path(tempfile.gettempdir(), f"sam_jax_loader_{args.records}.tar")
    if not tar.exists():
        write_tar(tar.with_suffix(".part"), args.records)
        tar.with_suffix(".part").rename(tar)
    source = Sa1bTars(tar, at_least=None if args.full else PAPER.image_size)
    masks = np.mean([len(source[k]["rles"]) for k in range(len(source))])
    print(
        f"{tar}: {args.records} records of {HW[1]} x {HW[0]}, {masks:.0f} masks and "
        f"{tar.stat().st_size / args.records / 1e6:.2f} MB each"
    )
    parts(source, min(8, args.images))
    measure(source, args.images, args.threads)


if __name__ == "__main__":
    main()
