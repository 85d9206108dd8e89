"""Masks of everything in each photo of a folder and its sub-folders.

Photos whose masks are there already are left out, so a run that was stopped, by Ctrl-C or by a
loss of power, goes on when the same command is given again. Photos that cannot be read are skipped
and listed in DIR/skipped.txt. Written: SA-1B's files (NAME.jpg and NAME.json for each photo, which
`python -m train` reads), or one COCO file, or label maps; DIR/index.html shows some of the masks.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import sys
import time
from collections.abc import Iterator
from typing import Any

from sam_jax.ahead import read_ahead

THRESHOLDS = (
    ("points_per_side", int, "points on each side of the grid"),
    ("points_per_batch", int, "points decoded at a time, at most"),
    ("pred_iou_thresh", float, "keep masks whose predicted IoU is above this"),
    ("stability_score_thresh", float, "keep masks that are at least as stable"),
    ("box_nms_thresh", float, "boxes with a larger IoU are duplicates"),
    ("crop_n_layers", int, "layers of crops besides the whole photo"),
    ("crop_n_points_downscale_factor", int, "thins the grid by this factor in each layer"),
    ("min_mask_region_area", int, "remove holes and islands of fewer pixels"),
    ("max_area_ratio", float, "drop masks that cover at least this part of the photo"),
)
SAYS_EVERY = 30.0
"""Seconds between lines where no progress bar can be drawn."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax generate`."""
    from sam_jax.inference.presets import PRESETS

    add = parser.add_argument
    add("folder", metavar="FOLDER", help="where the photos are")
    add("--out", required=True, metavar="DIR", help="where the results go")
    add(
        "--model",
        default="tiny",
        metavar="NAME",
        help="tiny (bundled, the default), mobile_sam, vit_b, vit_l, vit_h, or a checkpoint file "
        "or folder",
    )
    add("--preset", default="default", choices=sorted(PRESETS), help="settings of the generator")
    for name, kind, what in THRESHOLDS:
        add("--" + name.replace("_", "-"), type=kind, metavar="N", help=what)
    add(
        "--form",
        default="sa1b",
        choices=("sa1b", "coco", "labels"),
        help="sa1b: NAME.jpg and NAME.json; coco: instances.json; labels: NAME.png (default: sa1b)",
    )
    add(
        "--photos",
        default="copy",
        choices=("copy", "link", "none"),
        help="with sa1b: whether photos are copied to DIR, linked to, or not there",
    )
    add(
        "--policy",
        default="small",
        choices=("small", "large", "confident"),
        help="with labels: whose mask is on top (default: the smaller one's)",
    )
    add("--overlays", type=int, default=100, metavar="N", help="photos that index.html shows")
    add("--shard", default="1/1", metavar="I/N", help="do the I-th of N parts of the photos")
    add(
        "--batch",
        type=int,
        metavar="N",
        help="photos segmented in one call (default: by the device); as many wait, read",
    )


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax generate`.

    Raises:
      ValueError, OSError: bad input, in one clear sentence.
    """
    from sam_jax.inference.folder import Folder

    shard = _shard(args.shard)
    folder = Folder(
        args.folder,
        args.out,
        form=args.form,
        photos=args.photos,
        overlays=args.overlays,
        policy=args.policy,
        shard=shard,
    )
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch: expected at least 1, got {args.batch}")

    from sam_jax.checkpoint.load import load
    from sam_jax.inference.generator import MaskGenerator

    sam = load(args.model)
    changes = {name: getattr(args, name) for name, _, _ in THRESHOLDS}
    changes = {name: value for name, value in changes.items() if value is not None}
    generator = MaskGenerator.preset(sam, args.preset, output_mode="coco_rle", **changes)
    settings = {"model": sam.name, "weights": fingerprint(sam.params)}
    if args.form == "labels":
        settings["policy"] = args.policy
    left = folder.open({**settings, **_arguments(args.preset, changes)})
    before = len(folder.jobs) - len(left)
    print(
        f"{len(folder.jobs)} photos in {args.folder}"
        + (f" (part {shard[0]} of {shard[1]})" if shard[1] > 1 else "")
        + (f", {before} done before" if before else "")
        + f", model {sam.name}",
        flush=True,
    )
    watch = Watch(len(folder.jobs), before)
    try:
        _work(generator, folder, left, args.batch, watch)
    except KeyboardInterrupt:
        watch.close()
        folder.list_skipped(watch.skipped)
        said = watch.summary(folder.skipped_file.name)
        print(f"stopped; the same command goes on\n{said}", file=sys.stderr)
        raise
    watch.close()
    folder.close(watch.skipped)
    print(watch.summary(folder.skipped_file.name))
    print(f"wrote {args.out}" + (", index.html shows some of it" if args.overlays else ""))
    if watch.skipped and not folder.done():
        name, why = next(iter(watch.skipped.items()))
        raise ValueError(f"none of the photos could be read; {name}: {why}")


def _work(generator, folder, left, batch: int | None, watch: Watch) -> None:
    """Reads, segments and writes what is left."""
    size = batch or generator.photos_at_once(len(left))
    group: list[tuple[Any, Any]] = []
    for job, photo in _read(left, size):
        if isinstance(photo, Exception):
            name = job.source.relative_to(folder.source).as_posix()
            why = " ".join(str(photo).replace(str(job.source), "").split())
            watch.skip(name, why.removeprefix(": "))
            continue
        group.append((job, photo))
        if len(group) == size:
            _segment(generator, folder, group, watch)
            group = []
    if group:
        _segment(generator, folder, group, watch)


def _segment(generator, folder, group: list, watch: Watch) -> None:
    photos = [photo for _, photo in group]
    results = generator.generate(photos, with_counts=True)
    for (job, photo), records, counts in zip(group, *results, strict=True):
        try:
            folder.write(job, photo, records)
        except OSError as error:
            if error.errno is not None:  # the disk's, not the picture's
                raise
            watch.skip(job.source.relative_to(folder.source).as_posix(), str(error))
            continue
        watch.did(counts)


def _read(jobs: list, ahead: int) -> Iterator[tuple[Any, Any]]:
    """Jobs with their photos, or with the error; the next few are read in the background."""
    from sam_jax.data.images import read_image

    def read(job):
        try:
            return read_image(job.source)
        except (ValueError, OSError) as error:
            return error

    yield from read_ahead(read, jobs, ahead)


class Watch:
    """The progress bar, and what is said at the end."""

    def __init__(self, photos: int, before: int) -> None:
        from tqdm import tqdm

        from sam_jax.inference.candidates import Counts

        self.total, self.before, self.photos = photos, before, 0
        self.counts, self.skipped = Counts(), {}
        self.start = self.said = time.monotonic()
        self.bar = tqdm(
            total=photos, initial=before, unit="photo", disable=not sys.stderr.isatty(), leave=False
        )

    def did(self, counts) -> None:
        """One photo is written."""
        self.photos += 1
        sums = zip(*map(dataclasses.astuple, (self.counts, counts)), strict=True)
        self.counts = type(counts)(*(a + b for a, b in sums))
        self.bar.set_postfix_str(f"{self.counts.kept} masks", refresh=False)
        self._step()

    def skip(self, name: str, why: str) -> None:
        """One photo could not be read."""
        self.skipped[name] = why
        self.bar.write(f"skipped {name}: {why}", file=sys.stderr)
        self._step()

    def _step(self) -> None:
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and now - self.said > SAYS_EVERY:
            self.said = now
            done = self.before + self.photos + len(self.skipped)
            print(f"{done} of {self.total} photos, {self.counts.kept} masks", flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        self.bar.close()

    def summary(self, skipped_file: str) -> str:
        """What was done, how fast, and why masks were dropped."""
        c, lines = self.counts, []
        if self.photos:
            duplicates = c.duplicates_in_crop + c.duplicates_between_crops
            duplicates += c.duplicates_after_cleaning
            seconds = (time.monotonic() - self.start) / self.photos
            lines.append(
                f"{self.photos} photos, {c.kept} masks ({c.kept / self.photos:.1f} a photo), "
                f"{seconds:.2f} s a photo"
            )
            lines.append(
                f"of {c.masks} masks that the decoder gave, dropped: {c.low_predicted_iou} for "
                f"their predicted IoU, {c.unstable} unstable, {c.at_crop_edge} at the edge of a "
                f"crop, {c.too_large} too large, {duplicates} duplicates"
            )
        else:
            left = self.total - self.before - len(self.skipped)
            done = "no masks" if self.skipped else "nothing was left to do"
            lines.append("no photo was finished" if left else done)
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped, listed in {skipped_file}")
        return "\n".join(lines)


def _arguments(preset: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The generator's arguments in full, without those that change no result."""
    from sam_jax.inference.generator import MaskGenerator
    from sam_jax.inference.presets import PRESETS

    parameters = list(inspect.signature(MaskGenerator).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters}
    chosen = {**defaults, **PRESETS[preset], **changes}
    return {k: v for k, v in chosen.items() if k not in ("points_per_batch", "output_mode")}


def fingerprint(params: dict) -> str:
    """16 hexadecimal digits that differ between weights: a hash of the start of each array."""
    import jax
    import numpy as np

    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf.reshape(-1)[:1024]).tobytes())
    return digest.hexdigest()


def _shard(text: str) -> tuple[int, int]:
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        raise ValueError(f"--shard: expected I/N, for example 1/4, got {text!r}") from None
    return i, n
