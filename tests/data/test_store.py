"""The store: what is written is there, whoever writes at the same time and whatever is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.open_source import open_source
from sam_jax.data.store import MODEL, Store, StoreError, StoreSource, photo_path
from sam_jax.ops.rle import decode, encode

HW = (12, 18)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.png"):
        Image.new("RGB", HW[::-1], (9, 99, 200)).save(folder / name)
    return folder


def mask_of(x0, x1):
    mask = np.zeros(HW, bool)
    mask[3:9, x0:x1] = True
    return mask


def add(store, photo="a.jpg", who="ann", x0=2, x1=7, **fields):
    return store.add("mask", photo, who, **encode(mask_of(x0, x1)), stage="assisted", **fields)[
        "id"
    ]


def test_masks_are_what_the_events_leave(photos, tmp_path):
    store = Store(tmp_path / "store", photos)
    one, two = add(store, label="cup"), add(store, who=MODEL, x0=5)
    three = add(store, x0=6, replaces=two)
    assert list(store.alive("a.jpg")) == [one, three]
    store.add("remove", "a.jpg", "bob", mask=three)
    assert list(store.alive()) == [one, two], "a correction that is removed brings back the old"
    other = add(store, x0=7, replaces=two)
    store.add("remove", "a.jpg", "bob", mask=other)
    store.add("restore", "a.jpg", "bob", mask=three)
    store.add("remove", "a.jpg", "bob", mask=other)  # it no longer is what stands for the old one
    store.add("remove", "a.jpg", "bob", mask=one)
    store.add("label", "a.jpg", "bob", mask=three, label="red cup")
    store.add("photo", "a.jpg", "bob", done=True, seconds=3.5)
    store.add("remove", "a.jpg", "bob", mask="unknown")
    for seen in (store, Store(tmp_path / "store")):
        assert list(seen.alive()) == [three]
        assert seen.alive()[three].label == "red cup"
        assert seen.masks()[two].replaced_by == three and seen.masks()[one].removed_by == "bob"
        assert seen.done() == {"a.jpg": True}
        np.testing.assert_array_equal(decode(seen.alive()[three].rle), mask_of(6, 7))
        assert [e["event"] for e in seen.events()].count("remove") == 5
    store.close()


def test_a_record_can_be_read_by_a_person(photos, tmp_path):
    store = Store(tmp_path / "store", photos)
    add(store, who="Ann Lee", seconds=4.2, model="abc", prompts={"points": [[3, 4]], "labels": [1]})
    (file,) = (tmp_path / "store" / "events").glob("*_Ann-Lee_*.jsonl")
    event = json.loads(file.read_text())
    assert event["who"] == "Ann Lee" and event["seconds"] == 4.2 and event["model"] == "abc"
    assert event["when"].startswith("20") and event["when"].endswith("+00:00")


def test_two_writers_see_each_other(photos, tmp_path):
    one, two = Store(tmp_path / "store", photos), Store(tmp_path / "store")
    first = add(one, who="ann")
    assert not two.alive()
    two.refresh()
    second, third = add(two, who="bob", replaces=first), add(one, who="ann", replaces=first)
    for store in (one, two):
        store.refresh()
        assert set(store.alive()) == {second, third}, "neither correction is lost"
        assert not store.damage


def write_many(path, who, count):
    store = Store(path)
    for k in range(count):
        add(store, who=who, seconds=k)
    os.kill(os.getpid(), signal.SIGKILL)  # no goodbye


def test_killed_writers_lose_nothing(photos, tmp_path):
    Store(tmp_path / "store", photos)
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write_many, args=(tmp_path / "store", f"w{k}", 20)) for k in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    store = Store(tmp_path / "store")
    assert len(store.alive()) == 60 and not store.damage
    assert {e["seconds"] for e in store.events() if e["who"] == "w1"} == set(range(20))


def test_a_torn_line_and_a_bad_line_cost_only_themselves(photos, tmp_path):
    store = Store(tmp_path / "store", photos)
    first = add(store)
    (file,) = (tmp_path / "store" / "events").glob("*.jsonl")
    whole = file.read_bytes()
    store.close()
    for bad in (b"no json\n", b'{"event": "mask", "photo": "x"}\n', b"[]\n", b'{"event": "mas'):
        file.write_bytes(whole + bad)
        again = Store(tmp_path / "store")
        assert list(again.alive()) == [first]
        assert len(again.damage) == (1 if bad.endswith(b"\n") else 0)
        second = add(again)
        assert set(Store(tmp_path / "store").alive()) == {first, second}
        again.close()
        for other in (tmp_path / "store" / "events").glob("*.jsonl"):
            if other != file:
                other.unlink()


def test_a_full_disk_loses_no_finished_mask(photos, tmp_path, monkeypatch):
    store = Store(tmp_path / "store", photos)
    first = add(store)
    write, calls = os.write, []

    def full(handle, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(handle, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        add(store)
    monkeypatch.undo()
    assert len(calls) == 2 and list(store.alive()) == [first]
    second = add(store)
    again = Store(tmp_path / "store")
    assert list(again.alive()) == [first, second] and not again.damage


def test_it_is_a_source_for_training(photos, tmp_path):
    store = Store(photos / "store", photos)
    with pytest.raises(ValueError, match="no masks yet"):
        open_source(photos / "store")
    add(store, "deep/b.png")
    source = pickle.loads(pickle.dumps(open_source(photos / "store")))
    assert isinstance(source, StoreSource) and len(source) == 1
    record = source[0]
    assert record["name"] == "deep/b.png" and record["image"].shape == (*HW, 3)
    np.testing.assert_array_equal(decode(record["rles"][0]), mask_of(2, 7))
    assert source.left_out == {"a.jpg": "no masks"}
    (photos / "deep" / "b.png").unlink()
    with pytest.raises(ValueError, match="no such picture"):
        source[0]


def test_it_moves_with_its_photographs(photos, tmp_path):
    add(Store(photos / "store", photos))
    photos.rename(tmp_path / "elsewhere")
    assert len(open_source(tmp_path / "elsewhere" / "store")[0]["rles"]) == 1


def test_another_folder_and_no_store_are_refused(photos, tmp_path):
    Store(tmp_path / "store", photos)
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError, match="is of .*photos, not of .*other"):
        Store(tmp_path / "store", tmp_path / "other")
    with pytest.raises(StoreError, match="expected a store"):
        Store(tmp_path / "other")
    (tmp_path / "store" / "store.json").write_text("{")
    with pytest.raises(StoreError, match="can't open"):
        Store(tmp_path / "store")


def test_photographs_outside_are_refused(photos, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (photos / "inner.jpg").symlink_to(photos / "a.jpg")
    assert photo_path(photos, "a.jpg") == photos / "a.jpg"
    assert photo_path(photos, "inner.jpg") == photos / "inner.jpg"
    for name in (
        "../secret.jpg",
        "link.jpg",
        "/etc/passwd",
        "none.jpg",
        "deep",
        "",
        "a\0",
        "x" * 9999,
    ):
        assert photo_path(photos, name) is None, name
