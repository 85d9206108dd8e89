"""The released files: where they are, fetched once, checked, and kept."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.storage import cache_folder

CHUNK = 1 << 20
TIMEOUT = 30.0


class Released(NamedTuple):
    """A released file."""

    url: str
    sha256: str

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[1]


RELEASED = {
    "mobile_sam": Released(
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    "vit_b": Released(
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": Released(
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": Released(
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
"""The addresses are those of the released code's and of MobileSAM's READMEs."""


def released_file(name: str) -> Path:
    """The released file of a model; see `fetched`."""
    return fetched(RELEASED[name], name)


def fetched(released: Released, name: str) -> Path:
    """A released file, fetched if it isn't in the cache folder, and checked.

    What was fetched before a connection broke is kept beside it, and the rest asked for next time.

    Raises:
      CheckpointError: it can't be fetched, or isn't what was released.
    """
    path = cache_folder() / released.file
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path.with_name(f"{path.name}.lock")):
                if not path.exists():
                    _fetch(released, path)
                    return path
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise CheckpointError(
                f"{name}: can't fetch the released file ({reason}). Download {released.url} "
                f"on a machine with a network and put it at {path}"
            ) from error
    found = sha256(path)
    if found != released.sha256:
        raise CheckpointError(
            f"{path}: is not the released file, or is cut short: expected SHA-256 "
            f"{released.sha256}, got {found}. Remove it, or download {released.url} anew"
        )
    return path


def _fetch(released: Released, path: Path) -> None:
    """Downloads to a `.part` file, which takes its name once its SHA-256 is right."""
    part = path.with_name(f"{path.name}.part")
    _download(released.url, part)
    found = sha256(part)
    if found != released.sha256:
        part.unlink()
        raise CheckpointError(
            f"{released.url}: what came is not the released file: expected SHA-256 "
            f"{released.sha256}, got {found}. It was removed; try again, or download it by hand "
            f"and put it at {path}"
        )
    os.replace(part, path)


def _download(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sam-jax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # what is there is as long as the file, or longer: its hash decides
            raise
        error.close()
        return
    with response:
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "ab" if have else "wb") as out, _bar(part.stem, have, total) as bar:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have} of {total} bytes; try again")


def _bar(name: str, have: int, total: int | None):
    from tqdm import tqdm

    return tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, unit_divisor=1024)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time into the block, where the system has file locks."""
    try:
        import fcntl
    except ImportError:  # Windows: two fetches at once would fail by their hash, and can be retried
        yield
        return
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
