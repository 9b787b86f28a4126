"""The index of a dataset on disk: the embedding arrays while they fill, and the lists beside them.

The arrays are headerless: little-endian float32, C order, one row an image, in spite of `.npy`; the
server opens them with numpy.memmap. They are written with pwrite, not through a mapping: pages of a
mapping would count as this process's memory.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from common.files import sync_directory

DIMENSIONS = {"imagenet": 2048, "imagenet_early": 1024, "clip": 512}
DTYPE = np.dtype("<f4")
BYTES_A_ROW = sum(DIMENSIONS.values()) * DTYPE.itemsize


class DiskFull(click.ClickException):
    """No space is left for the arrays."""


class Embedding(NamedTuple):
    """The three vectors of one image, float32, of unit length."""

    imagenet: np.ndarray  # (2048,)
    imagenet_early: np.ndarray  # (1024,)
    clip: np.ndarray  # (512,)


def array_path(directory: Path, name: str) -> Path:
    """Where the array of one embedding lies under a work directory."""
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

    def write(self, row: int, embedding: Embedding) -> None:
        """Put one image's vectors into their rows; durable only after `sync`."""
        for (name, file), vector in zip(self._files.items(), embedding, strict=True):
            data = np.ascontiguousarray(vector, dtype=DTYPE).tobytes()
            if len(data) != DIMENSIONS[name] * DTYPE.itemsize:
                raise ValueError(f"{name}: {len(data)} bytes are no vector of {DIMENSIONS[name]}")
            if os.pwrite(file, data, row * len(data)) != len(data):  # the disk took a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def clear(self, row: int) -> None:
        """Put zeros into one row: it failed."""
        self.write(row, Embedding(*(np.zeros(d, DTYPE) for d in DIMENSIONS.values())))

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        for file in self._files.values():
            os.fsync(file)


def _allocate(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size > os.fstat(file).st_size:
        os.posix_fallocate(file, 0, size)
    os.ftruncate(file, size)
