"""Journals: what is measured is kept, and a second run goes on with it."""

from __future__ import annotations

import json

import pytest

from sam_jax.data.sources import RecordError
from sam_jax.evaluation.journal import Journal, each_batch, each_record, in_order


class Numbers:
    """Records of numbers; some are broken."""

    def __init__(self, count, broken=()):
        self.count, self.broken, self.read = count, broken, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.broken:
            raise RecordError(f"number {index} is broken")
        return {"name": str(index), "value": index * 10}


def values(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_second_run_measures_only_what_is_missing(tmp_path, capsys):
    path, source, measured = tmp_path / "deep" / "x.jsonl", Numbers(6, {2}), []

    def measure(record):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(record["value"])
        return record["value"] + record["index"]

    journal = Journal(path, {"a": (1, 2)})
    with pytest.raises(KeyboardInterrupt):
        each_record(source, journal, measure)
    journal.close()
    assert values(path)[1:] == [{"key": str(i), "value": 11 * i} for i in (0, 1, 3)]
    path.write_bytes(path.read_bytes() + b'{"key": "4", "val')  # killed while it wrote
    source = Numbers(6, {2})
    journal = Journal(path, {"a": [1, 2]})
    skipped = each_record(source, journal, lambda r: r["value"] + r["index"])
    assert sorted(source.read) == [2, 4, 5], "broken ones are tried again"
    assert list(skipped.values()) == ["number 2 is broken"]
    assert "skipped number 2 is broken" in capsys.readouterr().out
    assert list(in_order(journal, source)) == [0, 11, 33, 44, 55]
    assert list(in_order(journal, source, 2)) == [0, 11]
    journal.close()
    assert [line["key"] for line in values(path)[1:]] == ["0", "1", "3", "4", "5"]


def test_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    Journal(path, {"model": "tiny", "clicks": 3}).close()
    with pytest.raises(ValueError, match=r"clicks was 3, is 9.*choose another folder"):
        Journal(path, {"model": "tiny", "clicks": 9})
    Journal(path, {"model": "tiny", "clicks": 3}).close()
    path.write_text("not a journal\n")
    with pytest.raises(ValueError, match="line 1 is not what an evaluation writes"):
        Journal(path, {})
    path.write_text('{"settings": {}}\n[1]\n')
    with pytest.raises(ValueError, match="line 2"):
        Journal(path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't write"):
        Journal(tmp_path / "file" / "x.jsonl", {})


def test_batches_are_full_but_for_the_last_and_broken_ones_take_no_place():
    source, sizes = Numbers(8, {1, 7}), []

    def measure(records):
        sizes.append(len(records))
        return [record["value"] for record in records]

    journal = Journal(None, {})
    skipped = each_batch(source, journal, measure, 4)
    assert sizes == [4, 2], "also where the last record is broken"
    assert list(in_order(journal, source)) == [0, 20, 30, 40, 50, 60]
    assert len(skipped) == 2
    assert "3" in journal and "7" not in journal


def test_only_the_first_images():
    source, journal = Numbers(5), Journal(None, {})
    each_record(source, journal, lambda r: r["value"], images=2)
    assert sorted(source.read) == [0, 1]
    assert list(in_order(journal, source)) == [0, 10]
