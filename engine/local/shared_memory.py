"""Memory that processes share, and who holds what of it.

The memory has no name in any file system, so it ends with the last process that uses it, however
these end. It is no part of /dev/shm, which Docker limits to 64 MB.
"""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np

PAGE = 64 << 10  # bytes; places for images begin at multiples
NOTHING = -1  # the mark of a feeder that decodes no row


class SharedMemory:
    """Places for images, and a mark for each feeder: the row that it decodes at the moment.

    A mark can be read after its feeder has crashed.
    """

    def __init__(self, file: int) -> None:
        """Map the memory of a file descriptor that `create` returned in another process."""
        self.file = file
        memory = mmap.mmap(file, os.fstat(file).st_size)
        self.marks = np.frombuffer(memory, np.int64, PAGE // 8)
        self.places = np.frombuffer(memory, np.uint8, offset=PAGE)

    @classmethod
    def create(cls, size: int) -> SharedMemory:
        """New memory with `size` bytes of places. Its pages are taken when they are written to."""
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("forager-images")
        else:  # not on Linux
            with tempfile.TemporaryFile() as unnamed:
                file = os.dup(unnamed.fileno())
        os.ftruncate(file, PAGE + size)
        return cls(file)

    def close(self) -> None:
        """Close the file. The memory itself goes with the last array that shows it."""
        os.close(self.file)


class Amounts:
    """A quantity that rows may hold. A row gets more than the limit when nothing else is held."""

    def __init__(self, limit: int) -> None:
        self._limit, self._sum = limit, 0
        self._held: dict[int, int] = {}

    def take(self, row: int, amount: int) -> int | None:
        """Let a row hold an amount. None if too much is held."""
        if self._held and self._sum + amount > self._limit:
            return None
        self._held[row] = amount
        self._sum += amount
        return 0

    def release(self, row: int) -> None:
        """Take back what a row holds, if it holds anything."""
        self._sum -= self._held.pop(row, 0)


class Places:
    """Which parts of `size` bytes rows hold: each holds one part."""

    def __init__(self, size: int) -> None:
        self._pages = bytearray(size // PAGE)  # 0 where a page is free
        self._held: dict[int, tuple[int, int]] = {}  # row -> first page, pages

    def take(self, row: int, size: int) -> int | None:
        """Let a row hold `size` bytes; returns where they begin. None if there is no such gap."""
        pages = -(-size // PAGE)
        if pages > len(self._pages):
            raise ValueError(f"{size:,} bytes are more than all places have")
        first = self._pages.find(bytes(pages))
        if first < 0:
            return None
        self._pages[first : first + pages] = b"\1" * pages
        self._held[row] = first, pages
        return first * PAGE

    def place(self, row: int) -> int:
        """Where the bytes of a row begin."""
        return self._held[row][0] * PAGE

    def release(self, row: int) -> None:
        """Take back what a row holds, if it holds anything."""
        first, pages = self._held.pop(row, (0, 0))
        self._pages[first : first + pages] = bytes(pages)
