"""Read pickled NumPy arrays with a reader of the format that has no way to call or import anything.

The standard library splits the file into opcodes (pickletools, which executes nothing); this module
knows what the opcodes of numbers, strings, containers and NumPy arrays mean and refuses every other
one. Names of classes and functions in the file are compared with the few below and never looked
up, so that they cannot reach code.
"""

import math
import mmap
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

MAX_FILE_BYTES = 1 << 30  # R-50.pkl is a tenth of this
MAX_OPCODES = 1_000_000  # R-50.pkl has about 10,000
MAX_DIMENSIONS = 8
MAX_DEPTH = 20
PLAIN_DTYPE = re.compile(r"[<>=|]?(?:f[248]|[iu][1248]|b1)")

# What the file may name, by the older and the newer home of each in NumPy, in Python 2 and 3.
RECONSTRUCT, SCALAR, FROM_BUFFER = "_reconstruct", "scalar", "_frombuffer"
DTYPE, NDARRAY, ENCODE, EMPTY_BYTES = "dtype", "ndarray", "encode", "bytes"
KNOWN_GLOBALS = {
    "numpy.core.multiarray _reconstruct": RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": RECONSTRUCT,
    "numpy.core.multiarray scalar": SCALAR,
    "numpy._core.multiarray scalar": SCALAR,
    "numpy.core.numeric _frombuffer": FROM_BUFFER,
    "numpy._core.numeric _frombuffer": FROM_BUFFER,
    "numpy dtype": DTYPE,
    "numpy ndarray": NDARRAY,
    "_codecs encode": ENCODE,
    "__builtin__ bytes": EMPTY_BYTES,  # how Python 3 writes b"" for Python 2
}

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
IGNORED = {"PROTO", "FRAME"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}


class UnsafePickleError(ValueError):
    """The file is no pickle of plain data, in one sentence without its name."""


class _Global(NamedTuple):
    name: str


class _Dtype:
    """A NumPy dtype as the file builds it: a code such as "f4", its byte order by a later BUILD."""

    def __init__(self, code: object) -> None:
        if not isinstance(code, str) or not PLAIN_DTYPE.fullmatch(code):
            raise UnsafePickleError(f"has an array of the type {str(code)[:40]!r}, not of numbers")
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|", "=")):
            raise UnsafePickleError("has an array type with an unknown description")
        if any(part is not None for part in state[2:5]):
            raise UnsafePickleError("has an array type with named fields or sub-arrays")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A NumPy array: its REDUCE creates it empty, its BUILD brings shape, type and bytes."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def build(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Dtype)):
            raise UnsafePickleError("has an array with an unknown description")
        _, shape, kind, fortran, data = state
        self.array = _array(data, kind.dtype, shape, "F" if fortran else "C")


def _array(data: object, dtype: np.dtype, shape: object, order: object) -> np.ndarray:
    """A view of `data` as an array; nothing is allocated by what the file claims about its size."""
    if not isinstance(data, (bytes, bytearray)) or order not in ("C", "F"):
        raise UnsafePickleError("has an array without its numbers")
    sizes = shape if isinstance(shape, tuple) else ()
    if (
        shape != sizes
        or len(sizes) > MAX_DIMENSIONS
        or any(type(n) is not int or n < 0 for n in sizes)
    ):
        raise UnsafePickleError("has an array of an impossible shape")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise UnsafePickleError(
            f"has an array of shape {'x'.join(str(n)[:20] for n in sizes)}"
            f" with {len(data):,} bytes of numbers"
        )
    flat = np.frombuffer(data, dtype)
    return flat.reshape(sizes) if order == "C" else flat.reshape(sizes[::-1]).transpose()


def _finish(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Replace the half-built arrays by the arrays; what occurs twice is visited once."""
    if id(value) in seen:
        return seen[id(value)]
    if depth > MAX_DEPTH:
        raise UnsafePickleError(f"is nested more than {MAX_DEPTH} levels deep")
    result = value
    match value:
        case _Array():
            result = value.array
            if result is None:
                raise UnsafePickleError("has an array without its numbers")
        case dict():
            result = {key: _finish(item, seen, depth + 1) for key, item in value.items()}
        case list():
            result = [_finish(item, seen, depth + 1) for item in value]
        case tuple() if not isinstance(value, _Global):
            result = tuple(_finish(item, seen, depth + 1) for item in value)
        case _Global() | _Dtype():
            raise UnsafePickleError("has a class or function where data is expected")
    seen[id(value)] = result
    return result


class _Reader:
    """The stack machine of the pickle format, for plain data."""

    def __init__(self, size: int) -> None:
        self.encodable = size  # bytes: a file cannot have one long text encoded again and again
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def push_global(self, name: str) -> None:
        if name not in KNOWN_GLOBALS:
            raise UnsafePickleError(
                f"names {name[:100].replace(' ', '.')!r},"
                " which is no NumPy array and could run code"
            )
        self.stack.append(_Global(KNOWN_GLOBALS[name]))

    def encode(self, data: Any) -> Any:
        """The bytes of text that Python 2 wrote; other values unchanged."""
        if not isinstance(data, str):
            return data
        self.encodable -= len(data)
        if self.encodable < 0:
            raise UnsafePickleError("repeats one text too often")
        return data.encode("latin1")

    def call(self, function: object, arguments: object) -> object:
        """What REDUCE would call, for the few functions that NumPy's own pickles name."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise UnsafePickleError("calls something that is not a function")
        match function.name, arguments:
            case "_reconstruct", (_Global("ndarray"), (0,), "b" | b"b"):
                return _Array()
            case "dtype", (code, *_):
                return _Dtype(code.decode("latin1") if isinstance(code, bytes) else code)
            case "encode", (str(text), "latin1" | "latin-1"):
                return self.encode(text)
            case "bytes", ():
                return b""
            case "scalar", (_Dtype() as kind, data):
                return _array(self.encode(data), kind.dtype, (), "C")[()]
            case "_frombuffer", (data, _Dtype() as kind, shape, order):
                return _array(data, kind.dtype, shape, order)
        raise UnsafePickleError(f"calls {function.name} with unexpected arguments")

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in VALUES:
            stack.append(argument)
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in EMPTY:
            stack.append(EMPTY[opcode]())
        elif opcode in TUPLES:
            count = TUPLES[opcode]
            if len(stack) < count:
                raise IndexError
            stack[-count:] = [tuple(stack[-count:])]
        elif opcode in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if opcode == "MEMOIZE" else argument] = stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode not in IGNORED:
            self.compose(opcode, argument)

    def compose(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "MARK":
                self.marks.append(len(stack))
            case "POP_MARK":
                self.since_mark()
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "LIST":
                stack.append(self.since_mark())
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode == "APPEND" else self.since_mark()
                _as(list, stack[-1]).extend(items)
            case "DICT" | "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode == "SETITEM" else self.since_mark()
                if opcode == "DICT":
                    stack.append({})
                # Plain keys only: to hash a tuple of tuples of tuples could take forever.
                keys = [_as((str, bytes, int), key) for key in items[::2]]
                _as(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
            case "GLOBAL":
                self.push_global(argument)
            case "STACK_GLOBAL":
                name, module = _as(str, stack.pop()), _as(str, stack.pop())
                self.push_global(f"{module} {name}")
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], (_Array, _Dtype)):
                    raise UnsafePickleError("sets the state of something that is no array")
                if isinstance(stack[-1], _Array) and isinstance(state, tuple) and state:
                    state = (*state[:-1], self.encode(state[-1]))
                stack[-1].build(state)
            case "INST":
                self.push_global(argument)
                raise UnsafePickleError("creates an object, which could run code")
            case _:
                raise UnsafePickleError(
                    f"uses the pickle instruction {opcode}, which could run code"
                )


def _as(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise UnsafePickleError(f"has {type(value).__name__.strip('_').lower()} in the wrong place")
    return value


def read_pickle(path: Path) -> Any:
    """The dicts, lists, strings, numbers and NumPy arrays in a pickle of Python 2 or 3.

    Strings of Python 2 are read as latin1. Raises UnsafePickleError for everything else, OSError
    where the file cannot be read. Memory stays within about three times the size of the file,
    whatever the file claims.
    """
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise UnsafePickleError(f"has {size:,} bytes")
    reader = _Reader(size)
    # A map, since read(n) of a map ends with the file: a claimed length of 2**60 allocates nothing.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        try:
            opcodes = pickletools.genops(cast(IO[bytes], view))
            for count, (opcode, argument, _) in enumerate(opcodes):
                if count > MAX_OPCODES:
                    raise UnsafePickleError("has far too many parts")
                if opcode.name == "STOP":
                    break
                reader.step(opcode.name, argument)
            return _finish(reader.stack.pop(), {})
        except UnsafePickleError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise UnsafePickleError("is no pickle, or is cut short or damaged") from error
