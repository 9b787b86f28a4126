"""A part of a file that reads as a file of its own."""

from __future__ import annotations

import io
import os
from pathlib import Path


class FileSlice(io.RawIOBase):
    """The bytes start..start+size of a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._start, self._size, self._at = start, size, 0

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._at
        data = os.pread(
            self._file.fileno(), left if size < 0 else min(size, left), self._start + self._at
        )
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
