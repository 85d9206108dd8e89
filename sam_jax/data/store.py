"""The data engine's store: every mask of a folder of photographs, as the events that made it.

A store is a folder: store.json says where the photographs are, and events/*.jsonl hold one JSON
object a line. Lines are only ever appended, each process has a file of its own, and a line is on
disk before its writer is told so. So nobody overwrites anybody, and a killed process loses at most
the line that it was writing. Masks are what the events, in the order of their times, leave:

    {"event": "mask", "id", "photo", "size", "counts", "who", "when", "stage", "seconds", "model",
     "prompts", "label", "predicted_iou", "stability_score", "replaces"}
    {"event": "remove" | "restore" | "label", "mask", "photo", "who", "when", "label"}
    {"event": "photo", "photo", "done", "who", "when", "seconds", "stage"}
    {"event": "filled", "photo", "stage", "model", "masks", "who", "when"}

`when` is UTC in ISO 8601, `counts` a COCO RLE string, `seconds` what the mask took a person,
`model` the hash of the weights that helped, `replaces` the id of the mask that this one corrects.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import secrets
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam_jax.data.images import find_images
from sam_jax.data.sources import Record, RecordError, read_picture

STAGES = ("assisted", "semi-automatic", "automatic")
SETTINGS = "store.json"
MODEL = "model"
"""Who made a mask that no person drew."""


class StoreError(ValueError):
    """What cannot be stored: the disk, or an event that does not fit."""


@dataclasses.dataclass
class Mask:
    """One mask and what became of it.

    Attributes:
      event: the event that made it.
      label: its label now.
      removed_by: who took it away, or None.
      replaced_by: id of the mask that corrects it, or None.
    """

    event: dict[str, Any]
    label: str
    removed_by: str | None = None
    replaced_by: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it belongs to the data set."""
        return self.removed_by is None and self.replaced_by is None

    @property
    def rle(self) -> dict[str, Any]:
        """Its COCO RLE."""
        return {"size": self.event["size"], "counts": self.event["counts"]}


class Store:
    """The store of a folder of photographs; may be used by many threads.

    Args:
      path: the store's folder.
      photos: the folder of photographs; makes the store where there is none. None: as in the store.

    Attributes:
      path, photos: folders.
      damage: {"FILE line N": reason} of lines that could not be read.

    Raises:
      StoreError: no store there, one of another folder, or it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike, photos: str | os.PathLike | None = None) -> None:
        self.path = Path(path)
        self.damage: dict[str, str] = {}
        self._lock = threading.RLock()
        self._offsets: dict[Path, int] = {}
        self._events: list[dict[str, Any]] = []
        self._writing: tuple[Path, int, Any] | None = None
        self._state = _State()
        self.photos = self._open(None if photos is None else Path(photos))
        self.refresh()

    def _open(self, photos: Path | None) -> Path:
        settings = self.path / SETTINGS
        try:
            if settings.is_file():
                stored = json.loads(settings.read_text())["photos"]
                known = Path(os.path.normpath(self.path / stored))
                if photos is not None and photos.resolve() != known.resolve():
                    raise StoreError(f"store: {self.path} is of {known}, not of {photos}")
                return photos or known
            if photos is None:
                raise StoreError(
                    f"store: expected a store (a folder with {SETTINGS}), got {self.path}"
                )
            (self.path / "events").mkdir(parents=True, exist_ok=True)
            relative = os.path.relpath(photos.resolve(), self.path.resolve())
            temporary = settings.with_suffix(f".{secrets.token_hex(4)}")
            temporary.write_text(json.dumps({"version": 1, "photos": relative}, indent=1) + "\n")
            os.replace(temporary, settings)
            return photos
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise StoreError(f"store: can't open {self.path}: {error}") from error

    def add(self, event: str, photo: str, who: str, **fields: Any) -> dict[str, Any]:
        """Appends an event; it is on disk when this returns.

        Args:
          event: "mask", "remove", "restore", "label", "photo" or "filled".
          photo: its path below the folder of photographs.
          who: the annotator, or MODEL.
          **fields: the others of the event; a mask gets its "id" here.

        Returns:
          The event as it was written.

        Raises:
          StoreError: it cannot be written; the store is as it was.
        """
        with self._lock:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
            made = {"event": event, "photo": photo, "who": who, "when": now, **fields}
            if event == "mask":
                made = {"id": secrets.token_hex(8), **made}
            line = json.dumps(made).encode() + b"\n"
            try:
                self._write(line, who)
            except OSError as error:
                raise StoreError(f"store: can't write to {self.path}: {error.strerror}") from error
            self._events.append(made)
            self._state.apply(made)
            return made

    def _write(self, line: bytes, who: str) -> None:
        if self._writing is None:
            start = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%S")
            safe = re.sub(r"[^A-Za-z0-9-]+", "-", who)[:40].strip("-") or "somebody"
            path = self.path / "events" / f"{start}_{safe}_{secrets.token_hex(4)}.jsonl"
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            self._writing = path, handle, weakref.finalize(self, os.close, handle)
            self._offsets[path] = 0
        path, handle, _ = self._writing
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, self._offsets[path])
            raise
        self._offsets[path] += len(line)

    def close(self) -> None:
        """Closes the file that this process writes to; the next event gets a new one."""
        with self._lock:
            if self._writing is not None:
                self._writing[2]()
                self._writing = None

    def refresh(self) -> None:
        """Reads what other processes have added."""
        with self._lock:
            changed = False
            for path in sorted((self.path / "events").glob("*.jsonl")):
                start = self._offsets.get(path, 0)
                if path.stat().st_size <= start:
                    continue
                with open(path, "rb") as file:
                    file.seek(start)
                    text = file.read()
                end = text.rfind(b"\n") + 1  # a line without an end is still being written, or torn
                self._offsets[path] = start + end
                for number, line in enumerate(text[:end].splitlines(), 1):
                    where = f"{path.name} line {number}" + f" after byte {start}" * bool(start)
                    self._take(line, where)
                changed = True
            if changed:
                self._state = _State()
                for event in self.events():
                    self._state.apply(event)

    def _take(self, line: bytes, where: str) -> None:
        try:
            event = json.loads(line)
            wanted = {"mask": ("id", "size", "counts"), "photo": ("done",), "filled": ("stage",)}
            for key in ("event", "photo", "who", "when", *wanted.get(event["event"], ("mask",))):
                event[key]
        except (ValueError, KeyError, TypeError) as error:
            self.damage[where] = f"not an event: {error!r}"
            return
        self._events.append(event)

    def events(self) -> list[dict[str, Any]]:
        """All events in the order of their times."""
        with self._lock:
            return sorted(self._events, key=lambda event: event["when"])

    def masks(self, photo: str | None = None) -> dict[str, Mask]:
        """All masks that there ever were, by id, oldest first; of one photo, or of all."""
        with self._lock:
            if photo is None:
                return dict(self._state.masks)
            return dict(self._state.of_photo.get(photo, {}))

    def alive(self, photo: str | None = None) -> dict[str, Mask]:
        """The masks of the data set."""
        return {k: mask for k, mask in self.masks(photo).items() if mask.alive}

    def done(self) -> dict[str, bool]:
        """Whether somebody said last that a photo is done, by its name."""
        with self._lock:
            return dict(self._state.done)

    def names(self) -> list[str]:
        """All photographs, as paths below their folder; the store's own folder is left out."""
        own = self.path.resolve()
        return [
            path.relative_to(self.photos).as_posix()
            for path in find_images(self.photos)
            if not path.resolve().is_relative_to(own)
        ]


class _State:
    """What events have made so far; they are applied in the order of their times."""

    def __init__(self) -> None:
        self.masks: dict[str, Mask] = {}
        self.of_photo: dict[str, dict[str, Mask]] = {}
        self.done: dict[str, bool] = {}

    def apply(self, event: dict[str, Any]) -> None:
        """Adds an event; those about unknown masks change nothing."""
        kind = event["event"]
        if kind == "photo":
            self.done[event["photo"]] = bool(event["done"])
        if kind in ("photo", "filled"):
            return
        if kind == "mask":
            mask = Mask(event, event.get("label") or "")
            self.masks[event["id"]] = mask
            self.of_photo.setdefault(event["photo"], {})[event["id"]] = mask
        mask = self.masks.get(event["id"] if kind == "mask" else event["mask"])
        if mask is None:
            return
        if kind == "label":
            mask.label = event.get("label") or ""
        else:
            mask.removed_by = event["who"] if kind == "remove" else None
            old = self.masks.get(mask.event.get("replaces"))
            if old is None:
                return
            if not mask.removed_by:
                old.replaced_by = mask.event["id"]
            elif old.replaced_by == mask.event["id"]:  # brings back what it corrected
                old.replaced_by = None


def is_store(path: str | os.PathLike) -> bool:
    """Whether a folder is a store."""
    return (Path(path) / SETTINGS).is_file() and (Path(path) / "events").is_dir()


class StoreSource:
    """The photographs of a store that have masks, as records (see `sources`).

    `left_out` names photographs without masks, `damage` lines that could not be read.
    """

    def __init__(self, path: str | os.PathLike, *, at_least: int | None = None) -> None:
        """Reads the events.

        Args:
          path: the store's folder.
          at_least: as for `Sa1bFolder`.

        Raises:
          ValueError: no store, or one without masks.
        """
        store = Store(path)
        self.path, self.photos, self.at_least = Path(path), store.photos, at_least
        self.damage = dict(store.damage)
        self._masks: dict[str, list[dict[str, Any]]] = {}
        for mask in store.alive().values():
            self._masks.setdefault(mask.event["photo"], []).append(mask.rle)
        self._names = sorted(self._masks)
        self.left_out = {n: "no masks" for n in store.names() if n not in self._masks}
        if not self._names:
            raise ValueError(f"path: the store {path} has no masks yet")

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"StoreSource({str(self.path)!r})"

    def files(self) -> list[Path]:
        """What was drawn, and the pictures, whether they are there or not."""
        events = sorted(path for path in (self.path / "events").rglob("*") if path.is_file())
        return [*events, *(self.photos / name for name in self._names)]

    def __getitem__(self, index: int) -> Record:
        """Record `index`, in the order of the names.

        Raises:
          RecordError: the picture is missing or damaged, or a mask has another size.
        """
        name = self._names[index]
        place = photo_path(self.photos, name)
        if place is None:
            raise RecordError(f"{name}: no such picture in {self.photos}", "image")
        rles = self._masks[name]
        return {"image": read_picture(place, rles, name, self.at_least), "rles": rles, "name": name}


def photo_path(folder: Path, name: str) -> Path | None:
    """The file of a photo by its name below a folder; None where it is none or lies outside.

    Links that lead out of the folder are refused.
    """
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return None
    return folder / name if inside else None


def each_photo(store: Store) -> Iterator[tuple[str, list[Mask]]]:
    """The photographs that have masks, by name, with these."""
    by_photo: dict[str, list[Mask]] = {}
    for mask in store.alive().values():
        by_photo.setdefault(mask.event["photo"], []).append(mask)
    yield from sorted(by_photo.items())
