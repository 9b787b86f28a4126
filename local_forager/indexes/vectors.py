"""The vectors of one embedding, memory-mapped, and nearest neighbours: among all, or with faiss.

With faiss, the vectors are divided into lists around the centres that k-means finds: an inverted
file. A search reads the lists whose centres are nearest, in one byte per number, and then compares
the best candidates exactly: distances are exact, but an image in a list that was not read is
missing.
"""

import hashlib
import importlib.util
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import written_whole
from dataset.arrays import DIMENSIONS
from local_forager.types import PageError

COMPARED_BY = ("clip", *(name for name in DIMENSIONS if name != "clip"))  # the default first
BLOCK_BYTES = 32 * 1024 * 1024  # rows multiplied at once; 8 to 64 MiB take the same time
KEEP_MAPPED_BYTES = 1024 * 1024 * 1024  # the pages of a larger array are released after each block
EXACT_ROWS = 200_000  # images up to which every search compares with all: 15 ms by CLIP
NOT_INSTALLED = "Install faiss-cpu beside local_forager for faster searches of this many images."
ROWS_A_LIST = 500
TRAINED_ROWS_A_LIST = 40  # rows that k-means uses
ITERATIONS = 8  # of k-means
ADDED_ROWS = 32_768  # at once
READ_SHARE = 1 / 32  # of the lists that a search reads
CANDIDATES = 4  # times as many as neighbours are wanted, compared exactly
TRAINING_SHARE = 0.4  # of the time of building
SEED = 0
KEY_BYTES = 8  # of a million different vectors, two have one key once in 40 million cases

Progress = Callable[[float], None]  # called with the share of the work that is done, 0 to 1


def part(progress: Progress, begin: float, end: float) -> Progress:
    """Reports the progress of a part of the work."""
    return lambda share: progress(begin + (end - begin) * share)


class Neighbours(NamedTuple):
    rows: np.ndarray  # int64, nearest first
    distances: np.ndarray  # float32, 1 - cosine, from 0 (same direction) to 2


class Vectors:
    """One array of an index: n x d little-endian float32 without a header, mapped read-only.

    Rows are unit vectors; the row of a failed image is all zeros.
    """

    def __init__(self, path: Path, rows: int, dimensions: int) -> None:
        self.rows, self.dimensions = rows, dimensions
        self._map: mmap.mmap | None = None
        self._path = path
        self._array = np.zeros((0, dimensions), np.float32)
        if rows:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 4 * rows * dimensions, access=mmap.ACCESS_READ)
            self._array = np.frombuffer(self._map, "<f4").reshape(rows, dimensions)

    def is_whole(self) -> bool:
        """Whether the file still has all rows. Reading beyond its end would end the process."""
        return self._map is None or self._map.size() >= self._array.nbytes

    @property
    def array(self) -> np.ndarray:
        """float32 (n, d).

        Raises:
            PageError: the file was cut short while it was mapped.
        """
        if not self.is_whole():
            raise PageError(409, f"{self._path.name} of the index was cut short on this machine.")
        return self._array

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of each block. Of a large array only one block stays mapped."""
        rows = max(1, BLOCK_BYTES // (4 * self.dimensions))
        for start in range(0, self.rows, rows):
            block = self.array[start : start + rows]
            yield start, block
            if self._map and self._array.nbytes > KEEP_MAPPED_BYTES:
                # Unmap the pages of these rows. The system may keep them in its cache.
                first, stop = (4 * self.dimensions * row for row in (start, start + len(block)))
                first -= first % mmap.PAGESIZE
                self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)

    def similarities(self, query: np.ndarray) -> np.ndarray:
        """Products of each row with the query, or with each column of it; not of failed images.

        float32 (n,) or (n, k); with a unit vector, the cosine.
        """
        result = np.empty((self.rows, *query.shape[1:]), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # of failed rows that are not finite
            for start, block in self.blocks():
                np.matmul(block, query, out=result[start : start + len(block)])
        return result

    def neighbours(self, row: int, count: int, failed: np.ndarray) -> Neighbours:
        """The images nearest to a row, without the row itself and without failed images."""
        similarity = self.similarities(np.array(self.array[row]))
        similarity[failed] = -np.inf
        similarity[row] = -np.inf
        return nearest(similarity, count)


def keys_of(vectors: Vectors, progress: Progress = lambda share: None) -> np.ndarray:
    """uint64 (n,): a hash of each row, equal for identical vectors only."""
    keys = bytearray()
    for start, block in vectors.blocks():
        keys += b"".join(hashlib.blake2b(row, digest_size=KEY_BYTES).digest() for row in block)
        progress((start + len(block)) / vectors.rows)
    return np.frombuffer(bytes(keys), np.uint64)


def in_order(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The rows, those with the smallest values first; equal ones stay in their order."""
    return np.take(rows, np.argsort(values[rows], kind="stable"))


def nearest(similarity: np.ndarray, count: int) -> Neighbours:
    """The rows with the largest finite similarities; ties in row order."""
    count = min(count, int(np.isfinite(similarity).sum()))
    if count == 0:
        return Neighbours(np.zeros(0, np.int64), np.zeros(0, np.float32))
    least = np.partition(similarity, len(similarity) - count)[len(similarity) - count]
    rows = np.flatnonzero(similarity >= least)  # few of many: only these are put in order
    rows = rows[np.argsort(-similarity[rows], kind="stable")][:count]
    return Neighbours(rows, np.maximum(1 - similarity[rows], 0).astype(np.float32))


def faiss_installed() -> bool:
    return importlib.util.find_spec("faiss") is not None


class InvertedFile:
    """The vectors of good images in lists of similar ones."""

    def __init__(self, vectors: Vectors, index: Any) -> None:
        self.vectors, self._index = vectors, index
        self.lists = int(index.nlist)
        index.nprobe = max(8, round(self.lists * READ_SHARE))

    def neighbours(self, row: int, count: int) -> Neighbours:
        """Images near to a row, without the row itself."""
        query = np.array(self.vectors.array[row])
        _, (found,) = self._index.search(query[None], CANDIDATES * count + 1)
        rows = np.sort(found[(found >= 0) & (found != row)])
        near = nearest(self.vectors.array[rows] @ query, count)
        return Neighbours(rows[near.rows], near.distances)

    def nearest_lists(self, rows: np.ndarray, count: int) -> np.ndarray:
        """int32 (n, count): the lists whose centres are nearest to each row, nearest first."""
        result = np.empty((len(rows), count), np.int32)
        for start in range(0, len(rows), ADDED_ROWS):
            block = self.vectors.array[rows[start : start + ADDED_ROWS]]
            _, result[start : start + len(block)] = self._index.quantizer.search(block, count)
        return result


def open_or_build(
    path: Path, vectors: Vectors, failed: np.ndarray, progress: Progress
) -> InvertedFile:
    """The inverted file of these vectors; it is built once and kept in the file."""
    import faiss

    good = np.flatnonzero(~failed)
    if not (path.exists() and (index := _read(path, vectors, len(good)))):
        built = _build(vectors, good, progress)
        with written_whole(path) as partial:
            faiss.write_index(built, str(partial))
        index = _read(path, vectors, len(good))
    progress(1.0)
    return InvertedFile(vectors, index)


def _read(path: Path, vectors: Vectors, rows: int) -> Any:
    """The inverted file at path, mapped; None if it is damaged or of other vectors."""
    import faiss

    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError:  # faiss raises nothing more specific
        return None
    return index if (index.d, index.ntotal) == (vectors.dimensions, rows) else None


def _build(vectors: Vectors, good: np.ndarray, progress: Progress) -> Any:
    import faiss

    lists = max(1, len(good) // ROWS_A_LIST)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(vectors.dimensions),
        vectors.dimensions,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
        False,  # codes of the vectors themselves, not of their difference from the centre
    )
    index.cp.niter, index.cp.seed = ITERATIONS, SEED
    index.cp.max_points_per_centroid = TRAINED_ROWS_A_LIST
    rng = np.random.default_rng(SEED)
    sample = rng.choice(good, min(len(good), lists * TRAINED_ROWS_A_LIST), replace=False)
    index.train(vectors.array[np.sort(sample)])
    for start in range(0, len(good), ADDED_ROWS):
        progress(TRAINING_SHARE + (1 - TRAINING_SHARE) * start / len(good))
        rows = good[start : start + ADDED_ROWS]
        index.add_with_ids(vectors.array[rows], rows)
    return index
