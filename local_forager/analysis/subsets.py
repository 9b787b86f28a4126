"""Subsets that stand for many images: diverse ones, far from each other, and typical ones.

Distances are 1 - cosine. Images that are given, because they were chosen or labelled before, count
as chosen already: a diverse image is far from them too, and a typical one stands for images that
are nearer to it than to them. No image is within the least distance of another or of a given one,
so near duplicates are left out without a comparison of all pairs.

The order is the most useful first. Of equal distances the first row counts. Distances are float32:
two different images whose distances differ by less than 1e-6 may change places where matrix
products are summed in another order, as on another processor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from local_forager.indexes.vectors import Progress, Vectors, part

KINDS = ("diverse", "typical")
SAME = 1e-5  # images are the same up to this distance; float32 is exact to about 1e-6
POOL_ROWS = 4_096  # images farthest from all chosen, among which the next ones are found
CENTRES_AT_ONCE = 1_024  # chosen images that are compared with all at once
SIMILARITIES = 16 * 1024 * 1024  # in one matrix product: 64 MiB
SAMPLE_A_CENTRE = 100  # images that k-means uses
SAMPLE_BYTES = 256 * 1024 * 1024  # of all of them, at most
FIRST_A_CENTRE, FIRST_ROWS = 20, 10_000  # of these, images that give the first centres, at least
ITERATIONS = 10  # of k-means
GIVEN_SHARE = 0.5  # of the progress, for the distances from images that are given
TRIALS = 8  # images that are tried as the next first centre of k-means
SEED = 0


def choose(
    kind: str,
    vectors: Vectors,
    candidates: np.ndarray,
    count: int,
    given: np.ndarray,
    least: float,
    progress: Progress,
) -> np.ndarray:
    """The rows of up to `count` images, the most useful first: int64; fewer if no more are left.

    diverse: greedy k-centre. The first is nearest to the mean, unless images are given; each other
    one is the farthest from all before. typical: the image nearest to each centre of k-means, that
    of the largest cluster first; then diverse ones where images would be near duplicates.

    Args:
        candidates: bool (n,), without failed images.
        given: rows of images that are chosen already, without failed ones.
        least: distance up to which two images count as near duplicates.
    """
    allowed = candidates.copy()
    allowed[given] = False
    rows = np.flatnonzero(allowed)
    if not len(rows):
        return rows
    distances = np.full(len(rows), np.inf, np.float32)
    left = Candidates(vectors=vectors, rows=rows, distances=distances, least=max(least, SAME))
    begin = end = GIVEN_SHARE if len(given) else 0.0
    left.approach(given, part(progress, 0, begin))
    if kind == "typical":
        end = 0.9
        chosen = left.typical(count, part(progress, begin, end))
    else:
        chosen = [] if len(given) else [left.nearest_to_mean()]
    if len(chosen) < count:
        distances[chosen] = 0  # of vectors without a length too
        left.approach(rows[chosen])
        chosen += left.farthest(count - len(chosen), part(progress, end, 1))
    progress(1.0)
    return rows[chosen]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Images to choose from, with their distances to the nearest image that is chosen.

    A place is one in `rows`.
    """

    vectors: Vectors
    rows: np.ndarray  # int64 (m,), ascending
    distances: np.ndarray  # float32 (m,), infinite while none is chosen; `approach` lowers them
    least: float  # an image that is not farther than this from a chosen one is not chosen

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The vectors in blocks: their places, and float32 (b, d)."""
        place = 0
        for start, block in self.vectors.blocks():
            end = int(np.searchsorted(self.rows, start + len(block)))
            if end - place == len(block):
                yield slice(place, end), block
            elif end > place:
                yield slice(place, end), block[self.rows[place:end] - start]
            place = end

    def approach(self, chosen: np.ndarray, progress: Progress = lambda share: None) -> None:
        """Lower the distances to those from the chosen rows."""
        for first in range(0, len(chosen), CENTRES_AT_ONCE):
            centres = self.vectors.array[chosen[first : first + CENTRES_AT_ONCE]]
            for places, block in self.blocks():
                distances = self.distances[places]
                _, similarity = _assign(block, distances, centres)
                np.minimum(distances, 1 - similarity, out=distances)
                progress((first + len(centres) * places.stop / len(self.rows)) / len(chosen))

    def first_copy(self, places: np.ndarray, values: np.ndarray) -> int:
        """The place with the largest value; of images with the same vector, the first one.

        Their values differ by rounding, depending on where in a matrix product they are.
        """
        best = values.argmax()
        near = places[np.flatnonzero(values >= values[best] - SAME)[:POOL_ROWS]]
        vector = self.vectors.array[self.rows[places[best]]]
        same = (self.vectors.array[self.rows[near]] == vector).all(axis=1)
        return int(near[same.argmax()] if same.any() else places[best])

    def nearest_to_mean(self) -> int:
        """The place of the image nearest to the mean of all."""
        total, similarity = np.zeros(self.vectors.dimensions), np.empty(len(self.rows))
        for _, block in self.blocks():
            total += block.sum(axis=0, dtype=np.float64)
        for places, block in self.blocks():
            similarity[places] = block @ total
        return self.first_copy(np.arange(len(self.rows)), similarity / len(self.rows))

    def farthest(self, count: int, progress: Progress) -> list[int]:
        """Places, each of the image farthest from the chosen ones and from those before it.

        It ends when no image is farther than `least`. Exact without a pass over all vectors per
        image, as distances only decrease: the next ones are found in a pool of the farthest images,
        until these are as near as the images outside of the pool were. Then all images get the new
        distances. 500 of 300,000 made-up vectors take three passes.
        """
        chosen: list[int] = []
        while len(chosen) < count and self.distances.max() > self.least:
            progress(len(chosen) / count)
            order = np.argsort(self.distances)
            pool = np.sort(order[-POOL_ROWS:])
            outside = self.distances[order[:-POOL_ROWS]].max(initial=-np.inf)
            near, array = self.distances[pool], self.vectors.array[self.rows[pool]]
            found: list[int] = []
            while len(chosen) + len(found) < count and near.max() > max(outside + SAME, self.least):
                found.append(self.first_copy(pool, near))
                vector = self.vectors.array[self.rows[found[-1]]]
                np.minimum(near, 1 - array @ vector, out=near)
                near[pool == found[-1]] = 0
            if not found:  # too many for the pool are as far
                found = [self.first_copy(np.arange(len(self.rows)), self.distances)]
            chosen += found
            self.distances[found] = 0
            if len(chosen) < count:
                self.approach(self.rows[found])
        return chosen

    def typical(self, count: int, progress: Progress) -> list[int]:
        """Places of the image nearest to each centre, that of the largest cluster first.

        The centres of k-means come from a sample, evenly spaced over the rows. An image nearer to a
        chosen one than to every centre is in no cluster. An image within `least` of a chosen one,
        or of that of a larger cluster, is left out.
        """
        limit = min(SAMPLE_A_CENTRE * count, SAMPLE_BYTES // (4 * self.vectors.dimensions))
        sample = _evenly(len(self.rows), limit)
        array, near = self.vectors.array[self.rows[sample]], self.distances[sample]
        few = _evenly(len(array), max(FIRST_ROWS, FIRST_A_CENTRE * count))
        centres = _first_centres(array[few], near[few], count, part(progress, 0, 0.4))
        for number in range(ITERATIONS):
            progress(0.4 + 0.3 * number / ITERATIONS)
            centres = _moved(array, near, centres)
        clusters, similarity = np.empty(len(self.rows), np.int64), np.empty_like(self.distances)
        for places, block in self.blocks():
            found = _assign(block, self.distances[places], centres)
            clusters[places], similarity[places] = found
            progress(0.7 + 0.3 * places.stop / len(self.rows))
        order = np.argsort(clusters, kind="stable")
        order = order[clusters[order] >= 0]
        _, first, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
        members = [places for places in np.split(order, first[1:]) if len(places)]
        nearest = [self.first_copy(places, similarity[places]) for places in members]
        chosen: list[int] = []
        kept = np.empty((len(nearest), self.vectors.dimensions), np.float32)
        for _, place in sorted(zip((-sizes).tolist(), nearest, strict=True)):
            vector = self.vectors.array[self.rows[place]]
            distances = 1 - kept[: len(chosen)] @ vector
            if distances.min(initial=self.distances[place]) > self.least:
                kept[len(chosen)] = vector
                chosen.append(place)
        return chosen


def _evenly(length: int, most: int) -> np.ndarray:
    """Up to `most` places, evenly spaced."""
    return np.linspace(0, length - 1, min(length, most)).astype(np.int64)


def _first_centres(
    array: np.ndarray, distances: np.ndarray, count: int, progress: Progress
) -> np.ndarray:
    """Up to `count` rows of the array, chosen by greedy k-means++: float32 (k, d).

    Each is the best of TRIALS, drawn by their distance from those before: for unit vectors this is
    half of the squared Euclidean distance. See Arthur and Vassilvitskii, "k-means++", 2007.
    """
    rng = np.random.default_rng(SEED)
    centres: list[np.ndarray] = []
    near = np.minimum(distances, 2)
    while len(centres) < count:
        progress(len(centres) / count)
        sums = np.cumsum(np.where(near > SAME, near, 0), dtype=np.float64)
        if not sums[-1]:
            break
        trials = np.searchsorted(sums, rng.random(TRIALS) * sums[-1], side="right")
        similarity = np.ascontiguousarray((array @ array[trials].T).T)
        left = np.minimum(near, 1 - similarity)
        best = int(left.sum(axis=1, dtype=np.float64).argmin())
        centres.append(array[trials[best]])
        near = left[best]
    return np.array(centres, np.float32).reshape(-1, array.shape[1])


def _assign(
    array: np.ndarray, distances: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The centre nearest to each vector, -1 if a chosen image is as near; and its similarity."""
    clusters, best = np.zeros(len(array), np.int64), np.full(len(array), -np.inf, np.float32)
    rows = SIMILARITIES // max(1, len(centres))
    for start in range(0, len(array) if len(centres) else 0, rows):
        similarity = array[start : start + rows] @ centres.T
        clusters[start : start + rows] = similarity.argmax(axis=1)
        best[start : start + rows] = similarity.max(axis=1)
    clusters[1 - best >= distances] = -1
    return clusters, best


def _moved(array: np.ndarray, distances: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The direction of the mean of each cluster; a centre without images stays where it is."""
    clusters, _ = _assign(array, distances, centres)
    order = np.argsort(clusters, kind="stable")
    order = order[clusters[order] >= 0]
    found, first = np.unique(clusters[order], return_index=True)
    sums = np.zeros(centres.shape)
    sums[found] = np.add.reduceat(array[order], first, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.maximum(lengths, SAME), centres).astype(np.float32)
