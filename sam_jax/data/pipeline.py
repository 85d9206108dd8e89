"""Sources -> batches of training samples, the same at every step wherever reading starts."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sam_jax.data.samples import PipelineConfig, Sample, make_sample
from sam_jax.data.sources import RecordError, Source

__all__ = ["PipelineConfig", "Sample", "batches", "make_sample"]

log = logging.getLogger(__name__)

_ENDLESS = 2**40  # steps
_REPLACEMENTS = 50  # unusable records in a row before a source is given up


def batches(
    sources: Sequence[tuple[Source, float]],
    config: PipelineConfig,
    seed: int = 0,
    start_step: int = 0,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    workers: int = 0,
    prefetch: int = 4,
    skipped: dict[str, str] | None = None,
) -> Iterator[Sample]:
    """An endless Grain iterator of batches that depend on (seed, step) and on nothing else.

    Each source is shuffled, repeated with a new order each time, and mixed by weight. A record that
    cannot be read, or whose drawn window shows no usable mask, is replaced by another of its
    source, drawn from the same random stream; one that cannot be read is logged once by name.
    Needs the extra `train` (grain).

    Args:
      sources: (source, weight) pairs; weights are relative and positive.
      config: see `PipelineConfig`.
      seed: of everything random.
      start_step: the first batch's step; batch s is the same wherever reading started.
      process_index: which of `process_count` equal, consecutive parts of each batch is read.
      process_count: number of processes; divides `config.batch_size`.
      threads: threads that make batches; 0 makes them in the caller's thread.
      workers: processes that make batches, in place of threads: for hosts with many cores, which
        threads of one interpreter do not fill. A script that asks for them guards its start with
        `if __name__ == "__main__"`, as they start afresh.
      prefetch: batches made ahead; with workers, by each at least one.
      skipped: filled, if given, with {"SOURCE NUMBER:RECORD INDEX": reason} of what could not be
        read; its length is the count, and each reason names the record. Workers only log them.

    Returns:
      A `grain.DatasetIterator` whose elements are the dicts of `make_sample` with a leading axis
      of batch_size / process_count, and which has `get_state`, `set_state` and `close`.

    Raises:
      ValueError: no sources, an empty source, a weight that is not positive, a batch size that
        the processes cannot share equally, fewer than 0 workers, or no grain.
      ValueError: while reading, when 50 records of a source in a row cannot be used.
    """
    _check_sources(sources)
    if config.batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            "process_count must divide batch_size and process_index must be below it, got "
            f"process_index={process_index}, process_count={process_count}, "
            f"batch_size={config.batch_size}"
        )
    if workers < 0:
        raise ValueError(f"workers must be 0 or a number of processes, got {workers}")
    samples = _samples(sources, config, seed, {} if skipped is None else skipped)
    size = config.batch_size // process_count

    def part(step: int) -> Sample:
        """This process's samples of a batch: their places in it are those of a single process."""
        first = step * config.batch_size + process_index * size
        drawn = [samples[first + i] for i in range(size)]
        return {name: np.stack([sample[name] for sample in drawn]) for name in drawn[0]}

    grain = _grain()
    if workers:
        _take_flags_as_they_are()
        dataset = grain.MapDataset.range(start_step, _ENDLESS).map(_InWorker(part))
        alone = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        each = grain.MultiprocessingOptions(workers, max(1, prefetch // workers))
        return iter(dataset.to_iter_dataset(alone).mp_prefetch(each))
    dataset = grain.MapDataset.range(_ENDLESS).map(part)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, prefetch))
    iterator = iter(dataset.to_iter_dataset(options))
    if start_step:
        iterator.set_state({"next_index": int(start_step)})
    return iterator


def _samples(
    sources: Sequence[tuple[Source, float]],
    config: PipelineConfig,
    seed: int,
    skipped: dict[str, str],
) -> Any:
    """The endless mixture of samples, a `grain.MapDataset`."""
    grain = _grain()
    indices = [
        grain.MapDataset.source(_Indices(number, len(source)))
        .seed(_fold(seed, number))
        .shuffle()
        .repeat()
        for number, (source, _) in enumerate(sources)
    ]
    mixed = grain.MapDataset.mix(indices, [float(weight) for _, weight in sources])

    def sample(where: tuple[int, int], rng: np.random.Generator) -> Sample:
        number, index = where
        return _usable_sample(sources[number][0], number, index, rng, config, skipped)

    return mixed.seed(seed).random_map(sample)


def _grain() -> Any:
    """The package: an extra, which importing sam_jax must not need."""
    try:
        import grain
    except ModuleNotFoundError as error:
        raise ValueError(
            "batches of training data need the package grain: pip install 'sam_jax[train]'"
        ) from error
    return grain


def _take_flags_as_they_are() -> None:
    """Grain's processes read flags of absl, which only `absl.app` parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


class _InWorker:
    """A function that, sent to another process, makes it leave Ctrl-C to the one that sent it, and
    end with that one even where it is killed."""

    def __init__(self, function: Callable[[int], Sample]):
        self._function = function

    def __call__(self, step: int) -> Sample:
        return self._function(step)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        in_main = threading.current_thread() is threading.main_thread()
        parent = multiprocessing.parent_process()
        if parent is not None and in_main:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class _Indices:
    """(source number, record index) pairs: records are read later, where bad ones are replaced."""

    def __init__(self, number: int, length: int):
        self._number, self._length = number, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._number, int(index)


def _fold(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _check_sources(sources: Sequence[tuple[Source, float]]) -> None:
    if not sources:
        raise ValueError("sources must hold at least one (source, weight) pair, got none")
    for source, weight in sources:
        if len(source) == 0:
            raise ValueError(f"sources must not be empty, got {_brief(source)} of length 0")
        if not weight > 0:
            raise ValueError(
                f"weights must be positive, got {weight} for {_brief(source)}; to leave it out, "
                "do not pass it"
            )


def _usable_sample(
    source: Source,
    number: int,
    index: int,
    rng: np.random.Generator,
    config: PipelineConfig,
    skipped: dict[str, str],
) -> Sample:
    """The sample of record `index`, or of the first usable one of others drawn by `rng`."""
    for _ in range(_REPLACEMENTS):
        try:
            record = source[index]
            name = str(record.get("name", index))
            sample = make_sample(record, rng, config)
            if sample is not None:
                return sample
            reason = f"{name}: no mask of a usable size"  # in the window drawn: no fault of its own
            log.debug("record %d of source %d: %s", index, number, reason)
            index = int(rng.integers(len(source)))
            continue
        except RecordError as error:
            reason = str(error)
        key = f"{number}:{index}"
        if skipped.setdefault(key, reason) is reason:  # the first time, whatever the thread
            log.warning("skipped record %d of source %d (%s)", index, number, reason)
        index = int(rng.integers(len(source)))
    raise ValueError(
        f"{_REPLACEMENTS} records in a row of {_brief(source)} cannot be used; the last: {reason}. "
        f"Masks are used from {config.min_mask_pixels} pixels in a frame of {config.image_size} on "
        f"(min_mask_pixels) up to {config.max_mask_fraction:.0%} of the picture; `python -m "
        "train.check_data` says what is there"
    )


def _brief(source: Source) -> str:
    text = " ".join(repr(source).split())
    return text if len(text) <= 80 else f"{text[:60]}... ({type(source).__name__})"
