"""Images with identical or nearly identical vectors, in groups of which one image is kept.

A group is a kept image and the images within a distance of it that no earlier group has. The images
are considered the best first (see best_first), so that the kept one is the best of its group, and
kept images are farther than the distance from each other. Images that only a chain of small steps
connects form several groups.

The pairs of near images are searched for once. Groups for any smaller distance follow from them.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from local_forager.indexes.index import Index
from local_forager.indexes.vectors import InvertedFile, Progress, Vectors, keys_of

NEAR_SHARE = 0.05  # of the median distance: the default distance of near duplicates
FAR_SHARE = 0.5  # of the median distance: up to here pairs are searched for
SAMPLED_PAIRS = 4_000  # random pairs of images that estimate the median distance
PAIR_LIMIT = 1_000_000  # pairs that are kept; if there are more, only the nearest: 12 MB
BLOCK_ROWS = 2_048  # rows per side of one matrix product: 16 MiB of similarities
NEAR_LISTS = 4  # lists of similar images that an image is compared with, of an inverted file
LOOKED_AT = 400  # pairs that examples are chosen from
SEED = 0

RowGroups = list[list[int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class NearPairs:
    """The images that have a near one, the best first, and the pairs of them, the nearest first.

    Of images with identical vectors, only the best is in pairs. All pairs within `limit` are here.
    """

    rows: np.ndarray  # int64 (m,)
    best: np.ndarray  # int64 (m,): the place in `rows` of the best image with the same vector
    one: np.ndarray  # int64 (p,): the place in `rows` of the better image of each pair
    other: np.ndarray  # int64 (p,)
    distances: np.ndarray  # float32 (p,), ascending
    default: float  # the distance up to which images count as near duplicates, if none is named
    limit: float
    is_cut: bool  # there are more than PAIR_LIMIT pairs, so `limit` is smaller than wanted
    exact: bool  # False if only similar images were compared

    def within(self, distance: float) -> int:
        """How many pairs are within the distance."""
        return int(np.searchsorted(self.distances, np.float32(distance), "right"))


class RowPair(NamedTuple):
    one: int
    other: int
    distance: float


def best_first(index: Index, rows: np.ndarray) -> np.ndarray:
    """The rows sorted: most pixels first, then the sharpest, then by name.

    A value that is not known counts as the smallest.
    """
    names = [index.names[row] for row in rows.tolist()]
    keys = [np.argsort(sorted(range(len(names)), key=names.__getitem__))]
    width, height = index.measure("width"), index.measure("height")
    sharpness = index.measure("sharpness")
    pixels = width * height if width is not None and height is not None else None
    for values in (sharpness, pixels):  # of np.lexsort, the last key counts first
        if values is not None:
            keys.append(-np.nan_to_num(values[rows], nan=-1.0))
    return rows[np.lexsort(keys)]


def exact_duplicates(index: Index, by: str, progress: Progress) -> RowGroups:
    """Groups of images with bit-identical vectors: the best first, sorted by their first row."""
    good = np.flatnonzero(~index.failed)
    keys = keys_of(index.embeddings[by], progress)[good]
    _, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
    several = counts[numbers] > 1
    key_of = dict(zip(good[several].tolist(), keys[several].tolist(), strict=True))
    groups: dict[int, list[int]] = {}
    for row in best_first(index, good[several]).tolist():
        groups.setdefault(key_of[row], []).append(row)
    return sorted(groups.values())


def near_distance(vectors: Vectors, failed: np.ndarray) -> float:
    """The distance up to which images count as near duplicates, if none is named.

    It is relative to the dataset's median distance, because some models place all images close
    together.
    """
    rng, good = np.random.default_rng(SEED), np.flatnonzero(~failed)
    if len(good) < 2:
        return 0.0
    one, other = rng.choice(good, SAMPLED_PAIRS), rng.choice(good, SAMPLED_PAIRS)
    one, other = one[one != other], other[one != other]
    cosine = np.einsum("ij,ij->i", vectors.array[one], vectors.array[other])
    return max(0.0, float(np.median(1 - cosine))) * NEAR_SHARE


class _Nearest:
    """The nearest pairs of rows among those that were added; more than PAIR_LIMIT lower `limit`.

    A pair may be added twice, from each of its images.
    """

    def __init__(self, rows: int, limit: float) -> None:
        self.limit, self.is_cut = limit, False
        self._rows = rows
        self._keys = [np.zeros(0, np.int64)]  # of a pair: smaller row * rows + larger row
        self._distances = [np.zeros(0, np.float32)]
        self._added = 0

    def add(self, one: np.ndarray, other: np.ndarray, distances: np.ndarray) -> None:
        self._keys.append(np.minimum(one, other) * self._rows + np.maximum(one, other))
        self._distances.append(np.maximum(distances, 0))
        self._added += len(one)
        if self._added > 4 * PAIR_LIMIT:
            self._cut(2 * PAIR_LIMIT)

    def _cut(self, most: int) -> None:
        """Leave out the farthest pairs where there are more than `most`."""
        keys, distances = np.concatenate(self._keys), np.concatenate(self._distances)
        if len(keys) > most:
            bound = np.partition(distances, most)[most]
            nearer = distances < bound
            keys, distances = keys[nearer], distances[nearer]
            self.limit, self.is_cut = max(0.0, float(np.nextafter(bound, np.float32(-1)))), True
        self._keys, self._distances, self._added = [keys], [distances], len(keys)

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Two rows and the distance of each pair, once."""
        self._cut(2 * PAIR_LIMIT)
        keys, first = np.unique(self._keys[0], return_index=True)
        self._keys, self._distances = [keys], [self._distances[0][first]]
        self._cut(PAIR_LIMIT)
        return *np.divmod(self._keys[0], self._rows), self._distances[0]


Part = tuple[np.ndarray, np.ndarray, float]  # rows, those to compare them with, share done after it


def near_pairs(
    index: Index,
    by: str,
    progress: Progress,
    wanted: float | None = None,
    inverted: InvertedFile | None = None,
) -> NearPairs:
    """The pairs of near images, found by comparing all pairs.

    wanted: the distance up to which pairs are searched for; by default FAR_SHARE of the median
    distance. inverted: compare each image with its NEAR_LISTS lists only.
    """
    copies = exact_duplicates(index, by, lambda share: progress(0.0))
    different = ~index.failed
    different[[row for rows in copies for row in rows[1:]]] = False
    good = np.flatnonzero(different)
    vectors = index.embeddings[by]
    default = near_distance(vectors, index.failed)
    farthest = default * FAR_SHARE / NEAR_SHARE
    found = _Nearest(vectors.rows, farthest if wanted is None else wanted)
    parts = _blocks(good) if inverted is None else _in_lists(good, inverted)
    for rows, others, share in parts:
        _compare(vectors.array, rows, others, found)
        progress(share)
    one, other, distances = found.pairs()
    nearest_first = np.argsort(distances, kind="stable")
    copied = np.array([row for rows in copies for row in rows], np.int64)
    rows = best_first(index, np.unique(np.concatenate([one, other, copied])))
    place = np.zeros(vectors.rows, np.int64)
    place[rows] = np.arange(len(rows))
    best = np.arange(len(rows))
    for group in copies:
        best[place[group]] = place[group[0]]
    one, other = place[one[nearest_first]], place[other[nearest_first]]
    return NearPairs(
        rows=rows,
        best=best,
        one=np.minimum(one, other),
        other=np.maximum(one, other),
        distances=distances[nearest_first],
        default=default,
        limit=found.limit,
        is_cut=found.is_cut,
        exact=inverted is None,
    )


def _blocks(good: np.ndarray) -> Iterator[Part]:
    """All pairs: each block of rows with itself and all after it."""
    for start in range(0, len(good), BLOCK_ROWS):
        rest = max(0, len(good) - start - BLOCK_ROWS) / len(good)
        yield good[start : start + BLOCK_ROWS], good[start:], 1 - rest**2


def _in_lists(good: np.ndarray, inverted: InvertedFile) -> Iterator[Part]:
    """The pairs of a row that seeks in a list and a row that is in it."""
    near = inverted.nearest_lists(good, min(NEAR_LISTS, inverted.lists))
    seekers = np.argsort(near, axis=None, kind="stable")  # of the first list, the second, ...
    starts = np.searchsorted(near.ravel()[seekers], np.arange(inverted.lists + 1))
    for number in range(inverted.lists):
        chosen = seekers[starts[number] : starts[number + 1]]
        places, choice = np.divmod(chosen, near.shape[1])
        yield good[places], good[places[choice == 0]], (number + 1) / inverted.lists


def _compare(array: np.ndarray, rows: np.ndarray, others: np.ndarray, found: _Nearest) -> None:
    """Add the near pairs of a row and another."""
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        vectors = array[block]
        for first in range(0, len(others), BLOCK_ROWS):
            part = others[first : first + BLOCK_ROWS]
            cosine = vectors @ array[part].T
            near = np.flatnonzero(cosine >= 1 - found.limit)  # 8 times as fast as nonzero
            distances = 1 - cosine.ravel()[near]
            one, other = np.divmod(near, len(part))
            one, other = block[one], part[other]
            different = one != other
            if different.any():
                found.add(one[different], other[different], distances[different])


@functools.lru_cache(maxsize=4)  # for a view: its rows, distances and histograms
def near_groups(pairs: NearPairs, distance: float) -> RowGroups:
    """Groups by the rule of this file: the kept image first, the others the best first."""
    count = pairs.within(distance)
    kept = _kept_of(pairs.one[:count], pairs.other[:count], len(pairs.rows))
    return _as_groups(pairs.rows, kept[pairs.best])


@functools.lru_cache(maxsize=4)  # for a view: its rows, distances and histograms
def leaks(pairs: NearPairs, distance: float, num_train: int) -> RowGroups:
    """Groups of the images that have an image of the other split within the distance.

    By the same rule, of pairs of both splits. An image all of whose pairs are in other groups joins
    one of them.
    """
    count = pairs.within(distance)
    splits = np.zeros(len(pairs.rows), np.int64)  # of all images with this vector: 1 train, 2 val
    np.bitwise_or.at(splits, pairs.best, np.where(pairs.rows < num_train, 1, 2))
    one, other = pairs.one[:count], pairs.other[:count]
    both = (splits[one] | splits[other]) == 3
    one, other = one[both], other[both]
    kept = _kept_of(one, other, len(pairs.rows))
    neighbour = np.full(len(kept), -1)
    neighbour[one], neighbour[other] = other, one
    alone = (np.bincount(kept, minlength=len(kept)) == 1) & (kept == np.arange(len(kept)))
    alone = np.flatnonzero(alone & (neighbour >= 0) & (splits != 3))
    kept[alone] = kept[neighbour[alone]]
    leaking = (splits == 3) | (neighbour >= 0)
    return _as_groups(pairs.rows[leaking[pairs.best]], kept[pairs.best][leaking[pairs.best]])


def _kept_of(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """int64 (count,): the kept image of each, itself if it is kept; the better come first."""
    order = np.argsort(one, kind="stable")
    others = other[order].tolist()
    better, starts = np.unique(one[order], return_index=True)
    kept = list(range(count))
    stops = [*starts[1:].tolist(), len(others)]
    for place, start, stop in zip(better.tolist(), starts.tolist(), stops, strict=False):
        if kept[place] == place:
            for near in others[start:stop]:
                if kept[near] == near:
                    kept[near] = place
    return np.array(kept, np.int64)


def _as_groups(rows: np.ndarray, kept: np.ndarray) -> RowGroups:
    """The rows with the same kept image, where there are several; sorted by the kept row."""
    several = np.flatnonzero(np.bincount(kept)[kept] > 1)
    order = several[np.argsort(kept[several], kind="stable")]
    ends = np.flatnonzero(np.diff(kept[order])) + 1
    return sorted(group.tolist() for group in np.split(rows[order], ends) if len(group))


def examples(pairs: NearPairs, distance: float, count: int) -> list[RowPair]:
    """Pairs of images within the distance, the farthest first, each image once."""
    end = pairs.within(distance)
    near = slice(max(0, end - LOOKED_AT), end)
    copies = np.flatnonzero(pairs.best != np.arange(len(pairs.rows)))[:LOOKED_AT]
    one = pairs.rows[[*pairs.one[near][::-1], *pairs.best[copies]]].tolist()
    other = pairs.rows[[*pairs.other[near][::-1], *copies]].tolist()
    apart = [*pairs.distances[near][::-1].tolist(), *[0.0] * len(copies)]
    found: list[RowPair] = []
    seen: set[int] = set()
    for pair in map(RowPair, one, other, apart):
        if len(found) < count and not {pair.one, pair.other} & seen:
            seen.update((pair.one, pair.other))
            found.append(pair)
    return found
