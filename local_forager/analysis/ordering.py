"""Orders of a dataset's images: how unusual or typical each is among its nearest neighbours."""

import numpy as np

from local_forager.analysis.jobs import Progress
from local_forager.indexes.vectors import Vectors

TYPICAL_NEIGHBOURS = 10  # an image is typical if so many others are close to it
BLOCK_ROWS = 1_024  # rows per matrix product


def neighbour_distances(vectors: Vectors, failed: np.ndarray, progress: Progress) -> np.ndarray:
    """float32 (n, 2): cosine distance to the nearest image, and the mean of the nearest
    TYPICAL_NEIGHBOURS; NaN for failed images. Compares all pairs.
    """
    good = np.flatnonzero(~failed)
    result = np.full((vectors.rows, 2), np.nan, np.float32)
    count = min(TYPICAL_NEIGHBOURS, len(good) - 1)
    if count < 1:
        result[good] = 0
        return result
    for start in range(0, len(good), BLOCK_ROWS):
        rows = good[start : start + BLOCK_ROWS]
        best = np.full((len(rows), count), -np.inf, np.float32)
        for other in range(0, len(good), BLOCK_ROWS):
            columns = good[other : other + BLOCK_ROWS]
            similarity = vectors.array[rows] @ vectors.array[columns].T
            similarity[rows[:, None] == columns[None, :]] = -np.inf
            best = np.concatenate([best, similarity], axis=1)
            best = -np.partition(-best, count - 1, axis=1)[:, :count]
        distances = np.maximum(1 - best, 0)
        result[rows] = np.stack([distances.min(axis=1), distances.mean(axis=1)], axis=1)
        progress((start + len(rows)) / len(good))
    return result
