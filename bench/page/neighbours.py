"""How fast and how exact are searches of a large index? `python -m bench.page.neighbours`

Neighbours and near duplicates over made-up embeddings, by the inverted file of faiss against a
comparison with all vectors.
"""

import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.support.measure import Result, json_option, show
from local_forager.analysis.duplicates import near_groups, near_pairs
from local_forager.indexes.index import Index
from local_forager.indexes.vectors import InvertedFile, Vectors, faiss_installed, open_or_build
from testing import synthetic

COUNT = 20  # neighbours of a search
SAMPLE = 2_000  # rows whose near duplicates are also searched for exactly


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    return function(*arguments), time.perf_counter() - begin


def measured(what: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, list[Result]]:
    """What the function returns, and how long it took: also the CPU time of all threads."""
    begin = time.process_time()
    result, seconds = timed(function, *arguments)
    used = time.process_time() - begin
    return result, [Result(what, "s", [seconds]), Result(f"{what}: CPU time", "s", [used])]


def ignore(progress: float) -> None:
    pass


def peak_gb() -> float:
    """The largest memory of this process so far, mapped vectors included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def searches(vectors: Vectors, inverted: InvertedFile, queries: int) -> list[Result]:
    """Times of searches either way, in turn, and the share of the neighbours that is found."""
    failed = np.zeros(vectors.rows, bool)
    near, exact, recall = [], [], []
    for row in np.random.default_rng(1).integers(0, vectors.rows, queries).tolist():
        found, seconds = timed(inverted.neighbours, row, COUNT)
        near.append(1000 * seconds)
        expected, seconds = timed(vectors.neighbours, row, COUNT, failed)
        exact.append(1000 * seconds)
        recall.append(len(set(found.rows) & set(expected.rows)) / COUNT)
    return [
        Result("search, inverted file", "ms", near),
        Result("search, all vectors", "ms", exact),
        Result(f"recall@{COUNT}", "", [float(np.mean(recall))]),
    ]


@contextlib.contextmanager
def written(
    chunks: Iterator[np.ndarray], rows: int, dimensions: int, work_dir: Path | None = None
) -> Iterator[tuple[Vectors, Path]]:
    """Made-up vectors in a file, and its temporary directory."""
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        path = Path(name, "clip.f32")
        with path.open("wb") as file:
            for chunk in chunks:
                chunk.tofile(file)
        yield Vectors(path, rows, dimensions), path.parent


def index_of(directory: Path, vectors: Vectors) -> Index:
    """An index of these vectors only."""
    rows = vectors.rows
    return Index(
        directory=directory,
        names=[f"{row:08}.jpg" for row in range(rows)],
        num_train=rows,
        classes=np.zeros(rows, np.int32),
        failed=np.zeros(rows, bool),
        not_finite=[],
        embeddings={"clip": vectors},
        rows_of={},
        fields={},
        lacks={},
    )


def duplicates(index: Index, inverted: InvertedFile) -> list[Result]:
    """Time of all near duplicates, and the share of the pairs of SAMPLE rows that are found."""
    vectors = index.embeddings["clip"]
    what = "near duplicates of all"
    found, results = measured(what, near_pairs, index, "clip", ignore, None, inverted)
    groups, grouping = timed(near_groups, found, found.default)
    _, farthest = timed(near_groups, found, found.limit)
    one, other = found.rows[found.one], found.rows[found.other]
    known = set((np.minimum(one, other) * vectors.rows + np.maximum(one, other)).tolist())
    rng = np.random.default_rng(2)
    sample = rng.choice(vectors.rows, min(SAMPLE, vectors.rows), replace=False)
    queries, together, pairs = vectors.array[sample], 0, 0
    for start, block in vectors.blocks():
        places, others = np.nonzero(queries @ block.T >= 1 - found.default)
        for row, near in zip(sample[places].tolist(), (others + start).tolist(), strict=True):
            if row != near:
                pairs += 1
                together += min(row, near) * vectors.rows + max(row, near) in known
    return [
        *results,
        Result("groups of near duplicates", "", [len(groups)]),
        Result("to group them", "ms", [1000 * grouping]),
        Result("pairs that are kept", "", [len(found.distances)]),
        Result("up to a distance of", "", [found.limit]),
        Result("to group all of these", "ms", [1000 * farthest]),
        Result(f"pairs of {len(sample):,} rows", "", [pairs]),
        *([Result("share of them found", "", [together / pairs])] if pairs else []),
    ]


@click.command()
@click.option("--rows", default=100_000, show_default=True, help="Made-up embeddings.")
@click.option("--queries", default=50, show_default=True, help="Searches for neighbours.")
@click.option("--dimensions", default=512, show_default=True, help="Numbers of each embedding.")
@click.option(
    "--work_dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where to write them, some 5 bytes for each number.  [default: a temporary directory]",
)
@click.option("--evenly", is_flag=True, help="Spread them evenly in 12 balls: the hardest case.")
@json_option
def main(
    rows: int,
    queries: int,
    dimensions: int,
    work_dir: Path | None,
    evenly: bool,
    json_file: Path | None,
) -> None:
    """Time searches for neighbours and near duplicates over made-up embeddings."""
    if not faiss_installed():
        raise click.ClickException("There is no faiss: pip install -r requirements-faiss.txt.")
    made = (synthetic.vectors if evenly else synthetic.embeddings)(rows, dimensions)
    with written(made, rows, dimensions, work_dir) as (vectors, directory):
        failed, file_path = np.zeros(rows, bool), directory / "neighbours.faiss"
        what = "build the inverted file"
        inverted, results = measured(what, open_or_build, file_path, vectors, failed, ignore)
        results.append(Result("its size", "MB", [file_path.stat().st_size / 1e6]))
        results += searches(vectors, inverted, queries)
        results += duplicates(index_of(directory, vectors), inverted)
        results.append(Result("peak memory", "GB", [peak_gb()]))
    show(f"Searches of {rows:,} made-up embeddings of {dimensions} numbers", results, json_file)


if __name__ == "__main__":
    main()
