"""Vectors laid out in two dimensions for the map: principal components, or UMAP if installed.

A dataset that grew keeps the places of the images that it had: its map begins with the saved map of
the index that shares most images with it.
"""

import importlib.util
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from common.files import written_whole
from local_forager.analysis.comparisons import nearest_among
from local_forager.indexes.vectors import Vectors, keys_of
from local_forager.types import PageError

SAMPLE_ROWS = 20_000  # rows that the components are computed from; every row is projected
SEED = 0
METHODS = ("pca", "umap")
UMAP_ROWS = 50_000  # images up to which UMAP, if installed, is the usual layout: half a minute
UMAP_MISSING = "Install umap-learn beside local_forager for a UMAP layout."
LEAST_ROWS = 5  # images that are laid out by their vectors; fewer are put in a line
LEAST_SHARED = 0.5  # of the images of either index, so that one takes the places of the other
NEAREST = 5  # images that have places, between which UMAP's layout puts a new one


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A map as it is saved, one member of the file for each field."""

    points: np.ndarray  # float32 (n, 2), NaN for failed images
    keys: np.ndarray  # uint64 (n,), see keys_of
    # float32: of principal components, points are (vectors @ axes - middle) / scale.
    axes: np.ndarray  # (d, 2)
    middle: np.ndarray  # (2,)
    scale: np.ndarray  # ()


def umap_installed() -> bool:
    return importlib.util.find_spec("umap") is not None


def default_method(rows: int) -> str:
    return "umap" if umap_installed() and rows <= UMAP_ROWS else "pca"


def axes_of(vectors: Vectors, failed: np.ndarray) -> np.ndarray:
    """The two directions of largest variance of a sample: float32 (d, 2).

    Their largest entries are positive.
    """
    good = np.flatnonzero(~failed)
    if len(good) > SAMPLE_ROWS:
        chosen = np.random.default_rng(SEED).choice(good, SAMPLE_ROWS, replace=False)
        good = np.sort(chosen)
    sample = vectors.array[good]
    centred = sample - sample.mean(axis=0)
    if len(good) < vectors.dimensions:  # 2,048 numbers: this takes 0.6 s for 60 images, eigh 8 s
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2].T
    else:
        axes = np.linalg.eigh(centred.T @ centred)[1][:, -1:-3:-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    return (axes * signs).astype(np.float32)


def umap(vectors: Vectors, failed: np.ndarray) -> np.ndarray:
    try:
        from umap import UMAP
    except ImportError as error:
        reason = f"UMAP cannot be loaded ({error}): install umap-learn anew, or choose pca."
        raise PageError(409, reason) from error
    points = np.empty((vectors.rows, 2), np.float32)
    good = ~failed
    neighbours = min(15, int(good.sum()) - 1)
    reducer = UMAP(n_neighbors=neighbours, metric="cosine", random_state=SEED, n_jobs=1)
    points[good] = reducer.fit_transform(vectors.array[good])
    return points


def project(vectors: Vectors, failed: np.ndarray, method: str, keys: np.ndarray) -> Layout:
    """Places within -1 to 1, both axes to the same scale."""
    axes = np.zeros((vectors.dimensions, 2), np.float32)
    middle, scale = np.zeros(2, np.float32), np.float32(1)
    if int((~failed).sum()) < LEAST_ROWS:
        points = np.zeros((vectors.rows, 2), np.float32)
        points[:, 0] = np.arange(vectors.rows)
    elif method == "pca":
        axes = axes_of(vectors, failed)
        points = vectors.similarities(axes)
    else:
        points = umap(vectors, failed)
    points[failed] = np.nan
    if (~failed).any():
        low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
        middle, scale = (low + high) / 2, np.float32(max(float((high - low).max()) / 2, 1e-12))
    return Layout(
        points=((points - middle) / scale).astype("<f4"),
        keys=keys,
        axes=axes,
        middle=middle,
        scale=np.asarray(scale),
    )


def grown(
    source: Layout, vectors: Vectors, failed: np.ndarray, method: str, keys: np.ndarray
) -> Layout:
    """The places of another index for the images that it has, and places among them for others.

    A new image is projected on the axes of the other index, or with UMAP put at the mean of its
    NEAREST images with places, weighted by one over the distance. With principal components it may
    be a little outside of -1 to 1.
    """
    known = ~np.isnan(source.points[:, 0])
    of_source, first = np.unique(source.keys[known], return_index=True)
    places = np.searchsorted(of_source, keys).clip(max=len(of_source) - 1)
    shared = (of_source[places] == keys) & ~failed
    points = np.full((vectors.rows, 2), np.nan, "<f4")
    if method == "pca":
        projected = (vectors.similarities(source.axes) - source.middle) / source.scale
        points[~failed] = projected[~failed]
    points[shared] = source.points[known][first[places[shared]]]
    if method == "umap":
        old, new = np.flatnonzero(shared), np.flatnonzero(~shared & ~failed)
        points[new] = between(vectors, new, old, points[old])
    return replace(source, points=points, keys=keys)


def between(vectors: Vectors, new: np.ndarray, old: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 (new, 2): the weighted mean of the points of the NEAREST old rows of each new one."""
    found = np.zeros((len(new), 2), np.float32)
    for block, similarity, nearest in nearest_among(vectors, new, old, min(NEAREST, len(old))):
        weights = 1 / np.maximum(1 - similarity, 1e-6)
        weights /= weights.sum(axis=1, keepdims=True)
        found[block] = np.einsum("ij,ijk->ik", weights, points[nearest])
    return found


def read_layout(path: Path, rows: int | None = None) -> Layout | None:
    """The map in a file; None if there is none, it is damaged, or it has another number of rows."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            layout = Layout(**file)
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, BadZipFile):
        return None
    return layout if rows in (None, len(layout.points)) else None


def source_of(path: Path, keys: np.ndarray) -> Layout | None:
    """The saved map, beside other indexes, that shares most of these images; None without one.

    keys: of the images with vectors. Both indexes must share at least LEAST_SHARED of their images.
    """
    best, most = None, 0
    for other in sorted(path.parent.parent.glob(f"*/{path.name}")):
        layout = None if other == path else read_layout(other)
        if layout is None:
            continue
        known = layout.keys[~np.isnan(layout.points[:, 0])]
        shared = int(np.isin(keys, known).sum())
        enough = max(LEAST_ROWS, LEAST_SHARED * max(len(keys), len(known)))
        if shared >= enough and shared > most:
            best, most = layout, shared
    return best


def saved_projection(path: Path, vectors: Vectors, failed: np.ndarray, method: str) -> bytes:
    """The map as float32 pairs; it is computed once and kept in the file."""
    layout = read_layout(path, vectors.rows)
    if layout is None:
        keys = keys_of(vectors)
        source = source_of(path, keys[~failed])
        lay_out = partial(grown, source) if source else project
        layout = lay_out(vectors, failed, method, keys)
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **asdict(layout))
    return layout.points.tobytes()
