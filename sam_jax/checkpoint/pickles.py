"""Reads the pickles inside PyTorch files as data: no name in them is ever imported or called.

A pickle is a program. This module interprets the few instructions that a file of tensors needs,
over plain values and the inert records below; of the instructions that call something it knows
the ones that rebuild a tensor and an ordered dict. Everything else is refused by its name.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

from sam_jax.checkpoint.strict import CheckpointError

STORAGES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
"""Kinds of storage, by the name that files give them, and the numbers that they hold."""

ORDERED_DICT = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
ALLOWED = {ORDERED_DICT, TENSOR, PARAMETER, *STORAGES}


@dataclasses.dataclass(frozen=True)
class Name:
    """An allowed global, which stays a name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A record of the archive: `count` numbers of a kind under a key."""

    dtype: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and strides in numbers, as they come, unchecked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where the arguments of an instruction begin on the stack."""


MARK = _Mark()


class Reader:
    """The state of one reading: a stack and what was memorised."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The value that the pickle describes: dicts, lists, tuples, numbers, text, `Tensor`s."""
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in LITERALS:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in INSTRUCTIONS:
                INSTRUCTIONS[opcode.name](self, argument)
            else:
                raise CheckpointError(
                    f"its pickle has the instruction {opcode.name}, which no file of tensors needs"
                )
        raise ValueError("no STOP")

    def since_mark(self) -> list[Any]:
        """Takes everything above the last mark off the stack, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise IndexError("no MARK")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def set_items(self, pairs: list[Any]) -> None:
        """Adds keys and values to the dict on top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise TypeError("items for what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise TypeError(f"a dict's key of type {type(key).__name__}")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        """Adds items to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise TypeError("items for what is no list")
        self.stack[-1].extend(items)

    def name(self, name: str) -> None:
        """Puts a global on the stack, if it is one of the allowed."""
        if name not in ALLOWED:
            dotted = ".".join(name.split(" ", 1))[:200]
            raise CheckpointError(
                f"its pickle asks for {dotted!r}, which is not allowed: only tensors, dicts, "
                "lists, numbers and text are read. If you trust the file, save its tensors alone "
                "with PyTorch: torch.save(model.state_dict(), path)"
            )
        self.stack.append(Name(name))

    def stack_name(self) -> None:
        """As `name`, from two texts on the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a global whose name is no text")
        self.name(f"{module} {name}")

    def call(self) -> None:
        """What the file calls a call: rebuilding a tensor, a parameter or an ordered dict."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError("a call of what is no function")
        if function.name == ORDERED_DICT:
            self.stack.append(_ordered_dict(*arguments))
        elif function.name == TENSOR:
            self.stack.append(_tensor(*arguments))
        elif function.name == PARAMETER:
            data, *_ = arguments
            if not isinstance(data, Tensor):
                raise TypeError("a parameter of what is no tensor")
            self.stack.append(data)
        else:
            raise TypeError(f"a call of {function.name}")

    def persistent(self) -> None:
        """A storage: ("storage", kind, key, device, count)."""
        word, kind, key, _, count = self.stack.pop()
        if word != "storage" or not isinstance(kind, Name) or not isinstance(key, str):
            raise TypeError("a reference to what is no storage")
        self.stack.append(Storage(STORAGES[kind.name], key, _whole(count)))

    def build(self) -> None:
        """Attributes of an object; PyTorch puts `_metadata` on a state dict. Dropped."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise TypeError("attributes for what is no dict")


def _ordered_dict(pairs: Any = ()) -> dict:
    reader = Reader()
    reader.stack.append({})
    for pair in pairs:
        key, value = pair
        reader.set_items([key, value])
    return reader.stack[0]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not (
        isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    ):
        raise TypeError("a tensor without storage, shape or strides")
    return Tensor(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, strides)))


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**62:
        raise ValueError(f"expected a size or an offset, got {str(number)[:40]}")
    return number


def _keep(reader: Reader, index: int) -> None:
    reader.memo[index] = reader.stack[-1]


def _tuple_of(count: int) -> Callable[[Reader, Any], None]:
    def make(reader: Reader, _: Any) -> None:
        if len(reader.stack) < count:
            raise IndexError("too short a stack")
        items = tuple(reader.stack[-count:])
        reader.stack[-count:] = [items]

    return make


def _dict(reader: Reader, _: Any) -> None:
    pairs = reader.since_mark()
    reader.stack.append({})
    reader.set_items(pairs)


def _set_item(reader: Reader, _: Any) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.set_items([key, value])


LITERALS = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: MARK,
}
INSTRUCTIONS: dict[str, Callable[[Reader, Any], None]] = {
    "PROTO": lambda reader, _: None,
    "FRAME": lambda reader, _: None,
    "POP": lambda reader, _: reader.stack.pop(),
    "PUT": _keep,
    "BINPUT": _keep,
    "LONG_BINPUT": _keep,
    "MEMOIZE": lambda reader, _: _keep(reader, len(reader.memo)),
    "GET": lambda reader, index: reader.stack.append(reader.memo[index]),
    "BINGET": lambda reader, index: reader.stack.append(reader.memo[index]),
    "LONG_BINGET": lambda reader, index: reader.stack.append(reader.memo[index]),
    "TUPLE": lambda reader, _: reader.stack.append(tuple(reader.since_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": lambda reader, _: reader.stack.append(reader.since_mark()),
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": lambda reader, _: reader.set_items(reader.since_mark()),
    "APPEND": lambda reader, _: reader.append([reader.stack.pop()]),
    "APPENDS": lambda reader, _: reader.append(reader.since_mark()),
    "GLOBAL": Reader.name,
    "STACK_GLOBAL": lambda reader, _: reader.stack_name(),
    "REDUCE": lambda reader, _: reader.call(),
    "BINPERSID": lambda reader, _: reader.persistent(),
    "BUILD": lambda reader, _: reader.build(),
}


def read(data: bytes) -> Any:
    """The value that a pickle describes, nothing called.

    Raises:
      CheckpointError: the pickle is damaged, or asks for something that is not allowed.
    """
    try:
        return Reader().run(data)
    except CheckpointError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
        RecursionError,
        ArithmeticError,
    ) as error:
        raise CheckpointError(f"its pickle is damaged: {error}") from error
