"""Which library finds neighbours best? `python -m bench.page.neighbour_libraries`

Each of faiss-cpu, usearch and hnswlib that is installed indexes the same made-up embeddings. Its
best candidates are compared exactly, as local_forager does.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.page.neighbours import COUNT, measured, written
from bench.support.measure import Result, json_option, show
from local_forager.indexes.vectors import (
    CANDIDATES,
    ITERATIONS,
    READ_SHARE,
    ROWS_A_LIST,
    TRAINED_ROWS_A_LIST,
    Vectors,
    nearest,
)
from testing import synthetic

DIMENSIONS = 512  # CLIP
THREADS = 2
LINKS, BUILD_EFFORT, EFFORT = 16, 60, 128  # of HNSW: M, efConstruction, efSearch

Search = Callable[[np.ndarray], np.ndarray]  # a query to the rows of its candidates


def faiss_inverted_file(vectors: np.ndarray) -> tuple[Search, int]:
    import faiss

    lists = len(vectors) // ROWS_A_LIST
    quantizer, kind = faiss.IndexFlatIP(DIMENSIONS), faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, DIMENSIONS, lists, kind, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.niter, index.cp.max_points_per_centroid = ITERATIONS, TRAINED_ROWS_A_LIST
    index.nprobe = max(8, round(lists * READ_SHARE))
    return _faiss(index, vectors)


def faiss_hnsw(vectors: np.ndarray) -> tuple[Search, int]:
    import faiss

    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexHNSWSQ(DIMENSIONS, kind, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_EFFORT, EFFORT
    return _faiss(index, vectors)


def _faiss(index: Any, vectors: np.ndarray) -> tuple[Search, int]:
    import faiss

    index.train(vectors)
    index.add(vectors)
    size = len(faiss.serialize_index(index))
    return lambda query: index.search(query[None], CANDIDATES * COUNT)[1][0], size


def usearch_hnsw(vectors: np.ndarray) -> tuple[Search, int]:
    from usearch.index import Index

    index = Index(
        ndim=DIMENSIONS,
        metric="ip",
        dtype="i8",
        connectivity=LINKS,
        expansion_add=BUILD_EFFORT,
        expansion_search=EFFORT,
    )
    index.add(np.arange(len(vectors)), vectors, threads=THREADS)
    return lambda query: index.search(query, CANDIDATES * COUNT).keys.astype(np.int64), len(
        index.save()
    )


def hnswlib_hnsw(vectors: np.ndarray) -> tuple[Search, int]:
    import hnswlib

    index = hnswlib.Index("ip", DIMENSIONS)
    index.init_index(len(vectors), M=LINKS, ef_construction=BUILD_EFFORT)
    index.add_items(vectors, num_threads=THREADS)
    index.set_ef(EFFORT)
    return lambda query: index.knn_query(query, CANDIDATES * COUNT)[0][0], index.index_file_size()


LIBRARIES = {
    "faiss, inverted file of bytes": faiss_inverted_file,
    "faiss, HNSW of bytes": faiss_hnsw,
    "usearch, HNSW of bytes": usearch_hnsw,
    "hnswlib, HNSW of float32": hnswlib_hnsw,
}


def results_of(name: str, vectors: Vectors, queries: list[int]) -> list[Result]:
    (search, size), results = measured(f"{name}: build", LIBRARIES[name], vectors.array)
    failed, times, shares = np.zeros(vectors.rows, bool), [], []
    for row in queries:
        query = vectors.array[row]
        begin = time.perf_counter()
        rows = np.sort(search(query))
        rows = rows[(rows >= 0) & (rows != row)]
        found = rows[nearest(vectors.array[rows] @ query, COUNT).rows]
        times.append(1000 * (time.perf_counter() - begin))
        shares.append(len(set(found) & set(vectors.neighbours(row, COUNT, failed).rows)) / COUNT)
    return [
        *results,
        Result(f"{name}: search", "ms", times),
        Result(f"{name}: recall@{COUNT}", "", [float(np.mean(shares))]),
        Result(f"{name}: size", "MB", [size / 1e6]),
    ]


@click.command()
@click.option("--rows", default=100_000, show_default=True, help="Made-up embeddings.")
@click.option("--queries", default=50, show_default=True, help="Searches by each library.")
@json_option
def main(rows: int, queries: int, json_file: Path | None) -> None:
    """Compare libraries that search for neighbours: build, time, recall and size."""
    wanted = np.random.default_rng(1).integers(0, rows, queries).tolist()
    results: list[Result] = []
    with written(synthetic.embeddings(rows, DIMENSIONS), rows, DIMENSIONS) as (vectors, _):
        for library in LIBRARIES:
            try:
                results += results_of(library, vectors, wanted)
            except ImportError as error:
                click.echo(f"{library} is left out: {error}.", err=True)
    show(f"Libraries over {rows:,} made-up embeddings", results, json_file)


if __name__ == "__main__":
    main()
