"""Pickles of plain values and of arrays of numbers, parsed without being run.

A pickle is a program, and running one runs whatever its author wished. This reads the few
instructions that dictionaries, lists, strings, numbers and NumPy's arrays need, makes exactly
these of them, and refuses any other. What is made takes no more memory than the pickle's own bytes
bear out.

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import math
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tree import shown


class BadPickle(Exception):
    """A pickle that is damaged, or holds more than plain values; the message is one line."""


def parse_pickle(content: bytes) -> Any:
    """What a pickle of dictionaries, lists, tuples, strings, numbers and NumPy arrays holds.

    Python 2's strings come as latin-1 text. Arrays are not to be written to; they are found as all
    that it holds or as a value of a dictionary that is.

    Raises:
        BadPickle: for a pickle of anything else, or one that is damaged.
    """
    machine = _Machine(len(content))
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if steps == _MOST_STEPS:
                raise BadPickle(f"more than {_MOST_STEPS:,} values: refused")
            machine.step(opcode.name, argument)
        return _finished(machine.result)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError) as error:
        reason = shown(" ".join(str(error).split())[:100]) or type(error).__name__
        raise BadPickle(f"damaged: no pickle of plain values and arrays ({reason})") from error


# CIFAR-100's training images take 250,000; a step of one byte can make a value of a hundred.
_MOST_STEPS = 4_000_000


class _Mark:
    """What separates the items of a list from what lies below them on the stack."""


@dataclass(frozen=True)
class _Name:
    """Something that a pickle names, of those that arrays need."""

    function: str


@dataclass
class _Type:
    """numpy's dtype, as far as it is known yet."""

    code: str
    order: str = ""

    def dtype(self) -> np.dtype[Any]:
        if not _NUMBERS.fullmatch(self.code):
            raise BadPickle(f"holds an array of {self.code[:20]!r}, not of numbers: refused")
        if self.order not in ("", "<", ">", "|", "="):
            raise TypeError("a byte order that there is not")
        return np.dtype(self.order + self.code[-2:] if self.order else self.code)


@dataclass
class _Array:
    """An array before its content is known."""

    filled: NDArray[Any] | None = None


_NUMBERS = re.compile(r"[<>|=]?(?:u1|i1|b1|[uif][248])")
_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFERS = ("numpy.core.numeric", "numpy._core.numeric")
_KNOWN = {
    **{(module, "_reconstruct"): _Name("array") for module in _ARRAYS},
    **{(module, "_frombuffer"): _Name("buffer") for module in _BUFFERS},
    ("numpy", "ndarray"): _Name("ndarray"),
    ("numpy", "dtype"): _Name("dtype"),
    ("_codecs", "encode"): _Name("encode"),
    **{(module, "bytes"): _Name("nothing") for module in ("builtins", "__builtin__")},
}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NUMBER_OPS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXT_OPS = (
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip


class _Machine:
    """The stack and the memo of a pickle that is gone through.

    Args:
        size: its bytes. No more than these become bytes of arrays, however often it names them.
    """

    def __init__(self, size: int) -> None:
        self.left = size
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        """One instruction, as `pickletools` names it."""
        stack = self.stack
        if name in _NUMBER_OPS or name in _TEXT_OPS:
            stack.append(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in _TUPLES:
            stack.append(tuple(self._popped(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("LIST", "APPEND", "APPENDS"):
            self._extend(name)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            self._set_items(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._push_name(argument.split(" ", 1) if name == "GLOBAL" else self._popped(2))
        elif name == "REDUCE":
            function, arguments = self._popped(2)
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            target, state = self._popped(2)
            stack.append(target)
            self._build(target, state)
        elif name == "STOP":
            (self.result,) = stack
        elif name not in ("PROTO", "FRAME"):
            raise BadPickle(f"holds more than plain values and arrays ({name.lower()}): refused")

    def _popped(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("nothing to take from the stack")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _to_mark(self) -> list[Any]:
        taken = []
        while (value := self.stack.pop()) is not _Mark:
            taken.append(value)
        return taken[::-1]

    def _extend(self, name: str) -> None:
        items = self._popped(1) if name == "APPEND" else self._to_mark()
        if name == "LIST":
            self.stack.append(items)
        elif type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        else:
            raise TypeError("an item for what is no list")

    def _set_items(self, name: str) -> None:
        items = self._popped(2) if name == "SETITEM" else self._to_mark()
        if name == "DICT":
            self.stack.append({})
        target = self.stack[-1]
        if type(target) is not dict:
            raise TypeError("an item for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tuples could be nested so deeply that to hash them crashes the interpreter.
            if type(key) not in (str, bytes, int):
                raise TypeError(f"a {type(key).__name__} as a key")
            target[key] = value

    def _push_name(self, parts: list[Any]) -> None:
        module, name = parts
        if not (type(module) is type(name) is str):
            raise TypeError("a name that is no text")
        if (module, name) not in _KNOWN:
            called = shown(" ".join(f"{module}.{name}"[:80].split()))
            raise BadPickle(f"holds code ({called}): refused")
        self.stack.append(_KNOWN[module, name])

    def _called(self, function: Any, arguments: Any) -> Any:
        """What takes the place of a call of NumPy's functions."""
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise TypeError("a call of what is no function")
        match function.function, arguments:
            case "array", (_Name("ndarray"), _, _):
                return _Array()
            case "dtype", (str() | bytes() as code, *_):
                return _Type(_latin(code))
            case "encode", (str() as text, "latin1" | "latin-1"):
                return self._encoded(text)
            case "nothing", ():
                return b""
            case "buffer", (bytes() | bytearray() as raw, _Type() as kind, tuple() as shape, order):
                return _Array(_filled(raw, kind, shape, order == "F"))
            case _:
                raise TypeError(f"{function.function} with other arguments than NumPy's")

    def _build(self, target: Any, state: Any) -> None:
        """Fill in what was made, as NumPy's own __setstate__ do."""
        match target, state:
            case _Type(), (_, str() | bytes() as order, None, None, None, *_):
                target.order = _latin(order)
            case _Array(), (_, tuple() as shape, _Type() as kind, fortran, str() | bytes() as raw):
                raw = self._encoded(raw) if isinstance(raw, str) else raw
                target.filled = _filled(raw, kind, shape, bool(fortran))
            case _Array(), (_, _, _Type() as kind, *_):
                kind.dtype()
                raise TypeError("an array without its bytes")
            case _:
                raise TypeError("a state for what has none")

    def _encoded(self, text: str) -> bytes:
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("the same bytes over and over")
        return text.encode("latin1")


def _filled(
    raw: bytes | bytearray, kind: _Type, shape: tuple[Any, ...], fortran: bool
) -> NDArray[Any]:
    dtype = kind.dtype()
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
        raise TypeError("an array's shape of other than whole numbers")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of {len(raw)} bytes that promises shape {shape}")
    # Not copied: a pickle can name the same bytes a thousand times.
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _latin(text: str | bytes) -> str:
    return text.decode("latin1") if isinstance(text, bytes) else text


def _finished(result: Any) -> Any:
    """With arrays in place of what stood for them."""
    if isinstance(result, dict):
        return {key: _array_of(value) for key, value in result.items()}
    return _array_of(result)


def _array_of(value: Any) -> Any:
    return value.filled if isinstance(value, _Array) else value
