"""What may be wrong with a dataset: duplicates, leakage, labels that neighbours contradict."""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from local_forager.analysis.index_copy import Index
from local_forager.analysis.neighbours import Embedding

NEAR_FRACTION = (
    1 / 20
)  # of the typical distance between two images: closer ones are near duplicates
SAMPLED_PAIRS = 4_000  # pairs of images that tell the typical distance
PAIR_LIMIT = 1_000_000  # near pairs after which the search stops: nearly all images are alike then
BLOCK_ROWS = 2_048  # rows against rows in one product: 16 MiB of similarities
DISAGREEING_NEIGHBOURS = 5
SEED = 0

Progress = Callable[[float], None]  # told the share of the work that is done, 0 to 1
Groups = list[list[int]]


class Near(NamedTuple):
    groups: Groups
    distance: float  # cosine distance up to which two images count as near duplicates
    complete: bool  # False where the search stopped at PAIR_LIMIT


class Union:
    """Which rows belong together: union-find over row numbers."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, row: int) -> int:
        root = row
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while self._parent[row] != root:
            self._parent[row], row = root, self._parent[row]
        return root

    def join(self, pairs: Iterable[tuple[int, int]]) -> None:
        for one, other in pairs:
            a, b = self.find(one), self.find(other)
            self._parent[max(a, b)] = min(a, b)

    def groups(self) -> Groups:
        """Groups of two and more, rows ascending, by first row."""
        members: dict[int, list[int]] = {}
        for row in sorted(self._parent):
            members.setdefault(self.find(row), []).append(row)
        return [rows for rows in members.values() if len(rows) > 1]


def exact_duplicates(embedding: Embedding, failed: np.ndarray) -> Groups:
    """Groups of images with the same vector to the bit."""
    rows_of: dict[bytes, list[int]] = {}
    for start, block in embedding.blocks():
        for row, vector in enumerate(block, start):
            if not failed[row]:
                digest = hashlib.blake2b(vector.tobytes(), digest_size=16).digest()
                rows_of.setdefault(digest, []).append(row)
    return [rows for rows in rows_of.values() if len(rows) > 1]


def near_distance(embedding: Embedding, good: np.ndarray) -> float:
    """The cosine distance that counts as near: it adapts to models whose vectors all lie close."""
    rng = np.random.default_rng(SEED)
    if len(good) < 2:
        return 0.0
    one, other = rng.choice(good, SAMPLED_PAIRS), rng.choice(good, SAMPLED_PAIRS)
    one, other = one[one != other], other[one != other]
    vectors = embedding.vectors
    cosine = np.einsum("ij,ij->i", vectors[one], vectors[other])
    return float(np.median(1 - cosine)) * NEAR_FRACTION


def near_duplicates(embedding: Embedding, failed: np.ndarray, progress: Progress) -> Near:
    """Groups of images closer than near_distance, by comparing every pair."""
    good = np.flatnonzero(~failed)
    distance = near_distance(embedding, good)
    union, pairs, blocks = Union(), 0, -(-len(good) // BLOCK_ROWS)
    for number in range(blocks):
        rows = good[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        vectors = embedding.vectors[rows]
        for start in range(number * BLOCK_ROWS, len(good), BLOCK_ROWS):
            others = good[start : start + BLOCK_ROWS]
            similarity = vectors @ embedding.vectors[others].T
            one, other = np.nonzero(similarity >= 1 - distance)
            one, other = rows[one], others[other]
            ahead = one < other
            pairs += int(ahead.sum())
            union.join(zip(one[ahead].tolist(), other[ahead].tolist(), strict=True))
            if pairs > PAIR_LIMIT:
                return Near(union.groups(), distance, complete=False)
        left = (blocks - number - 1) / blocks
        progress(1 - left * left)
    return Near(union.groups(), distance, complete=True)


def leaks(index: Index, groups: Groups) -> Groups:
    """The groups that have images of both splits."""
    return [rows for rows in groups if rows[0] < index.num_train <= rows[-1]]


def disagreeing(
    embedding: Embedding, positive: dict[str, np.ndarray], failed: np.ndarray, progress: Progress
) -> list[int]:
    """Labelled images whose nearest labelled images share none of their categories.

    positive: the rows with a POSITIVE label, by category. The nearest DISAGREEING_NEIGHBOURS count.
    """
    marks = {category: rows[~failed[rows]] for category, rows in positive.items()}
    labelled = np.unique(np.concatenate([np.zeros(0, np.int64), *marks.values()]))
    if len(labelled) <= DISAGREEING_NEIGHBOURS or len(marks) < 2:
        return []
    member = np.zeros((len(labelled), len(marks)), bool)
    for column, rows in enumerate(marks.values()):
        member[np.searchsorted(labelled, rows), column] = True
    found: list[int] = []
    for start in range(0, len(labelled), BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, len(labelled)))
        near = _nearest_within(embedding, labelled, block)
        shared = (member[near] & member[block][:, None, :]).any(axis=(1, 2))
        found.extend(labelled[block[~shared]].tolist())
        progress((start + len(block)) / len(labelled))
    return found


def _nearest_within(embedding: Embedding, labelled: np.ndarray, block: np.ndarray) -> np.ndarray:
    """For positions block of labelled, the positions of the nearest others: int64 (b, k)."""
    count = DISAGREEING_NEIGHBOURS
    queries = embedding.vectors[labelled[block]]
    best = np.full((len(block), count), -np.inf, np.float32)
    where = np.zeros((len(block), count), np.int64)
    for start in range(0, len(labelled), BLOCK_ROWS):
        others = np.arange(start, min(start + BLOCK_ROWS, len(labelled)))
        similarity = queries @ embedding.vectors[labelled[others]].T
        similarity[block[:, None] == others[None, :]] = -np.inf
        values = np.concatenate([best, similarity], axis=1)
        positions = np.concatenate([where, np.broadcast_to(others, similarity.shape)], axis=1)
        top = np.argpartition(-values, count - 1, axis=1)[:, :count]
        best = np.take_along_axis(values, top, axis=1)
        where = np.take_along_axis(positions, top, axis=1)
    return where
