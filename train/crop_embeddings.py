"""Every mask's crops through CLIP's image tower once, for runs that train text prompts.

The embeddings of a source lie in FOLDER/crops-HASH, where HASH stands for the tower's weights, how
crops are drawn and the source's files: others get other folders. They are mapped into memory, and
made in any number of sittings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from sam_jax.checkpoint.clip import Clip
from sam_jax.data.crops import crop_object, crop_rng, large_enough
from sam_jax.data.sources import Record, RecordError, Source
from sam_jax.inference.text import crop_embedder
from sam_jax.ops.rle import decode
from sam_jax.training.config import TextConfig
from train.blended_crops import Pool, blends
from train.embeddings import files_digest

DTYPE = np.float16
FLUSH_EVERY = 8
"""Records that are in memory with their crops, and between two moments from which an interrupted
run can go on."""
POOL = 2048
"""Crops, of all, that means are made of."""
RULES = 1
"""Of how crops are drawn and embedded; another number where they change."""


class CroppedSource:
    """A source whose records have "texts" besides: float16 [masks, V + B, T], crops' embeddings.

    "looks" float32 [masks, T] are their own crops' means, of length 1. Its records have the masks
    that are large enough and no others.

    Args:
      source: the records.
      embeddings: float16 [all masks, V, T], mapped from a file.
      ends: int64 [len(source)], where each record's rows end; one without rows can't be used.
      text: how crops were drawn, and how many means of alike crops (B) come with them.
      seed: of the means.
    """

    def __init__(
        self,
        source: Source,
        embeddings: np.ndarray,
        ends: np.ndarray,
        text: TextConfig,
        seed: int = 0,
    ):
        self.source, self.text, self.seed = source, text, seed
        self._embeddings, self._ends = embeddings, np.concatenate([[0], ends])
        chosen = np.random.default_rng(seed).permutation(len(embeddings))[:POOL]
        self._pool = Pool(embeddings[np.sort(chosen), 0])

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"CroppedSource({self.source!r})"

    def __getitem__(self, index: int) -> Record:
        """Record `index` with its embeddings; raises RecordError as the source does."""
        record = self.source[index]
        chosen = large_enough(record, self.text.min_area)
        first, end = self._ends[index], self._ends[index + 1]
        if len(chosen) != end - first:
            raise RecordError(f"{record.get('name', index)}: could not be read when embedding")
        rles = [record["rles"][number] for number in chosen]
        texts = np.asarray(self._embeddings[first:end])
        looks = texts.astype(np.float32).mean(1)
        looks /= np.linalg.norm(looks, axis=-1, keepdims=True)
        if self.text.blends:
            rng = np.random.default_rng([self.seed, index])
            means = blends(texts, self._pool, self.text.blends, rng)
            texts = np.concatenate([texts, means.astype(DTYPE)], 1)
        return record | {"rles": rles, "texts": texts, "looks": looks}


class CropCache:
    """Makes sources with crops' embeddings, and the embeddings as far as they are missing.

    Args:
      clip: both towers.
      text: how crops are drawn.
      seed: of the crops.
      folder: the run's, on a disk.
      stopped: asked after every few records.
    """

    def __init__(
        self,
        clip: Clip,
        text: TextConfig,
        seed: int,
        folder: Path,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._clip, self._text, self._seed = clip, text, seed
        self._folder, self._stopped = folder, stopped

    def __call__(
        self, source: Source, files: Path | None, whole: Source | None = None
    ) -> CroppedSource | None:
        """The source with embeddings.

        Args:
          source: finite, of records; a record that cannot be read stays one.
          whole: the same records in full size, where `source` decodes pictures smaller.
          files: where its files lie, for telling whether they changed; None: not on a disk.

        Returns:
          None where `stopped` said so before all were made; the next call goes on.

        Raises:
          ValueError: no mask is large enough, several processes find some missing, or the disk has
            no room.
        """
        folder = self._folder / f"crops-{self._fingerprint(source, files)}"
        file, kept = folder / "embeddings.f16", folder / "ends.i64"
        ends = _read_ends(kept)
        if len(ends) < len(source):
            if jax.process_count() > 1:
                raise ValueError(
                    f"text: {len(source) - len(ends)} pictures of {source!r} are not in {folder}; "
                    "embed them with one process first (it may be stopped after its first step)"
                )
            folder.mkdir(parents=True, exist_ok=True)
            about = {"source": repr(source), "records": len(source)}
            (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
            print(f"embedding the crops of {len(source)} pictures of {source!r} into {folder}")
            try:
                self._fill(whole or source, ends, file, kept)
            except OSError as error:
                raise ValueError(f"text: can't write {folder}: {error.strerror}") from error
            ends = _read_ends(kept)
        if len(ends) < len(source):
            return None
        if not ends[-1]:
            raise ValueError(
                f"text.min_area: no mask of {source!r} has {self._text.min_area} pixels; give less"
            )
        shape = (int(ends[-1]), self._text.variants, self._clip.config.embed_dim)
        rows = np.memmap(file, DTYPE, "r", shape=shape)
        return CroppedSource(source, rows, ends, self._text, self._seed)

    def _fingerprint(self, source: Source, files: Path | None) -> str:
        text, tower = self._text, self._clip.params["params"]["image"]
        about = f"{RULES} {self._clip.config} {len(source)} {source!r} {self._seed} "
        about += f"{text.variants} {text.min_area}"
        digest = hashlib.sha256(about.encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tower):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
        files_digest(digest, source, files)
        return digest.hexdigest()[:16]

    def _fill(self, source: Source, ends: np.ndarray, file: Path, kept: Path) -> None:
        """Appends the missing records' rows to the file, and where they end to the other one."""
        end = int(ends[-1]) if len(ends) else 0
        row = self._text.variants * self._clip.config.embed_dim * DTYPE().itemsize
        with file.open("ab") as out, kept.open("ab") as counted:
            out.truncate(end * row)  # what was not counted any more
            counted.truncate(ends.nbytes)
            for part in self._embedded(source, range(len(ends), len(source))):
                new = end + np.cumsum([len(rows) for rows in part])
                for rows in part:
                    out.write(rows.tobytes())
                out.flush()
                counted.write(new.astype(np.int64).tobytes())
                counted.flush()
                end = int(new[-1])
                if self._stopped():
                    break

    def _embedded(self, source: Source, indices: range) -> Iterator[list[np.ndarray]]:
        """For every few records the rows float16 [masks, V, T] of each; none if unreadable."""
        width, variants = self._clip.config.embed_dim, self._text.variants
        embed = crop_embedder(self._clip)
        bar = tqdm(
            total=len(indices), unit="image", desc="embedding crops", leave=False, disable=None
        )
        with ThreadPoolExecutor(2) as readers, bar:
            for start in range(0, len(indices), FLUSH_EVERY):
                part = indices[start : start + FLUSH_EVERY]
                crops = list(readers.map(lambda index: self._crops(source, index), part))
                every = [crop for one in crops for crop in one]
                rows = iter(embed(every).reshape(-1, variants, width).astype(DTYPE))
                yield [
                    np.stack([next(rows) for _ in range(len(one) // variants)])
                    if one
                    else np.zeros((0, variants, width), DTYPE)
                    for one in crops
                ]
                bar.update(len(part))

    def _crops(self, source: Source, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(crop, patches inside) of every variant of every mask of a record."""
        vision = self._clip.config
        try:
            record = source[index]
            chosen = large_enough(record, self._text.min_area)
            masks = [decode(record["rles"][number]) for number in chosen]
        except RecordError:
            return []
        if any(mask.shape != record["image"].shape[:2] for mask in masks):
            return []
        return [
            crop_object(
                record["image"],
                mask,
                vision.image_size,
                vision.grid,
                crop_rng(self._seed, index, number, variant),
            )
            for number, mask in zip(chosen, masks, strict=True)
            for variant in range(self._text.variants)
        ]


def _read_ends(path: Path) -> np.ndarray:
    """int64 [records so far]."""
    if not path.exists():
        return np.zeros(0, np.int64)
    return np.fromfile(path, np.int64, path.stat().st_size // 8)
