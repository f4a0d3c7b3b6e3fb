"""Pickled lists, dictionaries and arrays, read without unpickling: nothing in a file is ever looked up or called.

`pickletools.genops` only cuts a file into its instructions.  Those that make plain values are followed here by hand; an
array is made of its shape, its type and its bytes, and whatever else a file asks for is refused by name.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sage.bench.files import BenchmarkError
from sage.files import read_plain

MAX_BYTES, MAX_STEPS, MAX_ENTRIES, MAX_DEPTH = 2**27, 2**24, 2**27, 8
DTYPES = {"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"}
# What arrays, and bytes in old protocols, are pickled with.
MODULES = {"ndarray": ("numpy",), "dtype": ("numpy",), "encode": ("_codecs",), "bytes": ("builtins", "__builtin__"),
           **dict.fromkeys(("_reconstruct", "scalar"), ("numpy.core.multiarray", "numpy._core.multiarray")),
           "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric")}

VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
          "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
          "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}


class Refused(ValueError):
    """What is no plain value."""


@dataclass(frozen=True)
class Named:
    """A name that a file gives; it stands for nothing until `_made` or `_built` knows it."""

    module: str
    name: str


@dataclass
class Array:
    """An array or a type that is being described."""

    value: Any = None


def read_pickle(path: str | Path) -> Any:
    """A file's lists, tuples, dictionaries, numbers, texts, bytes and arrays.

    Raises:
        BenchmarkError: not there, too large, damaged, or with anything else in it, which is named.
    """
    path = Path(path)
    try:
        return values_of(read_plain(path, BenchmarkError, MAX_BYTES))
    except Refused as error:
        raise BenchmarkError(f"{path} is refused: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise BenchmarkError(f"{path} is no pickle of plain values, or damaged") from error


def values_of(data: bytes) -> Any:
    """What `data` describes; Refused or a ValueError for what it must not."""
    stack: list[Any] = []
    marks: list[int] = []  # how high the stack was
    memo: dict[int, Any] = {}
    for step, (opcode, arg, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if step > MAX_STEPS:
            raise Refused("it has too many instructions")
        if name == "STOP":
            return finished(stack.pop(), [MAX_STEPS])
        if name in ("PROTO", "FRAME"):
            continue
        if name in VALUES:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(arg)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(arg)])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_name(*((stack.pop(-2), stack.pop()) if name == "STACK_GLOBAL" else arg.split(" ", 1))))
        else:
            _structured(name, stack, marks)
    raise ValueError("it does not end")


def _structured(name: str, stack: list[Any], marks: list[int]) -> None:
    """One instruction that makes something of what is on the stack."""
    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name in ("TUPLE", "LIST", "DICT"):
        items = since_mark()
        stack.append(tuple(items) if name == "TUPLE" else list(items) if name == "LIST" else _pairs(items))
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else since_mark()
        if not isinstance(stack[-1], list):
            raise ValueError("what is appended to is no list")
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
        if not isinstance(stack[-1], dict):
            raise ValueError("what is set in is no dictionary")
        stack[-1].update(_pairs(items))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack.append(_made(stack.pop(), arguments))
    elif name == "BUILD":
        state = stack.pop()
        _build(stack[-1], state)
    else:
        raise Refused(f"it has the instruction {name}")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _name(module: Any, name: Any) -> Named:
    if not isinstance(name, str) or module not in MODULES.get(name, ()):
        raise Refused(f"it asks for {str(module)[:40]}.{str(name)[:40]}")
    return Named(module, name)


def finished(value: Any, budget: list[int], depth: int = 0) -> Any:
    """The value with arrays in the place of what described them; a ValueError for what is not whole.

    Args:
        budget: how many parts it may have; what is there twice counts twice.
    """
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise Refused("it is nested too deeply, or has too many parts")
    if isinstance(value, Array):
        if not isinstance(value.value, np.ndarray):
            raise ValueError("an array without numbers")
        return value.value
    if isinstance(value, list | tuple):
        return type(value)(finished(part, budget, depth + 1) for part in value)
    if isinstance(value, dict):
        return {key: finished(part, budget, depth + 1) for key, part in value.items()}
    if isinstance(value, Named):
        raise ValueError("a name is no value")
    return value


def _made(called: Any, arguments: Any) -> Any:
    """What a call would give: an array or type to be filled in, bytes, or one number."""
    if not isinstance(called, Named) or not isinstance(arguments, tuple):
        raise Refused("it calls what is no name")
    if called.name == "_reconstruct":
        return Array()
    if called.name == "dtype":
        kind = arguments[0] if isinstance(arguments[0], str) else ""
        if kind not in DTYPES:
            raise Refused(f"it has numbers of the type {kind[:20]!r}")
        return Array(np.dtype(kind))
    if called.name == "encode" and len(arguments) == 2 and all(isinstance(a, str) for a in arguments):
        if arguments[1] not in ("latin1", "latin-1"):
            raise Refused(f"it has bytes written as {arguments[1][:20]!r}")
        return arguments[0].encode("latin-1")
    if called.name == "bytes" and arguments == ():
        return b""
    if called.name == "_frombuffer":
        data, kind, shape, order = arguments
        made = Array()
        _build(made, (1, shape, kind, order == "F", data))
        return made
    if called.name == "scalar" and isinstance(kind := arguments[0], Array):
        [value] = np.frombuffer(_bytes(arguments[1]), _dtype(kind))
        return value.item()
    raise Refused(f"it calls {called.module}.{called.name}")


def _build(made: Any, state: Any) -> None:
    if not isinstance(made, Array) or not isinstance(state, tuple):
        raise Refused("it builds what is no array")
    if isinstance(made.value, np.dtype):
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise Refused("it has numbers of an unknown byte order")
        made.value = made.value.newbyteorder(order)
        return
    _, shape, kind, fortran, data = state
    if not isinstance(shape, tuple) or not all(type(side) is int and 0 <= side for side in shape) or len(shape) > 8:
        raise ValueError("the shape of an array")
    if math.prod(shape) > MAX_ENTRIES:
        raise Refused("it has an array of too many entries")
    made.value = np.frombuffer(_bytes(data), _dtype(kind)).reshape(shape, order="F" if fortran else "C").copy()


def _dtype(kind: Any) -> np.dtype:
    if not isinstance(kind, Array) or not isinstance(kind.value, np.dtype):
        raise ValueError("the type of an array")
    return kind.value


def _bytes(data: Any) -> bytes:
    return data.encode("latin-1") if isinstance(data, str) else bytes(data) if isinstance(
        data, bytes | bytearray) else b""
