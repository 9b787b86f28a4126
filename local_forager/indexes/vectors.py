"""The vectors of one embedding, memory-mapped, and exact nearest neighbours among them."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK_BYTES = 32 * 1024 * 1024  # rows multiplied at once; 8 to 64 MiB take the same time
KEEP_MAPPED_BYTES = 1024 * 1024 * 1024  # the pages of a larger array are released after each block


class Neighbours(NamedTuple):
    rows: np.ndarray  # int64, nearest first
    distances: np.ndarray  # float32, 1 - cosine, from 0 (same direction) to 2


class Vectors:
    """One array of an index: n x d little-endian float32 without a header, mapped read-only.

    Rows are unit vectors; the row of a failed image is all zeros.
    """

    def __init__(
        self,
        path: Path,
        rows: int,
        dimensions: int,
        block_bytes: int = BLOCK_BYTES,
        keep_mapped_bytes: int = KEEP_MAPPED_BYTES,
    ) -> None:
        self.rows, self.dimensions = rows, dimensions
        self._block_rows = max(1, block_bytes // (4 * dimensions))
        self._keep_mapped_bytes = keep_mapped_bytes
        self._map: mmap.mmap | None = None
        self.array = np.zeros((0, dimensions), np.float32)
        if rows:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.array = np.frombuffer(self._map, "<f4").reshape(rows, dimensions)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each block. Of a large array only one block stays mapped."""
        for start in range(0, self.rows, self._block_rows):
            yield start, self.array[start : start + self._block_rows]
            if self.array.nbytes > self._keep_mapped_bytes:
                self._release(start, min(start + self._block_rows, self.rows))

    def _release(self, start: int, stop: int) -> None:
        """Unmap the pages of these rows. The system may keep them in its cache."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        row_bytes = 4 * self.dimensions
        first = start * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, stop * row_bytes - first)

    def similarities(self, query: np.ndarray) -> np.ndarray:
        """Cosine of the query, a unit vector, with each row: float32 (n,); 0 for failed images."""
        result = np.empty(self.rows, np.float32)
        for start, block in self.blocks():
            np.matmul(block, query, out=result[start : start + len(block)])
        return result

    def neighbours(self, row: int, count: int, failed: np.ndarray) -> Neighbours:
        """The images nearest to a row, without the row itself and without failed images."""
        similarity = self.similarities(np.array(self.array[row]))
        similarity[failed] = -np.inf
        similarity[row] = -np.inf
        return nearest(similarity, count)


def nearest(similarity: np.ndarray, count: int) -> Neighbours:
    """The rows with the largest finite similarities; ties in row order."""
    count = min(count, int(np.isfinite(similarity).sum()))
    if count == 0:
        return Neighbours(np.zeros(0, np.int64), np.zeros(0, np.float32))
    least = np.partition(similarity, len(similarity) - count)[len(similarity) - count]
    rows = np.flatnonzero(similarity >= least)
    rows = rows[np.argsort(-similarity[rows], kind="stable")][:count]
    return Neighbours(rows, np.maximum(1 - similarity[rows], 0).astype(np.float32))
