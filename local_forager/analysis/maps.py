"""Vectors projected to two dimensions for the map: principal components, or UMAP if installed."""

import importlib.util
from pathlib import Path

import numpy as np

from common.files import write_atomically
from local_forager.indexes.vectors import Vectors

SAMPLE_ROWS = 20_000  # rows that the components are computed from; every row is projected
SEED = 0
METHODS = ("pca", "umap")
UMAP_MISSING = "Install umap-learn beside local_forager for a UMAP layout."


def umap_installed() -> bool:
    return importlib.util.find_spec("umap") is not None


def principal_axes(sample: np.ndarray) -> np.ndarray:
    """The two directions of largest variance: float32 (d, 2), their largest entries positive."""
    centred = sample - sample.mean(axis=0)
    if len(centred) < centred.shape[1]:  # a smaller matrix has the same directions
        _, weights = np.linalg.eigh(centred @ centred.T)
        axes = centred.T @ weights[:, -1:-3:-1]
        axes /= np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    else:
        _, directions = np.linalg.eigh(centred.T @ centred)
        axes = directions[:, -1:-3:-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    return (axes * signs).astype(np.float32)


def pca(vectors: Vectors, failed: np.ndarray) -> np.ndarray:
    good = np.flatnonzero(~failed)
    if len(good) > SAMPLE_ROWS:
        chosen = np.random.default_rng(SEED).choice(good, SAMPLE_ROWS, replace=False)
        good = np.sort(chosen)
    axes = principal_axes(vectors.array[good])
    points = np.empty((vectors.rows, 2), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # of failed rows that are not finite
        for start, block in vectors.blocks():
            points[start : start + len(block)] = block @ axes
    return points


def umap(vectors: Vectors, failed: np.ndarray) -> np.ndarray:
    from umap import UMAP

    points = np.empty((vectors.rows, 2), np.float32)
    good = ~failed
    neighbours = min(15, int(good.sum()) - 1)
    reducer = UMAP(n_neighbors=neighbours, metric="cosine", random_state=SEED, n_jobs=1)
    points[good] = reducer.fit_transform(vectors.array[good])
    return points


def project(vectors: Vectors, failed: np.ndarray, method: str) -> np.ndarray:
    """float32 (n, 2) within -1 to 1, both axes to the same scale; NaN for failed images."""
    if int((~failed).sum()) < 5:
        points = np.zeros((vectors.rows, 2), np.float32)
        points[:, 0] = np.arange(vectors.rows)
    else:
        points = pca(vectors, failed) if method == "pca" else umap(vectors, failed)
    points[failed] = np.nan
    if (~failed).any():
        low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
        points = (points - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-12)
    return points.astype("<f4")


def saved_projection(path: Path, vectors: Vectors, failed: np.ndarray, method: str) -> bytes:
    """The projection as bytes; it is computed once and kept in the file."""
    if not path.exists() or path.stat().st_size != vectors.rows * 8:
        write_atomically(path, [project(vectors, failed, method).tobytes()])
    return path.read_bytes()
