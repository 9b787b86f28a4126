"""Neighbours in a large index without reading all of its vectors, by an inverted file of faiss.

The vectors are divided into lists around the centres that k-means finds. A search reads the lists
whose centres are nearest, in one byte per number, and then compares the best candidates exactly:
distances are exact, but an image in a list that was not read is missing.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from local_forager.analysis.jobs import Progress
from local_forager.indexes.vectors import Neighbours, Vectors, nearest

EXACT_ROWS = 200_000  # images up to which every search compares with all: 15 ms by CLIP
NOT_INSTALLED = "Install faiss-cpu beside local_forager for faster searches of so many images."
ROWS_A_LIST = 500
TRAINED_ROWS_A_LIST = 40  # rows that k-means uses
ITERATIONS = 8  # of k-means
BLOCK_ROWS = 32_768  # that are added at once
READ_SHARE = 1 / 32  # of the lists that a search reads
CANDIDATES = 4  # times as many as neighbours are wanted, compared exactly
TRAINING_SHARE = 0.4  # of the time of building
SEED = 0


def installed() -> bool:
    return importlib.util.find_spec("faiss") is not None


def usable(rows: int, exact_rows: int = EXACT_ROWS) -> bool:
    """Whether searches of an index with this number of rows use an inverted file."""
    return rows > exact_rows and installed()


class InvertedFile:
    """The vectors of good images in lists of similar ones."""

    def __init__(self, vectors: Vectors, index: Any) -> None:
        self.vectors, self._index = vectors, index
        index.nprobe = max(8, round(index.nlist * READ_SHARE))

    @property
    def lists(self) -> int:
        return int(self._index.nlist)

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
        for start in range(0, len(rows), BLOCK_ROWS):
            block = self.vectors.array[rows[start : start + BLOCK_ROWS]]
            _, result[start : start + len(block)] = self._index.quantizer.search(block, count)
        return result


def path_of(directory: Path, by: str) -> Path:
    """The file beside an index copy that keeps the inverted file."""
    return directory / f"neighbours-{by}.faiss"


def open_or_build(
    path: Path, vectors: Vectors, failed: np.ndarray, progress: Progress
) -> InvertedFile:
    """The inverted file of these vectors; it is built once and kept in the file."""
    import faiss

    good = np.flatnonzero(~failed)
    if not (path.exists() and (index := _read(path, vectors, len(good)))):
        built = _build(vectors, good, progress)
        partial = path.with_name(path.name + ".part")
        faiss.write_index(built, str(partial))
        os.replace(partial, path)
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
    for start in range(0, len(good), BLOCK_ROWS):
        progress(TRAINING_SHARE + (1 - TRAINING_SHARE) * start / len(good))
        rows = good[start : start + BLOCK_ROWS]
        index.add_with_ids(vectors.array[rows], rows)
    return index
