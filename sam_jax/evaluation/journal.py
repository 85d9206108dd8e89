"""What an evaluation has measured so far, kept so that a second run goes on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sam_jax.ahead import read_ahead
from sam_jax.data.sources import RecordError, read_checked


class Journal:
    """A value for each key, appended to a file as it is measured.

    The file's first line says what was measured; each other line is one key and its value. A line
    that a killed run has left half written is dropped.

    Args:
      path: the file, made if it is not there; None: nothing is kept on disk.
      settings: what the values depend on, ready for JSON.

    Raises:
      ValueError: the file holds the values of other settings, or is no journal.

    As a context it closes its file.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self._file = None
        if path is None:
            return
        settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read(settings) if path.exists() else 0
            self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"--out: can't write to {path}: {error.strerror}") from error
        self._file.truncate(kept)
        self._file.seek(kept)
        if not kept:
            self._write({"settings": settings})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def add(self, key: str, value: Any) -> None:
        """Keeps a value, ready for JSON, under a key; on disk when this returns."""
        self.values[key] = value
        if self._file is not None:
            self._write({"key": key, "value": value})

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, settings: dict[str, Any]) -> int:
        """Fills `values`; how many bytes of the file are whole lines."""
        kept = 0
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if number:
                    self.values[entry["key"]] = entry["value"]
                elif entry["settings"] != settings:
                    self._differs(entry["settings"], settings)
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, SettingsError):
                    raise
                raise ValueError(
                    f"--out: {self.path} line {number + 1} is not what an evaluation writes; "
                    "remove the file or choose another folder"
                ) from error
            kept += len(line)
        return kept

    def _differs(self, theirs: Any, ours: dict[str, Any]) -> None:
        theirs = theirs if isinstance(theirs, dict) else {}
        names = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
        changes = "; ".join(f"{k} was {theirs.get(k)!r}, is {ours.get(k)!r}" for k in names)
        raise SettingsError(
            f"--out: {self.path} holds another evaluation ({changes}); "
            "choose another folder, or remove the file"
        )


class SettingsError(ValueError):
    """A journal of other settings."""


def each_record(
    source: Any,
    journal: Journal,
    measure: Callable[[dict[str, Any]], Any],
    *,
    name: str = "",
    images: int = 0,
) -> dict[str, str]:
    """`each_batch` with one record at a time; `measure` takes it and gives its value."""

    def one(records: list[dict[str, Any]]) -> list[Any]:
        return [measure(record) for record in records]

    return each_batch(source, journal, one, 1, name=name, images=images)


def each_batch(
    source: Any,
    journal: Journal,
    measure: Callable[[list[dict[str, Any]]], list[Any]],
    at_once: int,
    *,
    name: str = "",
    images: int = 0,
) -> dict[str, str]:
    """Measures the records of a source that a journal does not hold yet, under their indices.

    The next records are read in the background meanwhile.

    Args:
      source: of records, see `sam_jax.data.sources`.
      journal: what `measure` gives is added to it.
      measure: of records to values ready for JSON; a RecordError skips them. They have their
        number in the source as "index".
      at_once: how many records it gets at a time.
      name: shown beside the progress bar.
      images: only the first so many records; 0: all.

    Returns:
      {the record's number: reason} of what could not be used; printed too. A later run tries these
      again.
    """
    from tqdm import tqdm

    skipped, batch = {}, []
    left = [index for index in indices(source, images) if str(index) not in journal]
    count = len(indices(source, images))
    bar = tqdm(
        desc=name, total=count, initial=count - len(left), unit="image", leave=False, disable=None
    )
    with bar:
        for index, record in read_ahead(_readable(source), left, 2 * at_once):
            if isinstance(record, RecordError):
                skipped[f"record {index}"] = str(record)
            else:
                batch.append((index, {**record, "index": index}))
            if batch and (len(batch) == at_once or index == left[-1]):
                try:
                    values = measure([record for _, record in batch])
                    for (number, _), value in zip(batch, values, strict=True):
                        journal.add(str(number), value)
                except RecordError as error:
                    skipped |= {f"record {number}": str(error) for number, _ in batch}
                batch = []
            bar.update()
    for reason in skipped.values():
        print(f"skipped {reason}")
    return skipped


def _readable(source: Any) -> Callable[[int], Any]:
    """Reads a record, or gives the RecordError in its place."""

    def read(index: int) -> Any:
        try:
            return read_checked(source, index)
        except RecordError as error:
            return error

    return read


def indices(source: Any, images: int = 0) -> range:
    """Of the first `images` records, or of all where it is 0."""
    return range(min(images or len(source), len(source)))


def in_order(journal: Journal, source: Any, images: int = 0) -> Iterator[Any]:
    """The values of a source's records that were measured, in the order of the records."""
    for index in indices(source, images):
        if str(index) in journal:
            yield journal.values[str(index)]
