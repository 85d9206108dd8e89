"""PyTorch's `.pth`, read and written without PyTorch.

The file is a zip archive of uncompressed records: `data.pkl`, which describes the tensors, and
`data/<key>`, their numbers (torch/serialization.py). Reading maps the file into memory and hands
out views; nothing in it is ever executed (`pickles`).
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from sam_jax.checkpoint import pickles
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.storage import replacing

MAX_PICKLE = 64 << 20
"""A description of tensors takes some 100 bytes each; one of more bytes than this is refused."""
ALIGNMENT = 64
NESTED = ("model", "state_dict")
"""Entries of a training checkpoint under which the tensors are looked for."""

_LOCAL_HEADER = struct.Struct("<4s5HIIIHH")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_pth(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file by their names, as read-only views of the mapped file.

    Tensors may be nested under "model" or "state_dict"; a prefix "module." that all names share
    is dropped. Arrays have the file's kind of number (bfloat16 is ml_dtypes').

    Raises:
      CheckpointError: it is no PyTorch zip file, or is damaged, cut short or hostile.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        return _state_dict(_read(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.summary}") from error


def _read(path: Path):
    """The pickled value, its tensors as arrays."""
    with _open_zip(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickled = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickled) != 1:
            raise CheckpointError(
                "is a zip archive, but no PyTorch checkpoint: it has no record <name>/data.pkl"
            )
        prefix = pickled[0].removesuffix("data.pkl")
        whole = np.memmap(path, np.uint8, "r")
        order = _record(whole, records, f"{prefix}byteorder", 16) or b"little"
        if order not in (b"little", b"big"):
            raise CheckpointError(f"byteorder: expected 'little' or 'big', got {order!r}")
        value = pickles.read(_record(whole, records, pickled[0], MAX_PICKLE))
    return _Arrays(whole, records, prefix, "<" if order == b"little" else ">").fill(value)


def _open_zip(path: Path) -> zipfile.ZipFile:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start.startswith(b"PK"):
        if start.startswith(_LEGACY):
            raise CheckpointError(
                "is in PyTorch's format of before 2020; save it anew with a newer PyTorch: "
                "torch.save(torch.load(path, weights_only=True), path)"
            )
        found = f"it begins with {start[:16]!r}" if start else "it is empty"
        raise CheckpointError(f"is no PyTorch checkpoint: {found}")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        raise CheckpointError(
            f"is cut short or damaged ({error}); fetch or copy it again"
        ) from error


def _record(whole: np.ndarray, records: Mapping, name: str, limit: int) -> bytes | None:
    if name not in records:
        return None
    data = _bytes_of(whole, records[name])
    if len(data) > limit:
        raise CheckpointError(f"record {name} has {len(data)} bytes, which is absurd")
    return data.tobytes()


def _bytes_of(whole: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """A record's bytes as a view of the file. Its place comes from its own header."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise CheckpointError(
            f"record {info.filename!r} is compressed or encrypted, as PyTorch never writes it"
        )
    at = info.header_offset
    header = whole[at : at + _LOCAL_HEADER.size].tobytes() if 0 <= at < len(whole) else b""
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"record {info.filename!r} is not where the archive says")
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = at + _LOCAL_HEADER.size + name_length + extra_length
    if info.file_size != info.compress_size or start + info.file_size > len(whole):
        raise CheckpointError(f"record {info.filename!r} reaches beyond the end of the file")
    return whole[start : start + info.file_size]


class _Arrays:
    """Turns the `Tensor`s of a pickled value into arrays."""

    def __init__(self, whole: np.ndarray, records: Mapping, prefix: str, order: str) -> None:
        self.whole, self.records, self.prefix, self.order = whole, records, prefix, order

    def fill(self, value, depth: int = 0):
        """Dicts down to two levels, where checkpoints keep their tensors; the rest as it is."""
        if isinstance(value, pickles.Tensor):
            return self.array(value)
        if isinstance(value, dict) and depth < 2:
            return {key: self._named(key, item, depth) for key, item in value.items()}
        return value

    def _named(self, key, item, depth: int):
        try:
            return self.fill(item, depth + 1)
        except CheckpointError as error:
            raise CheckpointError(f"tensor {key!r}: {error.summary}") from error

    def array(self, tensor: pickles.Tensor) -> np.ndarray:
        """A view of the tensor's storage, once it is known to lie inside it."""
        flat = self._storage(tensor.storage)
        shape, strides = tensor.shape, tensor.strides
        if len(shape) != len(strides) or len(shape) > 32:
            raise CheckpointError(f"shape {shape[:32]} and strides {strides[:32]} don't match")
        size = 1
        for n in shape:
            size *= n
        if size == 0:
            return _empty(shape, flat.dtype)
        last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if last >= len(flat) or size > len(flat):
            raise CheckpointError(
                f"shape {shape}, strides {strides} and offset {tensor.offset} reach beyond its "
                f"storage of {len(flat)} numbers"
            )
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], shape, [s * flat.itemsize for s in strides], writeable=False
        )

    def _storage(self, storage: pickles.Storage) -> np.ndarray:
        name = f"{self.prefix}data/{storage.key}"
        if name not in self.records:
            raise CheckpointError(f"the archive has no record {name!r}")
        data = _bytes_of(self.whole, self.records[name])
        if storage.dtype == "bfloat16":
            dtype, stored = np.dtype(ml_dtypes.bfloat16), np.dtype("u2")
        else:
            dtype = stored = np.dtype(storage.dtype)
        if storage.count * stored.itemsize > len(data):
            raise CheckpointError(
                f"record {name!r} has {len(data)} bytes, too few for {storage.count} numbers of "
                f"{stored.itemsize}"
            )
        flat = data[: storage.count * stored.itemsize].view(stored.newbyteorder(self.order))
        if self.order == ">":
            flat = flat.astype(stored)
        return flat.view(dtype)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        return np.zeros(shape, dtype)
    except ValueError as error:
        raise CheckpointError(f"shape {shape}: {error}") from error


def _state_dict(value) -> dict[str, np.ndarray]:
    if not isinstance(value, dict):
        raise CheckpointError(f"holds a {type(value).__name__} where tensors by name are expected")
    inner = next((value[key] for key in NESTED if isinstance(value.get(key), dict)), None)
    tensors = value if inner is None else inner
    others = [str(name) for name, item in tensors.items() if not isinstance(item, np.ndarray)]
    if others or not tensors:
        names = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
        raise CheckpointError(
            f"{len(others)} of {len(tensors)} entries are no tensors: {names}"
            if others
            else "holds no tensors"
        )
    if all(str(name).startswith("module.") for name in tensors):
        return {str(name).removeprefix("module."): item for name, item in tensors.items()}
    return {str(name): item for name, item in tensors.items()}


def write_pth(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict that `torch.load(path, weights_only=True)` opens.

    The same tensors give the same bytes. The file is written beside `path` and renamed.

    Raises:
      ValueError: PyTorch has no storage for a tensor's kind of number.
    """
    with replacing(path) as made, open(made, "wb") as stream, zipfile.ZipFile(stream, "w") as out:
        _add(out, stream, "data.pkl", describe(tensors))
        _add(out, stream, "byteorder", b"little")
        for i, array in enumerate(tensors.values()):
            array = np.ascontiguousarray(array)
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _add(out, stream, f"data/{i}", memoryview(little.reshape(-1).view(np.uint8)))
        _add(out, stream, "version", b"3\n")


def _add(out: zipfile.ZipFile, stream, name: str, data) -> None:
    """A record whose first byte lies at a multiple of 64 bytes, behind an extra field of zeros."""
    info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
    info.file_size = len(data)
    start = stream.tell() + _LOCAL_HEADER.size + len(info.filename) + 4
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with out.open(info, "w") as record:
        record.write(data)


def describe(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an ordered dict of tensors, tensor i in record data/i."""
    kinds = {dtype: name for name, dtype in pickles.STORAGES.items()}
    empty = _global(pickles.ORDERED_DICT) + b")R"
    parts = [b"\x80\x02", empty, b"("]
    for i, (name, array) in enumerate(tensors.items()):
        if array.dtype.name not in kinds:
            raise ValueError(f"tensors: {name} has numbers of kind {array.dtype}, PyTorch has none")
        strides, step = [], 1
        for n in reversed(array.shape):
            strides.insert(0, step)
            step *= max(n, 1)
        storage = b"(%s%s%s%s%st" % (
            _text("storage"),
            _global(kinds[array.dtype.name]),
            _text(str(i)),
            _text("cpu"),
            _number(array.size),
        )
        parts += [
            _text(name),
            _global(pickles.TENSOR),
            b"(",
            storage,
            b"Q",
            _number(0),
            _numbers(array.shape),
            _numbers(strides),
            b"\x89",
            empty,
            b"tR",
        ]
    return b"".join([*parts, b"u."])


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(n: int) -> bytes:
    data = n.to_bytes((n.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _numbers(numbers) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"
