"""Pickled arrays, read without unpickling: the form in which Detectron2 published converted checkpoints.

A pickle is a program that may call anything. This reads the few instructions that dictionaries of arrays consist of
and stops at every other; nothing is imported, looked up or called that the file names. The instructions are decoded by
Python's own `pickletools`, which runs none of them.
"""

from __future__ import annotations

import mmap
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

MAX_DEPTH = 8
"""Nesting of what is read; a checkpoint has three levels."""
MAX_VALUES = 1_000_000
"""Values in it, counted as often as they are referred to: references may multiply what a small file holds."""

PLAIN_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
"""Types of numbers of a fixed size, in numpy's letters."""

END = object()
"""Where a list of arguments begins on the stack."""


class PickleRefused(ValueError):
    """The file holds, or asks for, something other than plain values and arrays. The message says what."""


@dataclass(frozen=True)
class _Name:
    """Something a pickle would import: here only its name."""

    name: str


@dataclass
class _NumberType:
    """A numpy dtype while it is read."""

    letters: str
    byte_order: str = "<"

    def build(self, state: Any) -> None:
        _check(isinstance(state, tuple) and len(state) >= 5, "a type of numbers without its description")
        _check(state[1] in ("<", ">", "|") and state[2:5] == (None, None, None), "a structured type of numbers")
        self.byte_order = state[1]

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.byte_order + self.letters)


class _Array:
    """A numpy array while it is read."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def build(self, state: Any) -> None:
        _check(isinstance(state, tuple) and len(state) == 5, "an array without its description")
        _, shape, number_type, columns_first, raw = state
        self.fill(raw, number_type, shape, "F" if columns_first else "C")

    def fill(self, raw: Any, number_type: Any, shape: Any, order: Any) -> None:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # as Python 2 wrote it
        _check(isinstance(number_type, _NumberType) and isinstance(raw, bytes | bytearray), "an array of objects")
        _check(isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape), "an array of no shape")
        _check(order in ("C", "F"), "an array in no known order")
        dtype = number_type.dtype()
        _check(len(raw) == prod(shape) * dtype.itemsize, f"{len(raw)} bytes for an array of shape {list(shape)}")
        array = np.frombuffer(raw, dtype).reshape(shape, order=order)
        self.tensor = torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C"))


def read_pickle(path: str | Path) -> Any:
    """What a pickle holds: dictionaries, lists, tuples, text, numbers, and arrays as tensors of their own.

    Raises `PickleRefused` for everything else, and for a damaged file. The caller limits the size of the file.
    """
    with (
        Path(path).open("rb") as file,
        # Reading from the map ends with the file, however long a value claims to be.
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        try:
            return _plain(_Machine().run(pickletools.genops(cast(IO[bytes], content))))
        except PickleRefused:
            raise
        except Exception as error:  # a damaged file can fail anywhere, with any type
            raise PickleRefused(f"damaged ({type(error).__name__}: {str(error)[:100]})") from error


def _check(holds: object, otherwise: str) -> None:
    if not holds:
        raise PickleRefused(otherwise)


class _Machine:
    """The part of the pickle machine that plain values and arrays need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, instructions: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for opcode, argument, _ in instructions:
            if opcode.name in ("PROTO", "FRAME"):
                continue
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in LITERALS:
                self.stack.append(argument)
            elif opcode.name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif opcode.name == "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif opcode.name == "GLOBAL":
                self.stack.append(_Name(argument.replace(" ", ".", 1)))
            else:
                _check(opcode.name in ACTIONS, f"the instruction {opcode.name}, which no table of arrays needs")
                ACTIONS[opcode.name](self)
        raise PickleRefused("no end")

    def pop_list(self) -> list[Any]:
        """What lies above the last mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not END:
            items.append(item)
        return items[::-1]

    def pop_tuple(self, count: int) -> tuple[Any, ...]:
        _check(len(self.stack) >= count, "an instruction without its values")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def extend(self, items: list[Any]) -> None:
        _check(type(self.stack[-1]) is list, "entries for what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        _check(type(self.stack[-1]) is dict and len(items) % 2 == 0, "entries for what is no dictionary")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def call(self) -> None:
        name, arguments = self.pop_tuple(2)
        _check(isinstance(name, _Name) and isinstance(arguments, tuple), "a call of what is no function")
        _check(name.name in FUNCTIONS, f"a call of {name.name[:100]}")
        self.stack.append(FUNCTIONS[name.name](*arguments))

    def build(self) -> None:
        target, state = self.pop_tuple(2)
        _check(isinstance(target, _Array | _NumberType), "a state for what has none")
        target.build(state)
        self.stack.append(target)

    def import_name(self) -> None:
        module, name = self.pop_tuple(2)
        self.stack.append(_Name(f"{module}.{name}"))


LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}

ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": lambda machine: machine.stack.append(END),
    "NONE": lambda machine: machine.stack.append(None),
    "NEWTRUE": lambda machine: machine.stack.append(True),
    "NEWFALSE": lambda machine: machine.stack.append(False),
    "EMPTY_DICT": lambda machine: machine.stack.append({}),
    "EMPTY_LIST": lambda machine: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine: machine.stack.append(()),
    "TUPLE1": lambda machine: machine.stack.append(machine.pop_tuple(1)),
    "TUPLE2": lambda machine: machine.stack.append(machine.pop_tuple(2)),
    "TUPLE3": lambda machine: machine.stack.append(machine.pop_tuple(3)),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.pop_list())),
    "LIST": lambda machine: machine.stack.append(machine.pop_list()),
    "APPEND": lambda machine: machine.extend(list(machine.pop_tuple(1))),
    "APPENDS": lambda machine: machine.extend(machine.pop_list()),
    "SETITEM": lambda machine: machine.update(list(machine.pop_tuple(2))),
    "SETITEMS": lambda machine: machine.update(machine.pop_list()),
    "STACK_GLOBAL": _Machine.import_name,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
"""Every instruction that is followed, beside the ones `_Machine.run` knows."""


def _empty_array(kind: Any, *_: Any) -> _Array:
    _check(kind == _Name("numpy.ndarray"), "an array of a kind of its own")
    return _Array()


def _filled_array(raw: Any, number_type: Any, shape: Any, order: Any, *_: Any) -> _Array:
    array = _Array()
    array.fill(raw, number_type, shape, order)
    return array


def _number_type(letters: Any, *_: Any) -> _NumberType:
    _check(isinstance(letters, str) and PLAIN_NUMBERS.fullmatch(letters), "an array of objects")
    return _NumberType(letters)


def _number(number_type: Any, raw: Any) -> Any:
    array = _filled_array(raw, number_type, (), "C")
    assert array.tensor is not None  # filled just now; for the reader of types
    return array.tensor.item()


def _bytes(text: Any, encoding: Any) -> bytes:
    _check(isinstance(text, str) and encoding == "latin1", "an encoding other than latin1")
    return text.encode("latin1")


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    _check(isinstance(items, list | tuple), "a dictionary of no entries")
    return dict(items)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _filled_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    "numpy.dtype": _number_type,
    "_codecs.encode": _bytes,
    "__builtin__.bytes": lambda: b"",  # how the same protocol writes no bytes at all
    "collections.OrderedDict": _dictionary,
}
"""What a pickle of arrays calls -> what is done here in its place."""


def _plain(value: Any) -> Any:
    """The same with tensors in the place of arrays; nothing else is let through."""
    left = MAX_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        _check(left > 0, f"more than {MAX_VALUES} values")
        _check(depth > 0, f"values nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, _Array):
            _check(value.tensor is not None, "an array without numbers")
            return value.tensor
        if isinstance(value, Mapping):
            return {copy(key, depth - 1): copy(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list):
            return [copy(item, depth - 1) for item in value]
        if isinstance(value, tuple):
            return tuple(copy(item, depth - 1) for item in value)
        _check(value is None or isinstance(value, bool | int | float | str | bytes | bytearray), "a reference to code")
        return value

    return copy(value, MAX_DEPTH)
