"""The embeddings that an index holds, and their arrays on disk while they fill.

The arrays have no header, in spite of `.npy`: little-endian float32, C order, one row per image.
The server opens them with numpy.memmap. They are written with pwrite, not through a mapping: pages
of a mapping would count as this process's memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from common.files import sync_directory


class EmbeddingKind(NamedTuple):
    """One kind of vector that every image gets."""

    name: str  # of its directory under indexes/<index_id>/local/
    dimension: int
    model: str
    shows: str  # which images are close to each other


# The order of vectors and arrays everywhere; the README's table names the same.
EMBEDDINGS = (
    EmbeddingKind("imagenet", 2048, "ResNet-50, res5", "images of the same things"),
    EmbeddingKind("imagenet_early", 1024, "ResNet-50, res4", "images of the same textures"),
    EmbeddingKind("clip", 512, "CLIP ViT-B/32", "images with the same caption"),
)
DIMENSIONS = {kind.name: kind.dimension for kind in EMBEDDINGS}
DTYPE = np.dtype("<f4")
BYTES_PER_ROW = sum(DIMENSIONS.values()) * DTYPE.itemsize
ZEROS = tuple(np.zeros(dimension, DTYPE) for dimension in DIMENSIONS.values())


class DiskFull(click.ClickException):
    """No space is left for the arrays."""


class Embedding(NamedTuple):
    """What the models make of one image."""

    vectors: Sequence[np.ndarray]  # float32 of unit length, in the order of EMBEDDINGS
    imagenet_class: int


def array_path(directory: Path, name: str) -> Path:
    """The file of one embedding's array under a work directory."""
    return directory / "index" / "local" / name / "embeddings.npy"


def arrays_complete(directory: Path, rows: int) -> bool:
    """Whether all arrays are there with space for exactly `rows` rows."""
    return all(
        (path := array_path(directory, name)).is_file()
        and path.stat().st_size == rows * dimension * DTYPE.itemsize
        for name, dimension in DIMENSIONS.items()
    )


class Arrays:
    """The embedding arrays of `rows` images, open for writing; a context manager.

    A new array holds zeros and takes its whole space on the disk at once: a full disk shows now,
    not after hours.

    Raises:
        DiskFull: not enough space.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        self._files: dict[str, int] = {}  # name -> file descriptor
        for name, dimension in DIMENSIONS.items():
            path = array_path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            size = rows * dimension * DTYPE.itemsize
            try:
                _allocate(self._files[name], size)
            except OSError as error:
                self.close()
                raise DiskFull(
                    f"{path} needs {size / 1e9:,.1f} GB ({error.strerror}): free space there, or "
                    "choose another disk with --work_dir."
                ) from error
            for made in path.parents[:4]:  # up to the work directory
                sync_directory(made)

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def write(self, row: int, vectors: Sequence[np.ndarray]) -> None:
        """Put the vectors of one image into their rows; durable only after `sync`."""
        for (name, file), vector in zip(self._files.items(), vectors, strict=True):
            data = np.ascontiguousarray(vector, dtype=DTYPE).tobytes()
            if len(data) != DIMENSIONS[name] * DTYPE.itemsize:
                raise ValueError(f"{name}: {len(data)} bytes are no vector of {DIMENSIONS[name]}")
            if os.pwrite(file, data, row * len(data)) != len(data):  # the disk took only a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        for file in self._files.values():
            os.fsync(file)


def _allocate(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size > os.fstat(file).st_size:
        os.posix_fallocate(file, 0, size)
    os.ftruncate(file, size)
