"""SA-1B tars, damaged and whole."""

import gzip
import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.sources import RecordError
from sam_jax.data.tars import Sa1bTars
from sam_jax.ops import rle


def picture(seed, hw=(20, 30)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*hw, 3), dtype=np.uint8)


def members(numbers, folder=""):
    """(name, bytes) of records whose mask k is the first k + 1 rows."""
    files = []
    for number in numbers:
        image = picture(number)
        mask = np.zeros(image.shape[:2], bool)
        mask[: number + 1] = True
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        annotation = {"segmentation": rle.encode(mask), "area": 30 * (number + 1)}
        document = {"image": {"width": 30, "height": 20}, "annotations": [annotation]}
        files.append((f"{folder}sa_{number}.png", file.getvalue()))
        files.append((f"{folder}sa_{number}.json", json.dumps(document).encode()))
    return files


def write_tar(path, files, form=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_reads_records_of_several_tars_in_place(tmp_path):
    write_tar(tmp_path / "sa_1.tar", members([3, 1], "./"))
    write_tar(tmp_path / "sa_2.tar", members([2], "x" * 120 + "/é/"), tarfile.PAX_FORMAT)
    source = Sa1bTars(tmp_path)
    assert len(source) == 3 and source.damage == {}
    records = [source[i] for i in range(3)]
    assert [r["name"] for r in records[:2]] == ["sa_1.tar/sa_3.json", "sa_1.tar/sa_1.json"]
    assert records[2]["name"] == f"sa_2.tar/{'x' * 120}/é/sa_2.json"
    for record, number in zip(records, (3, 1, 2), strict=True):
        np.testing.assert_array_equal(record["image"], picture(number))
        assert rle.area(record["rles"][0]) == 30 * (number + 1) == record["stated"][0]["area"]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz", ".npz", ".tar", ".tar"]
    with pytest.raises(IndexError):
        source[3]
    assert len(Sa1bTars([tmp_path / "sa_2.tar"])) == 1


def test_names_that_are_no_utf_8(tmp_path):
    files = [(name.replace("sa_3", "caf\udce9"), data) for name, data in members([3, 1])]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    source = Sa1bTars(tmp_path)
    assert [source[i]["name"] for i in range(2)] == ["a.tar/caf\udce9.json", "a.tar/sa_1.json"]


def test_copies_and_threads_read_the_same(tmp_path):
    source = Sa1bTars(write_tar(tmp_path / "a.tar", members(range(10))))
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: copy[i % 10]["image"], range(80)))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, picture(i % 10))


def test_the_index_is_kept_and_made_again_when_the_tar_changes(tmp_path, monkeypatch):
    import sam_jax.data.tars as tars

    scans = []
    scan = tars._scan
    monkeypatch.setattr(tars, "_scan", lambda *args: scans.append(args) or scan(*args))
    path = write_tar(tmp_path / "a.tar", members([0, 1]))
    folder = tmp_path / "indices"
    for _ in range(2):
        assert len(Sa1bTars(path, index_folder=folder)) == 2
    assert len(scans) == 1
    (index,) = folder.iterdir()
    index.write_bytes(index.read_bytes()[:100])
    assert len(Sa1bTars(path, index_folder=folder)) == 2 and len(scans) == 2
    write_tar(path, members([5, 6, 7]))
    assert len(Sa1bTars(path, index_folder=folder)) == 3 and len(scans) == 3
    os.utime(path, ns=(1, 1))
    assert len(Sa1bTars(path, index_folder=folder)) == 3 and len(scans) == 4
    assert len(list(folder.iterdir())) == 1


def test_where_nothing_can_be_written_it_reads_all_the_same(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", members([0]))
    (tmp_path / "file").write_text("")
    source = Sa1bTars(path, index_folder=tmp_path / "file")
    assert len(source) == 1
    monkeypatch.setattr("sam_jax.storage.tempfile.mkdtemp", _refuse)
    assert len(Sa1bTars(path)) == 1 and not (tmp_path / "a.tar.index.npz").exists()


def _refuse(**_):
    raise PermissionError("read-only")


def test_lonely_members_are_counted(tmp_path):
    files = members([0, 1, 2])
    del files[3], files[0]  # sa_1.json, sa_0.png
    source = Sa1bTars(write_tar(tmp_path / "a.tar", files + [("._sa_9.json", b"x")]))
    assert len(source) == 1
    assert source.damage == {
        "a.tar/sa_0.json": "no picture with its name",
        "a.tar/sa_1.png": "no JSON with its name",
    }


def test_a_tar_that_is_cut_off_keeps_what_is_whole(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(range(4)))
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmember("sa_3.png")
    for end, left in [(last.offset_data + 700, "sa_3.png"), (last.offset + 100, None)]:
        path.write_bytes(data[:end])
        source = Sa1bTars(path)
        assert [source[i]["name"] for i in range(len(source))] == [
            f"a.tar/sa_{k}.json" for k in range(3)
        ]
        assert "cut off at byte" in source.damage["a.tar"]
        if left:
            assert source.damage[f"a.tar/{left}"].startswith("cut off")


def test_damaged_headers_are_passed_over(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(range(4)))
    with tarfile.open(path) as archive:
        start = archive.getmember("sa_1.png").offset
    data = bytearray(path.read_bytes())
    data[start : start + 100] = bytes(range(100))
    path.write_bytes(data)
    source = Sa1bTars(path)
    assert [source[i]["name"][6:10] for i in range(len(source))] == ["sa_0", "sa_2", "sa_3"]
    assert source.damage == {
        f"a.tar/byte {start}": "no header of a member where one should be",
        "a.tar/sa_1.json": "no picture with its name",
    }


def test_damaged_records_are_named(tmp_path):
    files = dict(members(range(3)))
    files["sa_0.png"] = files["sa_0.png"][:300]
    files["sa_1.json"] = b"{"
    files["sa_2.png"] = members([2])[0][1].replace(b"IHDR", b"IHDX")
    source = Sa1bTars(write_tar(tmp_path / "a.tar", files.items()))
    for index, (kind, text) in enumerate(
        [("image", "its picture is truncated"), ("record", "not readable as JSON"), ("image", "")]
    ):
        with pytest.raises(RecordError, match=f"^a.tar/sa_{index}.json: .*{text}") as caught:
            source[index]
        assert caught.value.kind == kind
    os.truncate(tmp_path / "a.tar", 100)
    with pytest.raises(RecordError, match="the tar ends at byte"):
        source[1]
    os.unlink(tmp_path / "a.tar")
    with pytest.raises(RecordError, match="No such file"):
        source[1]


def test_what_is_no_tar_is_said_in_one_sentence(tmp_path):
    path = write_tar(tmp_path / "a.tar", members([0]))
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="compressed with gzip.*`gunzip b.tar.gz`"):
        Sa1bTars(packed)
    with pytest.raises(ValueError, match="no such tar"):
        Sa1bTars(tmp_path / "absent.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder with .tar files"):
        Sa1bTars(tmp_path / "empty")
    (tmp_path / "text.tar").write_text("no tar" * 1000)
    with pytest.raises(ValueError, match=r"found no pair .*text.tar: no tar file"):
        Sa1bTars(tmp_path / "text.tar")
    with pytest.raises(ValueError, match="a tar file without members"):
        Sa1bTars(write_tar(tmp_path / "none.tar", []))
