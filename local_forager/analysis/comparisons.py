"""What comparing images with their neighbours finds: odd labels, outliers, typical images."""

from collections.abc import Iterator

import numpy as np

from local_forager.analysis.duplicates import RowGroups
from local_forager.indexes.vectors import Progress, Vectors

LABELLED_NEIGHBOURS = 5  # nearest labelled images that an image's labels are compared with
TYPICAL_NEIGHBOURS = 10  # an image is typical if so many others are close to it
NEIGHBOUR_ROWS = 1_024  # rows per side of a matrix product, where neighbours are searched for


def disagreeing(
    vectors: Vectors, failed: np.ndarray, positive: dict[str, np.ndarray], progress: Progress
) -> RowGroups:
    """Labelled images that share no category with their LABELLED_NEIGHBOURS nearest labelled ones.

    Each is a group of its own.

    positive: the rows with a POSITIVE label, by category.
    """
    marks = {category: rows[~failed[rows]] for category, rows in positive.items()}
    labelled = np.unique(np.concatenate([np.zeros(0, np.int64), *marks.values()]))
    if len(labelled) <= LABELLED_NEIGHBOURS or len(marks) < 2:
        return []
    member = np.zeros((len(labelled), len(marks)), bool)
    for column, rows in enumerate(marks.values()):
        member[np.searchsorted(labelled, rows), column] = True
    found: RowGroups = []
    for block, _, near in nearest_among(vectors, labelled, labelled, LABELLED_NEIGHBOURS):
        progress(block[0] / len(labelled))
        shared = (member[near] & member[block][:, None, :]).any(axis=(1, 2))
        found.extend(labelled[block[~shared], None].tolist())
    return found


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
    for block, similarity, _ in nearest_among(vectors, good, good, count):
        progress(block[0] / len(good))
        distances = np.maximum(1 - similarity, 0)
        result[good[block]] = np.stack([distances.min(axis=1), distances.mean(axis=1)], axis=1)
    return result


def nearest_among(
    vectors: Vectors, asked: np.ndarray, rows: np.ndarray, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For blocks of places in `asked`: the places, and the similarity of their nearest rows, and
    the places of these in `rows`.

    The latter two are float32 and int64 (b, count), in no order. If `asked` is `rows`, a row is not
    its own neighbour.
    """
    for start in range(0, len(asked), NEIGHBOUR_ROWS):
        block = np.arange(start, min(start + NEIGHBOUR_ROWS, len(asked)))
        queries = vectors.array[asked[block]]
        similarities, places = [], []
        for first in range(0, len(rows), NEIGHBOUR_ROWS):
            similarity = queries @ vectors.array[rows[first : first + NEIGHBOUR_ROWS]].T
            if asked is rows and first == start:
                np.fill_diagonal(similarity, -np.inf)
            few = min(count, similarity.shape[1])
            top = np.argpartition(similarity, -few, axis=1)[:, -few:]
            similarities.append(np.take_along_axis(similarity, top, axis=1))
            places.append(first + top)
        best, where = np.hstack(similarities), np.hstack(places)
        chosen = np.arange(len(block))[:, None], np.argpartition(best, -count, axis=1)[:, -count:]
        yield block, best[chosen], where[chosen]
