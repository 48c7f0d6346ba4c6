"""Reads pickles of NumPy arrays in dicts, and refuses all others. It imports and calls nothing that a file names.

A pickle is a program for a machine with a stack and a memo. NumPy writes an array as one of two calls: up to protocol 4

    a = numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), b'b')     a.__setstate__((1, shape, dtype, order, data))
    dtype = numpy.dtype('f4', False, True)                                dtype.__setstate__((3, '<', ...))

and from protocol 5 on `numpy.core.numeric._frombuffer(data, dtype, shape, order)`; after the order 'K' follow the axes.
NumPy 2 writes `numpy._core`. This reader knows these names and the instructions around them. It makes the arrays
itself, as views of the data.

With the memo, n instructions make tuples in tuples that lead to the innermost in 2^n ways. To hash or print one would
take forever. So keys, names and types must be strings before anything is done with them.
"""

from __future__ import annotations

import math
import pickletools
from mmap import mmap
from typing import Any, NamedTuple

import numpy as np

_CORE = ("numpy.core.", "numpy._core.")
_NAMES = {
    **{f"{core}multiarray _reconstruct": "_reconstruct" for core in _CORE},
    **{f"{core}numeric _frombuffer": "_frombuffer" for core in _CORE},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
}
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_KINDS = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split()  # a letter and the number of bytes
_MOST_DIMENSIONS, _MOST_VALUES = 64, 2**63  # of NumPy
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(NamedTuple):
    """One of the functions and classes of _NAMES."""

    name: str


class _Dtype:
    """The dtype of an array: one of _KINDS; then its byte order."""

    def __init__(self, kind: Any) -> None:
        if _string(kind) not in _KINDS:
            raise ValueError(f"it holds an array of type {kind!r:.99}; only real numbers of up to 8 bytes are read")
        self.dtype = np.dtype(kind)

    def build(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(_string(state[1]))


class _Array:
    """An array, to be filled."""

    array: np.ndarray

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _view(data, dtype, shape, "F" if fortran else "C")


def _view(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """The array in these bytes, without a copy."""
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"it holds an array without a shape of at most {_MOST_DIMENSIONS} dimensions")
    if not all(type(n) is int and 0 <= n < _MOST_VALUES for n in shape):
        raise ValueError("it holds an array of an impossible shape")
    if len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError(f"it holds an array of {dtype.dtype} and shape {list(shape)!s:.99} in {len(data)} bytes")
    array = np.frombuffer(data, dtype.dtype)
    return array.reshape(shape, order=_string(order)) if axes is None else array.reshape(shape).transpose(axes)


def _string(given: Any) -> Any:
    """What is given, if it is a string."""
    if not isinstance(given, str):
        raise ValueError(f"it has an object of type {type(given).__name__} where NumPy writes a string")
    return given


def _call(function: Any, arguments: Any) -> object:
    match function.name:
        case "_reconstruct":
            return _Array()
        case "dtype":
            return _Dtype(arguments[0])
        case "_frombuffer":
            array = _Array()
            array.array = _view(*arguments)
            return array
    raise ValueError(f"it calls {function.name}")


def _name(given: str) -> _Name:
    if given not in _NAMES:
        name = given.replace(" ", ".")
        raise ValueError(f"it holds {name:.99}; only pickles of NumPy arrays in dicts are read")
    return _Name(_NAMES[given])


def read_pickle(pickled: bytes | mmap) -> object:
    """The content of a pickle: an array, or a dict of strings to arrays and dicts.

    Args:
        pickled: a pickle of protocol 3 to 5.

    Returns:
        dicts as they were; arrays as read-only views of the pickle's data.

    Raises:
        ValueError: the pickle holds anything else, or is damaged. A damaged one may also raise a LookupError, a
            TypeError, an AttributeError or a RecursionError.
    """
    stack: list[Any] = []
    marks: list[int] = []  # the stack's lengths at the marks
    memo: dict[int, Any] = {}

    def popped_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    file: Any = pickled  # a map has what genops calls: read, readline, tell
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(popped_to_mark()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1].update({_string(key): value})
        elif name == "SETITEMS":
            items = popped_to_mark()
            stack[-1].update(zip(map(_string, items[::2]), items[1::2], strict=True))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_name(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_name(f"{_string(module)} {_string(attribute)}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].build(state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it has the instruction {name}; only pickles of NumPy arrays in dicts are read")
    (content,) = stack
    return _checked(content, {})


def _checked(content: Any, seen: dict[int, object]) -> object:
    """The content with arrays in the place of what stood for them. A dict may occur several times, or hold itself."""
    if isinstance(content, _Array):
        return content.array
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"it holds an object of type {kind}; only pickles of NumPy arrays in dicts are read")
    if id(content) not in seen:
        checked = seen[id(content)] = {}
        for key, value in content.items():
            checked[key] = _checked(value, seen)
    return seen[id(content)]
