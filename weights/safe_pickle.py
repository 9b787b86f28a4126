"""Reads pickles of plain data and NumPy arrays, also from sources that are not trusted.

It is Python's Unpickler with a `find_class` that allows only the names in NumPy's own pickles. The
functions behind those names are the ones of this module: with NumPy's a crafted dtype makes an
array take its bytes for pointers, and a shape of any size is allocated.

The Unpickler is the one written in Python. The one written in C takes 4 GB for the nine bytes
`}r\\0\\0\\0\\x10.`, because its memo is an array, and it hides the keys of dicts: 200,000 integers
with the same hash keep it busy for a minute.
"""

from __future__ import annotations

import itertools
import mmap
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

MAX_FILE_BYTES = 512 << 20  # R-50.pkl has 102 MB
MAX_READS = 200_000  # R-50.pkl takes 20,000
INSTRUCTIONS = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.REDUCE, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL),
)
PLAIN_DTYPE = re.compile(r"[<>=|]?(?:f[248]|[iu][1248]|b1)")
# What damaged pickles raise: the documentation of pickle names these and says that there are more.
DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, MemoryError, AssertionError, struct.error),
)


class UnsafePickleError(Exception):
    """What a file has that it must not have, to be put behind its name."""


def read_pickle(path: Path, max_reads: int = MAX_READS) -> Any:
    """The dicts with string keys, lists, tuples, strings, numbers and arrays in a pickle.

    Strings of Python 2 are read as latin1. `max_reads` limits the parts of the file: an entry of
    {str: int} takes 6 to 8. Memory stays within five times the size of the file and 200 bytes for
    each read, whatever the file claims. A dict of 1,000,000 names takes 2.4 s, R-50.pkl 0.8 s.

    Raises:
        UnsafePickleError: the file holds anything else, or is damaged.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise UnsafePickleError(f"has {size:,} bytes")
    # A map: its read(n) ends with the file, so a claimed length of 2**60 allocates nothing.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        try:
            return _Reader(view, max_reads).load()
        except DAMAGE as error:
            problem = "is not a pickle of plain data and NumPy arrays, or is cut short or damaged"
            raise UnsafePickleError(problem) from error


class _Dtype:
    """A NumPy dtype of plain numbers, as a pickle builds it: its code, then its byte order."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not PLAIN_DTYPE.fullmatch(code):
            raise UnsafePickleError(f"has an array of the type {str(code)[:40]!r}, not of numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise UnsafePickleError("has an array type with named fields or sub-arrays")
        self.dtype = self.dtype.newbyteorder(state[1])


def _empty_array(*_: object) -> np.ndarray:
    """What `_reconstruct` returns; BUILD then brings shape, dtype and numbers."""
    return np.empty(0, np.uint8)


class _Reader(pickle._Unpickler):
    # Attributes of the base class that its type stub leaves out.
    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, view: mmap.mmap, max_reads: int) -> None:
        reads = itertools.count(1)

        def read(size: int) -> bytes:
            if next(reads) > max_reads:
                raise UnsafePickleError("has far too many parts")
            return view.read(size)

        source = SimpleNamespace(read=read, readline=view.readline)
        super().__init__(source, encoding="latin1")
        # Bytes: text of Python 2 is copied twice, and one text may not be copied again and again.
        self._copyable = 2 * len(view)
        self._known: dict[str, object] = {
            "numpy.dtype": _Dtype,
            "numpy.ndarray": "ndarray",  # an argument of _reconstruct, never called
            "_codecs.encode": lambda text, _: self._bytes(text),
            "__builtin__.bytes": lambda: b"",  # how Python 3 writes b"" for Python 2
        }
        for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
            self._known[f"{core}.multiarray._reconstruct"] = _empty_array
            self._known[f"{core}.multiarray.scalar"] = self._scalar
            self._known[f"{core}.numeric._frombuffer"] = self._array

    def find_class(self, module: str, name: str) -> Any:
        if (full_name := f"{module}.{name}") not in self._known:
            raise UnsafePickleError(
                f"names {full_name[:100]!r}, which is no NumPy array and could run code"
            )
        return self._known[full_name]

    def _bytes(self, data: str | bytes) -> bytes:
        self._copyable -= len(data)
        if self._copyable < 0:
            raise UnsafePickleError("repeats one text too often")
        return data.encode("latin1") if isinstance(data, str) else data

    def _array(self, data: Any, dtype: _Dtype, shape: Any = (), order: str = "C") -> np.ndarray:
        array = _empty_array()
        self._fill(array, shape, dtype, order == "F", data)
        return array

    def _scalar(self, dtype: _Dtype, data: Any) -> Any:
        return self._array(data, dtype)[()]

    def _fill(
        self, array: np.ndarray, shape: Any, dtype: _Dtype, fortran: Any, data: str | bytes
    ) -> None:
        """NumPy refuses a shape that does not fit the bytes, before it allocates anything."""
        array.__setstate__((1, shape, dtype.dtype, fortran, self._bytes(data)))

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.ndarray):
            self._fill(target, *state[1:])
        elif isinstance(target, _Dtype):
            target.set_state(state)
        else:
            raise UnsafePickleError("sets the state of something that is no array")

    def _load_item(self) -> None:
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    def _load_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        """Python's hashes of strings are secret; those of numbers and tuples can be chosen."""
        target, keys = self.stack[-1], items[::2]
        if type(target) is not dict or not set(map(type, keys)) <= {str}:
            raise UnsafePickleError("has a dict with keys that are not strings")
        target.update(zip(keys, items[1::2], strict=True))

    def _load_frame(self) -> None:
        self.read(8)  # its length: frames are of use only to read from a network

    def _load_bytearray(self) -> None:
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch: ClassVar[dict[int, Any]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in INSTRUCTIONS},
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
        pickle.FRAME[0]: _load_frame,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }
