"""PyTorch's zip files without PyTorch: what is read, and everything that is refused."""

import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from sam_jax.checkpoint import pickles
from sam_jax.checkpoint.names import to_torch
from sam_jax.checkpoint.pth import describe, read_pth, write_pth
from sam_jax.checkpoint.strict import CheckpointError
from tests.checkpoint.common import ODD, random_variables

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.array([1, -2], np.float16),
    "brain": np.array([1.5, -3], ml_dtypes.bfloat16),
    "double": np.array([1 / 3]),
    "whole": np.array([[1, -(2**40)]]),
    "truth": np.array([True, False]),
    "ünïcode": np.ones((1, 1, 300), np.uint8),
}


def archive(path, pickled, records=(), prefix="archive", **options):
    """A zip file with a data.pkl and other records."""
    with zipfile.ZipFile(path, "w", **options) as out:
        if pickled is not None:
            out.writestr(f"{prefix}/data.pkl", pickled)
        for name, data in dict(records).items():
            out.writestr(f"{prefix}/{name}", data)
    return path


def one_tensor(
    shape=(2, 3), strides=(3, 1), offset=0, count=6, kind="torch\nFloatStorage", key="0"
):
    """The pickle of {"w": tensor}, every field as told."""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % n for n in values) + b"t"

    return (
        b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagec%s\nU%c%sU\x03cpuI%d\ntQ"
        b"I%d\n%s%s\x89}tRs."
        % (kind.encode(), len(key), key.encode(), count, offset, numbers(shape), numbers(strides))
    )


SIX = {"data/0": np.arange(6, dtype="<f4").tobytes()}


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        read_pth(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500
    return caught.value


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    write_pth(tmp_path / "a.pth", TENSORS)
    back = read_pth(tmp_path / "a.pth")
    assert list(back) == list(TENSORS)
    for name, array in TENSORS.items():
        assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype)
        assert back[name].tobytes() == array.tobytes()
        assert not back[name].flags.writeable or array.size == 0


def test_a_whole_model_and_the_same_bytes_twice(tmp_path):
    tensors = to_torch(random_variables(ODD))
    for name in ("a.pth", "b.pth"):
        write_pth(tmp_path / name, tensors)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    back = read_pth(tmp_path / "a.pth")
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] != [] and len(list(tmp_path.iterdir())) == 2


def test_records_are_stored_and_aligned(tmp_path):
    write_pth(tmp_path / "a.pth", TENSORS)
    data = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        assert file.testzip() is None
        assert file.read("archive/version") == b"3\n"
        assert file.read("archive/byteorder") == b"little"
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            assert (info.header_offset + 30 + name + extra) % 64 == 0


def test_what_pytorch_has_no_numbers_for(tmp_path):
    with pytest.raises(ValueError, match="w has numbers of kind complex64"):
        write_pth(tmp_path / "a.pth", {"w": np.zeros(2, np.complex64)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrap", ["model", "state_dict"])
def test_nesting_and_the_prefix_of_data_parallel(tmp_path, wrap):
    inner = one_tensor()[2:-1].replace(b"U\x01w", b"U\x08module.w")
    pickled = b"\x80\x02}(U%c%s%sU\x05epochK\x07U\x02lrG%su." % (
        len(wrap),
        wrap.encode(),
        inner,
        struct.pack(">d", 0.1),
    )
    back = read_pth(archive(tmp_path / "a.pth", pickled, SIX))
    np.testing.assert_array_equal(back["w"], np.arange(6).reshape(2, 3))


def test_strides_and_offsets_are_honoured(tmp_path):
    path = tmp_path / "a.pth"
    back = read_pth(archive(path, one_tensor((3, 2), (1, 3)), SIX))["w"]
    np.testing.assert_array_equal(back, [[0, 3], [1, 4], [2, 5]])
    back = read_pth(archive(path, one_tensor((2,), (3,), 1), SIX))["w"]
    np.testing.assert_array_equal(back, [1, 4])
    back = read_pth(archive(path, one_tensor((3,), (0,), 5), SIX))["w"]
    np.testing.assert_array_equal(back, [5, 5, 5])


def test_big_endian_files(tmp_path):
    records = {"data/0": np.arange(6, dtype=">f4").tobytes(), "byteorder": b"big"}
    back = read_pth(archive(tmp_path / "a.pth", one_tensor(), records))["w"]
    np.testing.assert_array_equal(back, np.arange(6).reshape(2, 3))
    assert back.dtype == np.float32
    refused(archive(tmp_path / "a.pth", one_tensor(), SIX | {"byteorder": b"middle"}), "byteorder")


@pytest.mark.parametrize(
    "change, match",
    [
        ({"offset": 1}, "offset 1 reach beyond its storage of 6 numbers"),
        ({"shape": (3, 3)}, "reach beyond its storage"),
        ({"strides": (4, 1)}, "reach beyond its storage"),
        ({"shape": (1 << 30, 1 << 30), "strides": (0, 0)}, "reach beyond its storage"),
        ({"shape": (7,), "strides": (0,)}, "reach beyond its storage"),
        ({"shape": (2,)}, r"shape \(2,\) and strides \(3, 1\) don't match"),
        ({"count": 7}, "has 24 bytes, too few for 7 numbers of 4"),
        ({"count": 1 << 60}, "too few for"),
        ({"kind": "torch\nDoubleStorage"}, "has 24 bytes, too few for 6 numbers of 8"),
        ({"key": "1"}, "no record 'archive/data/1'"),
        ({"key": "../data.pkl"}, "no record"),
        ({"offset": -1}, "damaged: expected a size or an offset, got -1"),
        ({"strides": (-3, 1)}, "expected a size or an offset, got -3"),
        ({"shape": (0, 1 << 61)}, "tensor 'w': shape"),
        ({"kind": "torch\nQInt8Storage"}, "asks for 'torch.QInt8Storage', which is not allowed"),
    ],
)
def test_tensors_that_lie(tmp_path, change, match):
    refused(archive(tmp_path / "a.pth", one_tensor(**change), SIX), match)


class Evil:
    """What a hostile file does when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"w": e}, lambda e: {"model": [(e,)]}])
def test_no_code_in_a_file_is_run(tmp_path, protocol, wrap):
    target = tmp_path / "touched"
    pickled = pickle.dumps(wrap(Evil(target)), protocol)
    error = refused(archive(tmp_path / "a.pth", pickled), "mkdir|instruction")
    assert not target.exists()
    pickle.loads(pickled)  # it would have
    assert target.exists()
    if protocol > 1:
        assert "mkdir', which is not allowed" in error.summary


@pytest.mark.parametrize(
    "pickled, match",
    [
        (b"cos\nsystem\n(U\x02lstR.", "asks for 'os.system'"),
        (b"(ios\nsystem\nU\x02ls.", "instruction INST"),
        (b"(cos\nsystem\nU\x02lso.", "'os.system'"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "'builtins.eval'"),
        (b"ctorch._utils\n_rebuild_tensor\n.", "'torch._utils._rebuild_tensor'"),
        (b"ccollections\nOrderedDict.fromkeys\n.", "OrderedDict.fromkeys"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
        (b"Pos\n.", "instruction PERSID"),
        (b"\x80\x02}U\x01aU\x01b", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"R.", "damaged"),
        (b"t.", "damaged"),
        (b"h\x05.", "damaged"),
        (b"\x80\x02U\x03ccQ.", "damaged"),
        (b"X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02}]K\x01s.", "damaged: a dict's key of type list"),
        (b"ctorch\nFloatStorage\n)R.", "damaged: a call of torch FloatStorage"),
        (
            b"ccollections\nOrderedDict\n}U\x08__init__K\x01sb.",
            "damaged: attributes for what is no",
        ),
        (b"K\x01.", "holds a int where tensors by name"),
        (b"}.", "holds no tensors"),
        (b"}U\x05epochK\x01s.", "1 of 1 entries are no tensors: epoch"),
    ],
)
def test_hostile_and_damaged_pickles(tmp_path, pickled, match):
    refused(archive(tmp_path / "a.pth", pickled), match)


def test_a_memo_of_a_giant_index_and_a_deep_pickle_cost_nothing():
    assert pickles.read(b"K\x05r\xff\xff\xff\xff.") == 5
    deep = pickles.read(b"\x80\x02)" + b"\x85" * 100_000 + b".")
    assert isinstance(deep, tuple)
    with pytest.raises(CheckpointError, match="key of type tuple"):
        pickles.read(b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.")


def test_other_files(tmp_path):
    path = tmp_path / "a.pth"
    for data, match in (
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "it begins with b'<!DOCTYPE html>'"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9", "format of before 2020"),
    ):
        path.write_bytes(data)
        refused(path, match)
    refused(archive(path, None, {"readme": b"x"}), "no record <name>/data.pkl")
    with pytest.raises(FileNotFoundError):
        read_pth(tmp_path / "none.pth")


def test_a_file_cut_short_anywhere(tmp_path):
    write_pth(tmp_path / "whole.pth", TENSORS)
    data = (tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for length in (3, 10, 100, len(data) // 2, len(data) - 100, len(data) - 1):
        path.write_bytes(data[:length])
        refused(path, "cut short or damaged|no PyTorch checkpoint")


def test_compressed_records_are_refused(tmp_path):
    bomb = {"data/0": bytes(50_000_000)}
    path = archive(
        tmp_path / "a.pth", one_tensor(count=12_500_000), bomb, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 100_000
    refused(path, "compressed or encrypted")


def test_damaged_bytes_never_crash(tmp_path):
    """Any one byte of the archive's skeleton changed: an error of one kind, or other numbers."""
    write_pth(tmp_path / "a.pth", {"w": np.arange(6, dtype=np.float32), "b": np.ones(2)})
    data = bytearray((tmp_path / "a.pth").read_bytes())
    rng = np.random.default_rng(0)
    errors = 0
    path = tmp_path / "b.pth"
    for at in rng.choice(len(data), 400, replace=False):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            for array in read_pth(path).values():
                array.sum()
        except CheckpointError:
            errors += 1
    assert errors > 100


def test_the_pickle_uses_only_what_pytorchs_own_does():
    import pickletools

    used = {opcode.name for opcode, _, _ in pickletools.genops(describe(TENSORS))}
    assert used <= {
        "PROTO",
        "GLOBAL",
        "EMPTY_TUPLE",
        "REDUCE",
        "MARK",
        "BINUNICODE",
        "LONG1",
        "TUPLE",
        "BINPERSID",
        "NEWFALSE",
        "SETITEMS",
        "STOP",
    }
