"""The embeddings in two dimensions, for the map: principal components, or UMAP if installed."""

import importlib.util
import os
from pathlib import Path

import numpy as np

from local_forager.analysis.neighbours import Embedding

SAMPLE_ROWS = 20_000  # rows from which the components are computed; every row is projected
SEED = 0
METHODS = ("pca", "umap")


def umap_installed() -> bool:
    return importlib.util.find_spec("umap") is not None


def principal_axes(sample: np.ndarray) -> np.ndarray:
    """The two directions of largest variance: float32 (d, 2), their largest entries positive."""
    centred = sample - sample.mean(axis=0)
    if len(centred) < centred.shape[1]:  # the same directions from a smaller matrix
        _, weights = np.linalg.eigh(centred @ centred.T)
        axes = centred.T @ weights[:, -1:-3:-1]
        axes /= np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    else:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, -1:-3:-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    return (axes * signs).astype(np.float32)


def pca(embedding: Embedding, failed: np.ndarray) -> np.ndarray:
    good = np.flatnonzero(~failed)
    if len(good) > SAMPLE_ROWS:
        chosen = np.random.default_rng(SEED).choice(good, SAMPLE_ROWS, replace=False)
        good = np.sort(chosen)
    axes = principal_axes(embedding.vectors[good])
    points = np.empty((embedding.rows, 2), np.float32)
    for start, block in embedding.blocks():
        points[start : start + len(block)] = block @ axes
    return points


def umap(embedding: Embedding, failed: np.ndarray) -> np.ndarray:
    from umap import UMAP

    points = np.empty((embedding.rows, 2), np.float32)
    good = ~failed
    neighbours = min(15, int(good.sum()) - 1)
    reducer = UMAP(n_neighbors=neighbours, metric="cosine", random_state=SEED, n_jobs=1)
    points[good] = reducer.fit_transform(embedding.vectors[good])
    return points


def project(embedding: Embedding, failed: np.ndarray, method: str) -> np.ndarray:
    """float32 (n, 2) within -1..1 around 0, one scale for both axes; NaN for failed images."""
    if int((~failed).sum()) < 5:
        points = np.zeros((embedding.rows, 2), np.float32)
        points[:, 0] = np.arange(embedding.rows)
    else:
        points = pca(embedding, failed) if method == "pca" else umap(embedding, failed)
    points[failed] = np.nan
    if (~failed).any():
        low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
        points = (points - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-12)
    return points.astype("<f4")


def saved_projection(path: Path, embedding: Embedding, failed: np.ndarray, method: str) -> bytes:
    """The projection as bytes, computed once and kept in the file."""
    if not path.exists() or path.stat().st_size != embedding.rows * 8:
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(project(embedding, failed, method).tobytes())
        os.replace(partial, path)
    return path.read_bytes()
