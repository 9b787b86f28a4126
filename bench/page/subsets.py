"""How long do subsets of a large index take? `python -m bench.page.subsets`

Diverse and typical images of made-up embeddings, against random choice. CPU time is also given as a
multiple of that of one pass over all vectors, which depends less on what else the machine does.
"""

import time
from pathlib import Path

import click
import numpy as np

from bench.page.neighbours import ignore, measured, peak_gb, written
from bench.support.measure import Result, json_option, show
from local_forager.analysis import subsets
from local_forager.analysis.duplicates import near_distance
from local_forager.indexes.vectors import Vectors
from testing import synthetic

PASSES = 5  # over all vectors, timed
RANDOM_CHOICES = 10
NONE = np.zeros(0, np.int64)


def pass_seconds(vectors: Vectors) -> list[float]:
    """CPU times of comparing all vectors with one, after a first time that is not counted."""
    times = []
    for _ in range(PASSES + 1):
        begin = time.process_time()
        vectors.similarities(np.array(vectors.array[0]))
        times.append(time.process_time() - begin)
    return times[1:]


def covering_radius(vectors: Vectors, chosen: np.ndarray) -> float:
    """The largest distance of an image from its nearest chosen one."""
    centres = vectors.array[chosen]
    nearest = [(block @ centres.T).max(axis=1).min() for _, block in vectors.blocks()]
    return 1 - float(min(nearest))


def results_of(vectors: Vectors, count: int) -> list[Result]:
    every, rng = np.ones(vectors.rows, bool), np.random.default_rng(1)
    passes = pass_seconds(vectors)
    results = [Result("one pass over all vectors: CPU time", "s", passes)]
    least = near_distance(vectors, np.zeros(vectors.rows, bool))
    for kind in subsets.KINDS:
        asked = kind, vectors, every, count, NONE, least, ignore
        rows, times = measured(f"{kind}: {count} images", subsets.choose, *asked)
        passed = times[1].median / float(np.median(passes))
        radius = covering_radius(vectors, rows)
        results += [*times, Result(f"{kind}: in passes", "x", [passed])]
        results.append(Result(f"{kind}: covering radius", "", [radius]))
    random = [rng.choice(vectors.rows, count, replace=False) for _ in range(RANDOM_CHOICES)]
    radii = [covering_radius(vectors, rows) for rows in random]
    return [*results, Result("random choice: covering radius", "", radii)]


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="Made-up embeddings.")
@click.option("--count", default=500, show_default=True, help="Images to choose.")
@click.option("--dimensions", default=512, show_default=True, help="Numbers of each embedding.")
@json_option
def main(rows: int, count: int, dimensions: int, json_file: Path | None) -> None:
    """Time diverse and typical subsets, and compare how well they cover all images."""
    with written(synthetic.embeddings(rows, dimensions), rows, dimensions) as (vectors, _):
        before = peak_gb()
        results = results_of(vectors, count)
        results.append(Result("peak memory while the vectors were made", "GB", [before]))
        results.append(Result("peak memory, mapped vectors included", "GB", [peak_gb()]))
        results.append(Result("the vectors", "GB", [vectors.array.nbytes / 1e9]))
    show(f"{count:,} of {rows:,} made-up embeddings of {dimensions} numbers", results, json_file)


if __name__ == "__main__":
    main()
