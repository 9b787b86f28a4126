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

import numpy as np

from local_forager.indexes.vectors import Progress, Vectors

KINDS = ("diverse", "typical")
SAME = 1e-5  # images are the same up to this distance; float32 is exact to about 1e-6
POOL_ROWS = 4_096  # images farthest from all chosen, among which the next ones are found
CENTRES_AT_ONCE = 1_024  # in one matrix product: 64 MiB of similarities
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
    allowed, least = candidates.copy(), max(least, SAME)
    allowed[given] = False
    rows = np.flatnonzero(allowed)
    if not len(rows):
        return rows
    distances = np.full(len(rows), np.inf, np.float32)  # to the nearest image that is chosen
    begin = GIVEN_SHARE if len(given) else 0.0
    approach(vectors, rows, distances, given, _part(progress, 0, begin))
    end = 0.9 if kind == "typical" else begin
    if kind == "typical":
        chosen = _typical(vectors, rows, distances, count, least, _part(progress, begin, end))
    else:
        chosen = [] if len(given) else [_nearest_to_mean(vectors, rows)]
    if len(chosen) < count:
        left, rest = count - len(chosen), _part(progress, end, 1)
        distances[chosen] = 0  # of vectors without a length too
        approach(vectors, rows, distances, rows[chosen])
        chosen += _farthest(vectors, rows, distances, left, least, rest)
    progress(1.0)
    return rows[chosen]


def _part(progress: Progress, begin: float, end: float) -> Progress:
    """Reports the progress of a part of the work."""
    return lambda share: progress(begin + (end - begin) * share)


def _ignore(progress: float) -> None:
    pass


def covering_radius(vectors: Vectors, candidates: np.ndarray, chosen: np.ndarray) -> float:
    """The largest distance of a candidate from its nearest chosen image."""
    rows = np.flatnonzero(candidates)
    distances = np.full(len(rows), np.inf, np.float32)
    approach(vectors, rows, distances, chosen)
    return float(distances.max(initial=0))


def blocks_of(vectors: Vectors, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The vectors of ascending rows in blocks: the places in `rows`, and float32 (b, d)."""
    place = 0
    for start, block in vectors.blocks():
        end = int(np.searchsorted(rows, start + len(block)))
        if end - place == len(block):
            yield slice(place, end), block
        elif end > place:
            yield slice(place, end), block[rows[place:end] - start]
        place = end


def approach(
    vectors: Vectors,
    rows: np.ndarray,
    distances: np.ndarray,
    chosen: np.ndarray,
    progress: Progress = _ignore,
) -> None:
    """Lower the distances of these rows, in place, to those from the chosen rows."""
    for first in range(0, len(chosen), CENTRES_AT_ONCE):
        centres = vectors.array[chosen[first : first + CENTRES_AT_ONCE]]
        for part, block in blocks_of(vectors, rows):
            similarity = (centres @ block.T).max(axis=0)
            np.minimum(distances[part], 1 - similarity, out=distances[part])
            progress((first + len(centres) * part.stop / len(rows)) / len(chosen))


def _first_copy(vectors: Vectors, rows: np.ndarray, values: np.ndarray) -> int:
    """The place of the largest value; of images with the same vector, the first one.

    Their values differ by rounding, depending on where in a matrix product they are.
    """
    best = int(values.argmax())
    near = np.flatnonzero(values >= values[best] - SAME)[:POOL_ROWS]
    same = (vectors.array[rows[near]] == vectors.array[rows[best]]).all(axis=1)
    return int(near[same.argmax()]) if same.any() else best


def _nearest_to_mean(vectors: Vectors, rows: np.ndarray) -> int:
    """The place in `rows` of the image nearest to the mean of all."""
    total, similarity = np.zeros(vectors.dimensions), np.empty(len(rows))
    for _, block in blocks_of(vectors, rows):
        total += block.sum(axis=0, dtype=np.float64)
    for part, block in blocks_of(vectors, rows):
        similarity[part] = block @ total
    return _first_copy(vectors, rows, similarity / len(rows))


def _farthest(
    vectors: Vectors,
    rows: np.ndarray,
    distances: np.ndarray,
    count: int,
    least: float,
    progress: Progress,
) -> list[int]:
    """Places in `rows`, each the farthest from the chosen images and from those before it.

    It ends when no image is farther than `least`. Exact without a pass over all vectors per image,
    as distances only decrease: the next ones are found in a pool of the farthest images, until
    these are as near as the images outside of the pool were. Then all images get the new distances.
    500 of 300,000 made-up vectors take three passes.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        progress(len(chosen) / count)
        pool, outside = np.arange(len(rows)), -np.inf
        if len(rows) > POOL_ROWS:
            order = np.argpartition(distances, -POOL_ROWS - 1)
            pool, outside = np.sort(order[-POOL_ROWS:]), float(distances[order[-POOL_ROWS - 1]])
        near, array = distances[pool], vectors.array[rows[pool]]
        found: list[int] = []
        while len(chosen) + len(found) < count and near.max() > max(outside + SAME, least):
            place = _first_copy(vectors, rows[pool], near)
            found.append(int(pool[place]))
            np.minimum(near, 1 - array @ array[place], out=near)
            near[place] = 0
        if not found:
            if distances.max() <= least:
                break
            found = [_first_copy(vectors, rows, distances)]  # too many for the pool are as far
        chosen += found
        distances[found] = 0
        if len(chosen) < count:
            approach(vectors, rows, distances, rows[found])
    return chosen


def _typical(
    vectors: Vectors,
    rows: np.ndarray,
    distances: np.ndarray,
    count: int,
    least: float,
    progress: Progress,
) -> list[int]:
    """Places in `rows` of the image nearest to each centre, that of the largest cluster first.

    The centres of k-means come from a sample, evenly spaced over the rows. An image nearer to a
    chosen one than to every centre is in no cluster. An image within `least` of a chosen one, or of
    that of a larger cluster, is left out.
    """
    limit = min(SAMPLE_A_CENTRE * count, SAMPLE_BYTES // (4 * vectors.dimensions))
    sample = np.linspace(0, len(rows) - 1, min(len(rows), limit)).astype(np.int64)
    array, near = vectors.array[rows[sample]], distances[sample]
    few = np.linspace(0, len(array) - 1, min(len(array), max(FIRST_ROWS, FIRST_A_CENTRE * count)))
    few = few.astype(np.int64)
    centres = _first_centres(array[few], near[few], count, lambda p: progress(0.4 * p))
    for number in range(ITERATIONS if len(centres) else 0):
        progress(0.4 + 0.3 * number / ITERATIONS)
        centres = _moved(array, near, centres)
    clusters, similarity = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for part, block in blocks_of(vectors, rows):
        clusters[part], similarity[part] = _assign(block, distances[part], centres)
        progress(0.7 + 0.3 * part.stop / len(rows))
    order = np.argsort(clusters, kind="stable")
    order = order[clusters[order] >= 0]
    _, first, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
    members = np.split(order, first[1:])
    nearest = np.array(
        [part[_first_copy(vectors, rows[part], similarity[part])] for part in members if len(part)],
        np.int64,
    )
    chosen: list[int] = []
    kept = np.empty((len(nearest), vectors.dimensions), np.float32)
    for place in nearest[np.lexsort((nearest, -sizes))].tolist():
        vector = vectors.array[rows[place]]
        others = (1 - kept[: len(chosen)] @ vector).min(initial=np.inf)
        if min(others, distances[place]) > least:
            kept[len(chosen)] = vector
            chosen.append(place)
    return chosen


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
    block: np.ndarray, distances: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The centre nearest to each vector, -1 if a chosen image is as near; and its similarity."""
    if not len(centres):
        return np.full(len(block), -1), np.zeros(len(block), np.float32)
    clusters = np.zeros(len(block), np.int64)
    best = np.full(len(block), -np.inf, np.float32)
    for first in range(0, len(centres), CENTRES_AT_ONCE):
        similarity = block @ centres[first : first + CENTRES_AT_ONCE].T
        nearest = similarity.argmax(axis=1)
        values = np.take_along_axis(similarity, nearest[:, None], axis=1)[:, 0]
        nearer = values > best
        clusters[nearer], best[nearer] = first + nearest[nearer], values[nearer]
    clusters[1 - best >= distances] = -1
    return clusters, best


def _moved(array: np.ndarray, distances: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The direction of the mean of each cluster; a centre without images stays where it is."""
    sums, rows = np.zeros(centres.shape), CENTRES_AT_ONCE * 8
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        clusters, _ = _assign(block, distances[start : start + rows], centres)
        order = np.argsort(clusters, kind="stable")
        order = order[clusters[order] >= 0]
        found, first = np.unique(clusters[order], return_index=True)
        if len(found):
            sums[found] += np.add.reduceat(block[order], first, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.maximum(lengths, SAME), centres).astype(np.float32)
