"""Automatic masks of a folder of photos: what is written, when, and what is left to do.

Every photo has one file that is written last; a photo is done when that is there. So a run can be
stopped anywhere and started again, and ends with the files of a run that was left alone.

    DIR/.settings.json        what the masks were made with; another run must agree
    DIR/SUB/NAME.jpg, .json   form "sa1b": a pair of files as in SA-1B
    DIR/parts/SUB/NAME.json   form "coco": the same, and DIR/instances.json made of all of them
    DIR/SUB/NAME.png          form "labels": 0 where no mask is, else the number of one
    DIR/skipped.txt           photos that could not be read, and why
    DIR/index.html            pictures of some photos with their masks, which lie in DIR/.overlays

What is no result is hidden or no JSON, so that with "sa1b" DIR is a data set as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from sam_jax.data.images import find_images
from sam_jax.inference import files, overlay
from sam_jax.inference.records import mask_of, to_label_map
from sam_jax.ops import rle

FORMS = ("sa1b", "coco", "labels")
PHOTOS = ("copy", "link", "none")
SETTINGS, OVERLAYS = ".settings.json", ".overlays"
NO_RESULT = re.compile(r"index\.html|skipped(_\d+_of_\d+)?\.txt")
OVERLAY_SIDE = 960
"""Longer side of an overlay in pixels, at most."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One photo.

    Attributes:
      source: the picture's file.
      name: its place in the results, without suffix, with "/" between folders.
      shown: whether an overlay is drawn.
    """

    source: Path
    name: str
    shown: bool


class Folder:
    """The results of a folder of photos.

    Args:
      source: the folder of photos.
      out: the folder of results; it may lie within `source`.
      form: one of FORMS.
      photos: for form "sa1b", whether the photos are copied, linked to, or left where they are.
      overlays: photos that are drawn with their masks, evenly spread; 0 for none.
      policy: for label maps, see `to_label_map`.
      shard: (i, n): the i-th of n runs, from 1 on, that share the photos.

    Attributes:
      jobs: the photos of this shard.

    Raises:
      ValueError: no such folder, no photo in it, or a bad argument.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        out: str | os.PathLike,
        *,
        form: str = "sa1b",
        photos: str = "copy",
        overlays: int = 100,
        policy: Any = "small",
        shard: tuple[int, int] = (1, 1),
    ) -> None:
        for name, value, values in (("form", form, FORMS), ("photos", photos, PHOTOS)):
            if value not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, got {value!r}")
        if overlays < 0:
            raise ValueError(f"overlays: expected 0 or more, got {overlays}")
        if not 1 <= shard[0] <= shard[1]:
            raise ValueError(f"shard: expected I/N with 1 <= I <= N, got {shard[0]}/{shard[1]}")
        self.source, self.out = Path(source), Path(out)
        self.form, self.photos, self.policy = form, photos, policy
        own = self.out.resolve()
        if self.source.resolve().is_relative_to(own):
            raise ValueError(
                f"out: {self.out} holds the photos; choose a folder in it or elsewhere"
            )
        paths = [
            path
            for path in find_images(self.source)
            if not (path.parent.resolve() / path.name).is_relative_to(own)  # links are not followed
        ]
        if not paths:
            raise ValueError(f"folder: no photos in {self.source}")
        self._all = _jobs(self.source, paths, overlays)
        self.jobs = self._all[shard[0] - 1 :: shard[1]]
        self._suffix = "" if shard == (1, 1) else f"_{shard[0]}_of_{shard[1]}"

    def open(self, settings: dict[str, Any]) -> list[Job]:
        """Makes the folder ready.

        Args:
          settings: what the masks are made with, for JSON.

        Returns:
          The photos of this shard that are not done.

        Raises:
          ValueError: the folder holds masks that were made with other settings.
          OSError: it cannot be written to.
        """
        path = self.out / SETTINGS
        about = {"folder": os.fsdecode(self.source.resolve()), "form": self.form}
        if self.form == "sa1b":
            about["photos"] = self.photos
        settings = json.loads(json.dumps({**about, **settings}))
        if self._begun():
            try:
                there = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"out: {self.out} holds files of these names but no {SETTINGS} that says what "
                    f"they were made with ({error}); choose another folder"
                ) from error
            changed = sorted(k for k in {*there, *settings} if there.get(k) != settings.get(k))
            if changed:
                listed = ", ".join(f"{k} {there.get(k)}, now {settings.get(k)}" for k in changed)
                raise ValueError(
                    f"out: {self.out} holds masks that were made otherwise ({listed}); "
                    "choose another folder, or remove it"
                )
        else:
            files.check_writable(path)
            files.write_json(path, settings)
        left = [job for job in self.jobs if not self._last(job).exists()]
        self._remove_temporary({target for job in left for target in self._targets(job)})
        return left

    def _begun(self) -> bool:
        """Whether there are results of this or another run, or other files of their names."""
        if (self.out / SETTINGS).exists():
            return any(
                not (name.startswith(".") or NO_RESULT.fullmatch(name))
                for parent, _, names in os.walk(self.out)
                for name in names
                if OVERLAYS not in Path(parent).parts
            )
        return any(target.exists() for job in self._all for target in self._targets(job))

    def write(self, job: Job, photo: np.ndarray, records: list[dict[str, Any]]) -> None:
        """Writes all files of one photo, that which says that it is done last.

        Args:
          job: the photo.
          photo: uint8 [H, W, 3].
          records: with "coco_rle" segmentations.
        """
        records = [record for record in records if record["area"]]  # an empty mask says nothing
        for target in self._targets(job):
            target.parent.mkdir(parents=True, exist_ok=True)
        if job.shown:
            picture = draw_overlay(photo, records)
            files.write_picture(self._overlay(job), picture)
        last = self._last(job)
        if self.form == "labels":
            labels = to_label_map(records, self.policy, photo.shape[:2])
            files.write_labels(last, labels)
            return
        if self.form == "sa1b" and self.photos != "none":
            self._write_photo(job, photo)
        beside = self.form == "sa1b" and self.photos != "none"
        name = Path(job.name).name + ".jpg" if beside else self._relative(job)
        files.write_json(last, document(records, name, job.name, photo.shape[:2]), indent=None)

    @property
    def skipped_file(self) -> Path:
        """Where what was skipped is listed."""
        return self.out / f"skipped{self._suffix}.txt"

    def list_skipped(self, skipped: dict[str, str]) -> None:
        """Writes the list of skipped photos; arguments as `close`."""
        if skipped or self.skipped_file.exists():
            text = "".join(f"{name}: {why}\n" for name, why in sorted(skipped.items()))
            files.write_atomically(self.skipped_file, lambda file: file.write(_bytes(text)))

    def close(self, skipped: dict[str, str]) -> None:
        """Writes what is made of all photos: the list of skipped ones, COCO's file, the page.

        Args:
          skipped: photo, relative to the source, and why it could not be read.
        """
        self.list_skipped(skipped)
        if not self._suffix:  # what parts of the photos have left
            for part in [*self.out.glob("skipped_*_of_*.txt"), *self.out.glob("instances_*_of_*")]:
                part.unlink()
        if self.form == "coco":
            target = self.out / f"instances{self._suffix}.json"
            files.write_atomically(target, self._write_coco)
        if any(job.shown for job in self._all):
            page = self._page()
            files.write_atomically(self.out / "index.html", lambda file: file.write(_bytes(page)))

    def done(self) -> int:
        """How many photos of this shard are done."""
        return sum(self._last(job).exists() for job in self.jobs)

    def _last(self, job: Job) -> Path:
        """The file that says that a photo is done."""
        if self.form == "coco":
            return self.out / "parts" / f"{job.name}.json"
        return self.out / (job.name + {"sa1b": ".json", "labels": ".png"}[self.form])

    def _overlay(self, job: Job) -> Path:
        return self.out / OVERLAYS / f"{job.name}.jpg"

    def _targets(self, job: Job) -> list[Path]:
        """All files of a photo."""
        targets = [self._last(job)]
        if self.form == "sa1b" and self.photos != "none":
            targets.append(self.out / f"{job.name}.jpg")
        return [*targets, self._overlay(job)] if job.shown else targets

    def _remove_temporary(self, targets: set[Path]) -> None:
        """Removes what a run of this shard that was killed has left half written."""
        own = (f"skipped{self._suffix}.txt", f"instances{self._suffix}.json")
        targets |= {self.out / name for name in own}
        if not self._suffix:
            targets |= {self.out / "index.html", self.out / SETTINGS}
        own = {str(files.temporary(target, "")) for target in targets}
        for parent, _, names in os.walk(self.out):
            for name in names:
                path = Path(parent, name)
                if str(files.temporary_of(path)) in own:
                    path.unlink(missing_ok=True)

    def _relative(self, job: Job) -> str:
        return job.source.relative_to(self.source).as_posix()

    def _write_photo(self, job: Job, photo: np.ndarray) -> None:
        """The photo beside its masks: its own file if it is a JPEG that is stored as it is seen."""
        target = self.out / f"{job.name}.jpg"
        with Image.open(job.source) as image:
            as_seen = image.format == "JPEG" and image.mode == "RGB"
            as_seen = as_seen and image.getexif().get(0x0112, 1) == 1
        if not as_seen:
            files.write_picture(target, Image.fromarray(photo), quality=95)
        elif self.photos == "link":
            target.unlink(missing_ok=True)
            target.symlink_to(job.source.resolve())
        else:
            with open(job.source, "rb") as source:
                files.write_atomically(target, lambda file: shutil.copyfileobj(source, file))

    def _write_coco(self, file: BinaryIO) -> None:
        """All parts of this shard as one COCO file; one part at a time is in memory."""
        numbers = {job.name: i + 1 for i, job in enumerate(self._all)}
        done = [job for job in self.jobs if self._last(job).exists()]

        def images() -> Iterator[dict]:
            for job, part in _documents(done, self._last):
                about = {k: part["image"][k] for k in ("width", "height", "file_name")}
                yield {"id": numbers[job.name], **about}

        def annotations() -> Iterator[dict]:
            for job, part in _documents(done, self._last):
                for k, one in enumerate(part["annotations"]):
                    number = numbers[job.name]
                    box = rle.bbox_xywh(one["segmentation"])
                    about = {"image_id": number, "category_id": 1, "iscrowd": 0, "bbox": box}
                    yield {**one, "id": number * 100_000 + k, **about}

        categories = '"categories": [{"id": 1, "name": "object"}]'
        file.write(f"{{{categories},\n".encode())
        for name, items, end in (("images", images(), ","), ("annotations", annotations(), "")):
            file.write(f'"{name}": ['.encode())
            for k, item in enumerate(items):
                file.write((",\n" if k else "\n").encode() + json.dumps(item).encode())
            file.write(f"\n]{end}\n".encode())
        file.write(b"}\n")

    def _page(self) -> str:
        """index.html: what was skipped, by other parts too, and the overlays that are there."""
        texts = [p.read_text(errors="replace") for p in sorted(self.out.glob("skipped*.txt"))]
        skipped = [line.split(": ", 1) for text in texts for line in text.splitlines()]
        shown = [job for job in self._all if job.shown and self._overlay(job).exists()]
        figures = "\n".join(
            f'<figure><img loading="lazy" src="{escape(_url(f"{OVERLAYS}/{job.name}.jpg"))}">'
            f"<figcaption>{escape(self._relative(job))}</figcaption></figure>"
            for job in shown
        )
        lines = "\n".join(f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in skipped)
        title = f"Masks of {self.source.resolve().name}"
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
            "<style>body{font:15px sans-serif;margin:2em;background:#fafafa}"
            "main{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0}"
            "img{height:300px;max-width:100%;object-fit:contain;display:block}"
            "figcaption{color:#555;padding:.3em 0}</style>\n"
            f"<h1>{escape(title)}</h1>\n<p>{len(self._all)} photos, {len(shown)} of them shown"
            + (f", {len(skipped)} skipped:</p>\n<ul>\n{lines}\n</ul>" if skipped else ".</p>")
            + f"\n<main>\n{figures}\n</main></html>\n"
        )


def document(
    records: list[dict[str, Any]], file_name: str, name: str, image_hw: tuple[int, int]
) -> dict[str, Any]:
    """Records in the form of SA-1B's files.

    Args:
      records: with "coco_rle" segmentations.
      file_name: of the picture.
      name: of the photo among the results; its number, if it is one of SA-1B's (sa_NUMBER), or a
        hash of it is the image's id, so that no other photo changes it.
      image_hw: height and width.
    """
    number = re.fullmatch(r"sa_(\d+)", Path(name).name)
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    image_id = int(number[1]) if number else int.from_bytes(digest) >> 28  # 36 bits
    about = {
        "image_id": image_id,
        "width": image_hw[1],
        "height": image_hw[0],
        "file_name": file_name,
    }
    annotations = [{"id": image_id * 100_000 + k, **record} for k, record in enumerate(records)]
    return {"image": about, "annotations": annotations}


def draw_overlay(photo: np.ndarray, records: Iterable[dict[str, Any]]) -> Image.Image:
    """A photo of at most OVERLAY_SIDE pixels with its masks and their number."""
    image = Image.fromarray(photo)
    image.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE), Image.Resampling.LANCZOS)
    masks = [
        np.asarray(Image.fromarray(mask_of(r).view(np.uint8)).resize(image.size, 0), bool)
        for r in records
    ]
    picture = Image.fromarray(overlay.draw_masks(np.asarray(image), masks))
    count = f"{len(masks)} mask" + ("" if len(masks) == 1 else "s")
    overlay.write_text(picture, (0, 0), count, overlay.colour(0))
    return picture


def _jobs(root: Path, paths: list[Path], overlays: int) -> list[Job]:
    """Photos with names that tell suffixes apart; no other photo changes one but by a clash."""
    jobs, taken = [], set()
    for i, path in enumerate(paths):
        relative = path.relative_to(root)
        name, suffix = relative.with_suffix("").as_posix(), relative.suffix[1:].lower()
        name += "" if suffix == "jpg" else f"_{suffix}"
        while name in taken:
            name += "_"
        taken.add(name)
        shown = (i + 1) * overlays // len(paths) > i * overlays // len(paths)
        jobs.append(Job(path, name, shown or overlays >= len(paths)))
    return jobs


def _documents(jobs: list[Job], path) -> Iterator[tuple[Job, dict]]:
    for job in jobs:
        yield job, json.loads(path(job).read_text())


def _url(path: str) -> str:
    from urllib.parse import quote

    return quote(os.fsencode(path))


def _bytes(text: str) -> bytes:
    """UTF-8; names that are none are written with escapes."""
    return text.encode(errors="backslashreplace")
