"""What comparing images with each other finds: duplicates, leaks, odd labels, outliers."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from local_forager.indexes.index import Index
from local_forager.indexes.vectors import InvertedFile, Progress, Vectors

NEAR_SHARE = 0.05  # near duplicates: a distance of up to this share of the median distance
SAMPLED_PAIRS = 4_000  # random pairs of images that estimate the median distance
PAIR_LIMIT = 1_000_000  # near pairs after which the search stops: then most images are alike
BLOCK_ROWS = 2_048  # rows per side of one matrix product: 16 MiB of similarities
NEAR_LISTS = 4  # lists of similar images that an image is compared with, of an inverted file
LABELLED_NEIGHBOURS = 5  # nearest labelled images that an image's labels are compared with
TYPICAL_NEIGHBOURS = 10  # an image is typical if so many others are close to it
NEIGHBOUR_ROWS = 1_024  # rows per side of a matrix product, where neighbours are searched for
SEED = 0

RowGroups = list[list[int]]


class NearDuplicates(NamedTuple):
    groups: RowGroups
    distance: float  # cosine distance up to which two images count as near duplicates
    complete: bool  # False if the search stopped at the pair limit
    exact: bool = True  # False if only pairs within similar images were compared


def connected(one: np.ndarray, other: np.ndarray) -> RowGroups:
    """The groups that pairs of rows form: rows ascending, groups sorted by their first row.

    Every row takes over the first row of the other one's group, until nothing changes.
    """
    if not len(one):
        return []
    rows, places = np.unique([one, other], return_inverse=True)
    one, other = places.reshape(2, -1)
    first, before = np.arange(len(rows)), np.full(len(rows), -1)
    while not np.array_equal(first, before):
        before = first.copy()
        least = np.minimum(first[one], first[other])
        np.minimum.at(first, before[one], least)
        np.minimum.at(first, before[other], least)
        first = first[first]
    order = np.argsort(first, kind="stable")
    ends = np.flatnonzero(np.diff(first[order])) + 1
    return [group.tolist() for group in np.split(rows[order], ends)]


def exact_duplicates(vectors: Vectors, failed: np.ndarray, progress: Progress) -> RowGroups:
    """Groups of images with bit-identical vectors."""
    rows_of: dict[bytes, list[int]] = {}
    for start, block in vectors.blocks():
        for row, vector in enumerate(block, start):
            if not failed[row]:
                digest = hashlib.blake2b(vector.tobytes(), digest_size=16).digest()
                rows_of.setdefault(digest, []).append(row)
        progress((start + len(block)) / vectors.rows)
    return [rows for rows in rows_of.values() if len(rows) > 1]


def near_distance(vectors: Vectors, good: np.ndarray) -> float:
    """The distance up to which two images count as near duplicates.

    It is relative to the dataset's median distance, because some models place all images close
    together.
    """
    rng = np.random.default_rng(SEED)
    if len(good) < 2:
        return 0.0
    one, other = rng.choice(good, SAMPLED_PAIRS), rng.choice(good, SAMPLED_PAIRS)
    one, other = one[one != other], other[one != other]
    cosine = np.einsum("ij,ij->i", vectors.array[one], vectors.array[other])
    return float(np.median(1 - cosine)) * NEAR_SHARE


def near_duplicates(vectors: Vectors, failed: np.ndarray, progress: Progress) -> NearDuplicates:
    """Groups of images within near_distance of each other, found by comparing all pairs."""
    good = np.flatnonzero(~failed)
    starts = range(0, len(good), BLOCK_ROWS)
    parts = ((good[start : start + BLOCK_ROWS], good[start:]) for start in starts)

    def share(part: float) -> None:
        progress(1 - (1 - part) ** 2)

    return _near_within(vectors, good, parts, len(starts), share)


def near_duplicates_in_lists(
    inverted: InvertedFile, failed: np.ndarray, progress: Progress
) -> NearDuplicates:
    """Groups as near_duplicates finds them, comparing each image with its NEAR_LISTS lists only."""
    good = np.flatnonzero(~failed)
    near = inverted.nearest_lists(good, min(NEAR_LISTS, inverted.lists))
    seekers = np.argsort(near, axis=None, kind="stable")  # of the first list, the second, ...
    starts = np.searchsorted(near.ravel()[seekers], np.arange(inverted.lists + 1))

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(inverted.lists):
            chosen = seekers[starts[number] : starts[number + 1]]
            places, choice = np.divmod(chosen, near.shape[1])
            yield good[places], good[places[choice == 0]]

    found = _near_within(inverted.vectors, good, parts(), inverted.lists, progress)
    return found._replace(exact=False)


def _near_within(
    vectors: Vectors,
    good: np.ndarray,
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    number_of_parts: int,
    progress: Progress,
) -> NearDuplicates:
    """Groups of near duplicates, comparing the rows of each part with its other rows."""
    distance, pairs = near_distance(vectors, good), np.zeros(0, np.int64)
    for number, (rows, others) in enumerate(parts, 1):
        for one, other in _pairs_of(vectors.array, rows, others, 1 - distance):
            pairs = np.append(pairs, one * vectors.rows + other)
            if len(pairs) > PAIR_LIMIT:
                pairs = np.unique(pairs)  # a pair may be found from both of its images
            if len(pairs) > PAIR_LIMIT:
                groups = connected(*np.divmod(pairs, vectors.rows))
                return NearDuplicates(groups, distance, complete=False)
        progress(number / number_of_parts)
    return NearDuplicates(connected(*np.divmod(pairs, vectors.rows)), distance, complete=True)


def _pairs_of(
    array: np.ndarray, rows: np.ndarray, others: np.ndarray, least: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of a row and another whose cosine is at least `least`, the smaller row first."""
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        vectors = array[block]
        for first in range(0, len(others), BLOCK_ROWS):
            part = others[first : first + BLOCK_ROWS]
            one, other = np.nonzero(vectors @ array[part].T >= least)
            one, other = block[one], part[other]
            different = one != other
            if different.any():
                one, other = one[different], other[different]
                yield np.minimum(one, other), np.maximum(one, other)


def leaks(index: Index, groups: RowGroups) -> RowGroups:
    """The groups with images of both splits."""
    return [rows for rows in groups if rows[0] < index.num_train <= rows[-1]]


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
    for block, _, near in nearest_within(vectors, labelled, LABELLED_NEIGHBOURS, progress):
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
    for block, similarity, _ in nearest_within(vectors, good, count, progress):
        distances = np.maximum(1 - similarity, 0)
        result[good[block]] = np.stack([distances.min(axis=1), distances.mean(axis=1)], axis=1)
    return result


def nearest_within(
    vectors: Vectors, rows: np.ndarray, count: int, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For blocks of places in `rows`: the places, and the similarity and place of their nearest.

    The latter two are float32 and int64 (b, count), in no order; without the row itself.
    """
    for start in range(0, len(rows), NEIGHBOUR_ROWS):
        block = np.arange(start, min(start + NEIGHBOUR_ROWS, len(rows)))
        queries = vectors.array[rows[block]]
        best = np.full((len(block), count), -np.inf, np.float32)
        where = np.zeros((len(block), count), np.int64)
        for first in range(0, len(rows), NEIGHBOUR_ROWS):
            similarity = queries @ vectors.array[rows[first : first + NEIGHBOUR_ROWS]].T
            if first == start:
                np.fill_diagonal(similarity, -np.inf)
            few = min(count, similarity.shape[1])
            top = np.argpartition(similarity, -few, axis=1)[:, -few:]
            values = np.hstack([best, np.take_along_axis(similarity, top, axis=1)])
            places = np.hstack([where, first + top])
            nearest = np.argpartition(values, -count, axis=1)[:, -count:]
            best = np.take_along_axis(values, nearest, axis=1)
            where = np.take_along_axis(places, nearest, axis=1)
        yield block, best, where
        progress((start + len(block)) / len(rows))
