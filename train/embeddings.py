"""Every picture encoded once, for runs that train the decoder alone.

The embeddings of a source lie in FOLDER/embeddings-HASH, where HASH stands for the encoder's
weights, the image size, the precision and the source's files: other weights or other files get
other folders. They are mapped into memory, not read into it, and made in any number of sittings.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sam_jax.data.samples import whole_frame
from sam_jax.data.sources import Record, RecordError, Source
from sam_jax.models.config import SamConfig
from sam_jax.models.sam import SamModel, normalise

DTYPE = np.float16
"""Embeddings are the output of a LayerNorm, of size 1: half precision leaves their masks alike."""
FLUSH_EVERY = 32
"""Records between two moments from which an interrupted run can go on."""
MISSING, MADE, UNREADABLE = 0, 1, 2


class CachedSource:
    """A source whose records have "embedding" besides: float16 [h, w, D] of the whole picture.

    Args:
      source: the records.
      embeddings: float16 [len(source), h, w, D], mapped from a file.
      state: uint8 [len(source)] of MADE and UNREADABLE.
    """

    def __init__(self, source: Source, embeddings: np.ndarray, state: np.ndarray):
        self.source, self._embeddings, self._state = source, embeddings, state

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"CachedSource({self.source!r})"

    def __getitem__(self, index: int) -> Record:
        """Record `index` with its embedding; raises RecordError as the source does."""
        record = self.source[index]
        if self._state[index] != MADE:
            raise RecordError(f"{record.get('name', index)}: could not be read when encoding")
        return record | {"embedding": np.asarray(self._embeddings[index])}


class Cache:
    """Makes sources with embeddings, and the embeddings as far as they are missing.

    Args:
      variables: {"params", "buffers"}, of which the encoder's count.
      config: the model's.
      folder: the run's, on a disk.
      stopped: asked after every few pictures.
    """

    def __init__(
        self,
        variables: dict,
        config: SamConfig,
        folder: Path,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._variables, self._config = jax.device_get(variables), config
        self._folder, self._stopped = folder, stopped

    def __call__(self, source: Source, files: Path | None, image_size: int) -> CachedSource | None:
        """The source with embeddings.

        Args:
          source: finite, of records; a record that cannot be read stays one.
          files: where its files lie, for telling whether they changed; None: not on a disk.
          image_size: side of the frame that pictures are scaled to, pixels.

        Returns:
          None where `stopped` said so before all were made; the next call goes on.

        Raises:
          ValueError: the disk has no room, or several processes find some missing.
        """
        key = fingerprint(source, files, self._variables, self._config, image_size)
        folder = self._folder / f"embeddings-{key}"
        embeddings, state = _open(folder, source, self._config, image_size)
        missing = np.flatnonzero(state == MISSING)
        if len(missing) and jax.process_count() > 1:
            raise ValueError(
                f"cache_embeddings: {len(missing)} pictures of {source!r} are not in {folder}; "
                "encode them with one process first (it may be stopped after its first step)"
            )
        if len(missing):
            print(
                f"encoding {len(missing)} of {len(source)} pictures of {source!r} into {folder} "
                f"({embeddings.nbytes / 1e9:.2f} GB)",
                flush=True,
            )
            self._fill(source, missing, embeddings, state, folder, image_size)
        if (state == MISSING).any():
            return None
        return CachedSource(source, np.load(folder / "embeddings.npy", mmap_mode="r"), state)

    def _fill(self, source, missing, embeddings, state, folder: Path, image_size: int) -> None:
        variables = jax.device_put(self._variables)
        encode = jax.jit(functools.partial(_encode, self._config))
        encoded = _encoded(source, missing, functools.partial(encode, variables), image_size)
        for number, (index, value) in enumerate(encoded, 1):
            if value is not None:
                embeddings[index] = value
            state[index] = UNREADABLE if value is None else MADE
            if number % FLUSH_EVERY == 0:
                _flush(folder, embeddings, state)
                if self._stopped():
                    break
        encoded.close()
        _flush(folder, embeddings, state)


def _encode(config: SamConfig, variables: dict, images: jax.Array, image_hw: jax.Array):
    return SamModel(config).apply(variables, normalise(images, image_hw), method="encode")


def _encoded(
    source: Source, indices: np.ndarray, encode: Callable, image_size: int
) -> Iterator[tuple[int, np.ndarray | None]]:
    """(index, embedding [h, w, D], None where unreadable); reads while the device computes."""
    at_once = 1 if jax.default_backend() == "cpu" else 8

    def read(index: int):
        try:
            return whole_frame(source[int(index)]["image"], image_size)
        except RecordError:
            return None

    def results(part, frames, features):
        good = iter(np.asarray(features) if features is not None else ())
        for index, frame in zip(part, frames, strict=True):
            yield int(index), None if frame is None else next(good).astype(DTYPE)
        bar.update(len(part))

    waiting: tuple | None = None
    with (
        ThreadPoolExecutor(4) as readers,
        tqdm(total=len(indices), unit="image", desc="encoding", leave=False, disable=None) as bar,
    ):
        for start in range(0, len(indices), at_once):
            part = indices[start : start + at_once]
            frames = list(readers.map(read, part))
            good = [frame for frame in frames if frame is not None]
            features = None
            if good:
                images, hw = (np.stack([frame[k] for frame in good]) for k in (0, 1))
                spare = ((0, at_once - len(good)),)  # one compiled shape
                images = np.pad(images, spare + ((0, 0),) * 3)
                features = encode(images, np.pad(hw, spare + ((0, 0),)))
            if waiting is not None:
                yield from results(*waiting)
            waiting = (part, frames, features)
        if waiting is not None:
            yield from results(*waiting)


def fingerprint(
    source: Source, files: Path | None, variables: dict, config: SamConfig, image_size: int
) -> str:
    """What the embeddings of a source depend on, as 16 hexadecimal digits.

    Files count by path, size and time of change, not by content (`files_digest`).
    """
    digest = hashlib.sha256(f"{image_size} {config.dtype} {len(source)} {source!r}".encode())
    encoder = variables["params"]["image_encoder"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(encoder):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).data)
    files_digest(digest, source, files)
    return digest.hexdigest()[:16]


def files_digest(digest: Any, source: Source, files: Path | None) -> None:
    """Adds path, size and time of change of a source's files to a hash.

    They are those that the source names (`files()`), or else all at or under `files`.
    """
    if hasattr(source, "files"):
        paths: Iterable[Path] = source.files()
    else:
        paths = _walk(files) if files is not None else ()
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            digest.update(f"{path} is missing".encode())
        else:
            digest.update(f"{path} {about.st_size} {about.st_mtime_ns}".encode())


def _walk(files: Path) -> Iterator[Path]:
    """All files at or under a path, or that a pattern names, sorted; hidden ones are left out."""
    found = [files] if files.exists() else sorted(files.parent.glob(files.name))
    for place in found:
        if place.is_file():
            yield place
        for parent, folders, names in os.walk(place):
            folders.sort()
            yield from (Path(parent, n) for n in sorted(names) if not n.startswith("."))


def _open(
    folder: Path, source: Source, config: SamConfig, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings' file, mapped for writing, and the state of each record."""
    grid = image_size // config.patch_size
    shape = (len(source), grid, grid, config.embed_dim)
    data, state = folder / "embeddings.npy", folder / "state.npy"
    if state.exists():  # written after the other one was whole
        embeddings = np.lib.format.open_memmap(data, mode="r+")
        assert embeddings.shape == shape and embeddings.dtype == DTYPE, folder
        return embeddings, np.load(state)
    folder.mkdir(parents=True, exist_ok=True)
    needed = int(np.prod(shape)) * np.dtype(DTYPE).itemsize
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise ValueError(
            f"cache_embeddings: {len(source)} pictures of {source!r} need {needed / 1e9:.1f} GB in "
            f"{folder.parent}, where {free / 1e9:.1f} GB are free; choose another --workdir, fewer "
            "pictures, or --no-cache-embeddings"
        )
    about = {"source": repr(source), "records": len(source), "image_size": image_size}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    embeddings = np.lib.format.open_memmap(data, mode="w+", dtype=DTYPE, shape=shape)
    return embeddings, np.zeros(len(source), np.uint8)


def _flush(folder: Path, embeddings: np.ndarray, state: np.ndarray) -> None:
    """The embeddings first, then what says that they are there."""
    embeddings.flush()
    temporary = folder / ".state.npy"
    np.save(temporary, state)
    temporary.replace(folder / "state.npy")
