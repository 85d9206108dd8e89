"""SA-1B's tar files, read where they are: nothing is unpacked.

The first time, a tar's headers are read (one seek each) and the places of its members are kept in
a small index file; after that opening costs nothing. What is damaged is named and left out, and
the rest stays usable.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam_jax.data.sources import Record, RecordError, read_annotations, read_picture
from sam_jax.storage import cache_folder, replacing

_PICTURES = (".jpg", ".jpeg", ".png")
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_VERSION = 1  # of the index files
_SCANS = 8  # tars whose headers are read at the same time


@dataclass(frozen=True)
class _Index:
    """The pairs of one tar in the order of their pictures, and what is wrong with the rest.

    names: bytes [R], path of the pair in the tar without its suffix, UTF-8.
    spans: int64 [R, 4], first byte and length of the picture, then of the JSON.
    damage: {name: reason}.
    """

    names: np.ndarray
    spans: np.ndarray
    damage: dict[str, str]


class Sa1bTars:
    """Tar files of NAME.jpg + NAME.json pairs in the form of SA-1B, with random access.

    Pictures may also be .jpeg or .png. `damage` names the members without a partner, those whose
    bytes are cut off, and places where a tar is damaged; its length is their count. Objects of
    this class hold no open files: they can be pickled and used by many threads.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        at_least: int | None = None,
        index_folder: str | os.PathLike | None = None,
    ):
        """Reads or makes the index of each tar.

        Args:
          path: a tar, a folder with .tar files, or a list of tars.
          at_least: as for `Sa1bFolder`.
          index_folder: where index files go. By default they lie beside the tars as
            NAME.tar.index.npz, or, where that folder cannot be written, in the folder `tars` of
            $SAM_JAX_CACHE or ~/.cache/sam_jax. An index whose tar has another size or time of
            change than it had is made again.

        Raises:
          ValueError: no such tar, a compressed one, one that is no tar, or no pair in any.
        """
        self.at_least = at_least
        self.paths = _find_tars(path)
        folder = None if index_folder is None else Path(index_folder)
        from tqdm import tqdm

        with ThreadPoolExecutor(_SCANS) as pool:
            indices = pool.map(lambda tar: _read_index(tar, folder), self.paths)
            bar = tqdm(indices, "tars", len(self.paths), leave=False, disable=None, delay=1)
            self._indices = list(bar)
        self._ends = np.cumsum([len(index.names) for index in self._indices])
        self.damage = {
            f"{tar.name}/{name}" if name else tar.name: reason
            for tar, index in zip(self.paths, self._indices, strict=True)
            for name, reason in index.damage.items()
        }
        if not self._ends[-1]:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self.damage.items())[:3])
            raise ValueError(
                f"path: expected tars with NAME.jpg + NAME.json pairs, found no pair in {path}"
                + (f" ({reasons})" if reasons else "")
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"Sa1bTars({str(self.paths[0])!r}{more})"

    def __getitem__(self, index: int) -> Record:
        """Record `index`, in the order of the tars and of the pictures in them.

        Raises:
          IndexError: `index` is not in 0 .. len - 1.
          RecordError: as for `Sa1bFolder`, or the tar can no longer be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0..{len(self) - 1}, got {index}")
        number = int(np.searchsorted(self._ends, index, "right"))
        row = int(index) - (int(self._ends[number - 1]) if number else 0)
        tar, found = self.paths[number], self._indices[number]
        name = f"{tar.name}/{os.fsdecode(bytes(found.names[row]))}.json"
        start, length, record_start, record_length = (int(v) for v in found.spans[row])
        try:
            with open(tar, "rb") as file:
                picture = _read(file, start, length)
                text = _read(file, record_start, record_length)
            document = json.loads(text)
        except OSError as error:
            raise RecordError(f"{name}: {error}") from error
        except ValueError as error:
            raise RecordError(f"{name}: not readable as JSON: {error}") from error
        rles, stated = read_annotations(document, name)
        image = read_picture(picture, rles, name, self.at_least, "its picture")
        return {"image": image, "rles": rles, "name": name, "stated": stated}


def _read(file, start: int, length: int) -> bytes:
    file.seek(start)
    data = file.read(length)
    if len(data) < length:
        raise OSError(f"the tar ends at byte {start + len(data)}, {start + length} are needed")
    return data


def _find_tars(path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    if isinstance(path, str | os.PathLike):
        paths = [Path(path)]
        if paths[0].is_dir():
            paths = sorted(p for p in paths[0].iterdir() if p.suffix == ".tar" and p.name[0] != ".")
    else:
        paths = [Path(p) for p in path]
    if not paths:
        raise ValueError(f"path: expected a tar, a folder with .tar files or a list, got {path}")
    for tar in paths:
        if not tar.is_file():
            raise ValueError(f"path: no such tar: {tar}")
        with open(tar, "rb") as file:
            start = file.read(8)
        for magic, (form, command) in _COMPRESSED.items():
            if start.startswith(magic):
                raise ValueError(
                    f"path: {tar} is compressed with {form}, and a compressed tar cannot be read "
                    f"at any place; decompress it once with `{command} {tar.name}` (SA-1B's own "
                    "tars are not compressed)"
                )
    return paths


def _read_index(tar: Path, folder: Path | None) -> _Index:
    """The tar's index from its file, or made and kept there."""
    status = tar.stat()
    stamp = [_VERSION, status.st_size, status.st_mtime_ns]
    places = _index_places(tar, folder)
    for place in places:
        index = _load_index(place, stamp)
        if index is not None:
            return index
    index = _scan(tar, status.st_size)
    for place in places:
        try:
            _save_index(place, index, stamp)
            break
        except (OSError, ValueError):  # a folder that can't be written costs time, no more
            continue
    return index


def _index_places(tar: Path, folder: Path | None) -> list[Path]:
    name = f"{tar.name}.index.npz"
    # Two tars of one name in different folders must not share an index file.
    digest = hashlib.sha256(str(tar.resolve()).encode()).hexdigest()[:12]
    if folder is not None:
        return [folder / f"{digest}-{name}"]
    return [tar.with_name(name), cache_folder() / "tars" / f"{digest}-{name}"]


def _load_index(place: Path, stamp: list[int]) -> _Index | None:
    try:
        with open(place, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            if file["stamp"].tolist() != stamp:
                return None
            damage = json.loads(str(file["damage"]))
            return _Index(file["names"], file["spans"], damage)
    except Exception:  # absent, or damaged in any way: it is made again
        return None


def _save_index(place: Path, index: _Index, stamp: list[int]) -> None:
    with replacing(place) as temporary:
        np.savez(
            temporary,
            stamp=np.array(stamp, np.int64),
            names=index.names,
            spans=index.spans,
            damage=np.array(json.dumps(index.damage)),
        )


def _scan(tar: Path, size: int) -> _Index:
    """Reads all headers of a tar of `size` bytes."""
    damage: dict[str, str] = {}
    members = _members(tar, damage)
    halves: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        stem, suffix = os.path.splitext(os.path.normpath(member.name))
        if not member.isreg() or os.path.basename(stem).startswith("."):
            continue
        kind = {".json": "json"}.get(suffix.lower(), "picture")
        if kind == "picture" and suffix.lower() not in _PICTURES:
            continue
        if member.offset_data + member.size > size:
            damage[stem + suffix] = f"cut off: the tar ends at byte {size}"
            continue
        halves.setdefault(stem, {})[kind] = member
    pairs = []
    for stem, half in halves.items():
        if len(half) == 2:
            parts = half["picture"], half["json"]
            pairs.append((stem, *(n for part in parts for n in (part.offset_data, part.size))))
        else:
            ((kind, member),) = half.items()
            missing = "picture" if kind == "json" else "JSON"
            damage[os.path.normpath(member.name)] = f"no {missing} with its name"
    pairs.sort(key=lambda pair: pair[1])
    names = np.array([os.fsencode(pair[0]) for pair in pairs] or np.zeros(0, "S1"))
    spans = np.array([pair[1:] for pair in pairs], np.int64).reshape(-1, 4)
    return _Index(names, spans, damage)


def _members(tar: Path, damage: dict[str, str]) -> list[tarfile.TarInfo]:
    """The members whose headers are whole; damaged places go to `damage`."""
    bad: list[int] = []
    ended: list[int] = []

    class Noting(tarfile.TarInfo):
        """Notes damaged headers, which `ignore_zeros` passes over in search of the next."""

        @classmethod
        def fromtarfile(cls, archive):
            try:
                return super().fromtarfile(archive)
            except tarfile.EOFHeaderError:
                ended.append(archive.offset)
                raise
            except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError):
                if not bad or archive.offset != bad[-1] + tarfile.BLOCKSIZE:
                    damage[f"byte {archive.offset}"] = "no header of a member where one should be"
                bad.append(archive.offset)
                raise

    members: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(tar, "r:", tarinfo=Noting, ignore_zeros=True) as archive:
            while (member := archive.next()) is not None:
                members.append(member)
    except (tarfile.TarError, OSError, EOFError, ValueError):
        pass  # a tar that is cut off: what came before stays
    if not members:
        damage.clear()
        damage[""] = "no tar file" if bad else "a tar file without members"
    elif not ended:
        damage[""] = f"cut off at byte {tar.stat().st_size}: the marks of a tar's end are missing"
    return members
