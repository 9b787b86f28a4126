"""The embeddings that an index holds, and their arrays on disk while they fill.

The arrays have no header, in spite of `.npy`: little-endian float32, C order, one row per image.
The server opens them with numpy.memmap. They are written with pwrite, not through a mapping: pages
of a mapping would count as this process's memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from common.errors import DiskError
from common.files import refuse_irregular, sync_directory


class EmbeddingKind(NamedTuple):
    """One kind of vector that every image gets."""

    name: str  # of its directory under indexes/<index_id>/local/
    dimension: int
    model: str
    compares: str


# The order of vectors and arrays everywhere. The page shows this table, and so does the README.
EMBEDDINGS = (
    EmbeddingKind("imagenet", 2048, "ResNet-50 res5", "objects"),
    EmbeddingKind("imagenet_early", 1024, "ResNet-50 res4", "textures and shapes"),
    EmbeddingKind("clip", 512, "CLIP ViT-B/32", "what the picture shows"),
)
DIMENSIONS = {kind.name: kind.dimension for kind in EMBEDDINGS}
DTYPE = np.dtype("<f4")
BYTES_PER_ROW = sum(DIMENSIONS.values()) * DTYPE.itemsize
ROWS_PER_READ = 1000
ZEROS = tuple(np.zeros(dimension, DTYPE) for dimension in DIMENSIONS.values())


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
        DiskError: not enough space.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        self._files: dict[str, int] = {}  # name -> file descriptor
        for name, dimension in DIMENSIONS.items():
            path = array_path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_irregular(path)
            self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            size = rows * dimension * DTYPE.itemsize
            try:
                _allocate(self._files[name], size)
            except OSError as error:
                self.close()
                raise DiskError(
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

    def write(self, row: int, vectors: Sequence[np.ndarray]) -> int:
        """Put the vectors of one image into their rows; durable only after `sync`.

        Returns the crc32c of what was written, over all arrays in the order of EMBEDDINGS.
        """
        checksum = 0
        for (name, file), vector in zip(self._files.items(), vectors, strict=True):
            data = np.ascontiguousarray(vector, dtype=DTYPE).tobytes()
            if len(data) != DIMENSIONS[name] * DTYPE.itemsize:
                raise ValueError(f"{name}: {len(data)} bytes are no vector of {DIMENSIONS[name]}")
            if os.pwrite(file, data, row * len(data)) != len(data):  # the disk took only a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            checksum = google_crc32c.extend(checksum, data)
        return int(checksum)

    def write_block(self, row: int, blocks: Sequence[memoryview]) -> None:
        """Put the vectors of consecutive rows, as bytes, into their rows; durable after `sync`.

        `blocks` has the vectors of these rows for each array, in the order of EMBEDDINGS.
        """
        for (name, file), data in zip(self._files.items(), blocks, strict=True):
            if os.pwrite(file, data, row * DIMENSIONS[name] * DTYPE.itemsize) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        for file in self._files.values():
            os.fsync(file)


class Verified(NamedTuple):
    """What a look at every row of the arrays found."""

    damaged: list[int]  # rows whose vectors are not those that were written
    checksums: dict[str, int]  # crc32c of each whole array, by name


def verify_arrays(
    directory: Path, rows: int, expected: Iterator[tuple[int, int | None]]
) -> Verified:
    """Compare the arrays with the crc32c of each row that `expected` gives, in row order.

    Raises:
        OSError: an array cannot be read.
    """
    damaged: list[int] = []
    checksums = dict.fromkeys(DIMENSIONS, 0)
    wanted = next(expected, None)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(open(array_path(directory, name), "rb"))
            for name in DIMENSIONS
        }
        for first in range(0, rows, ROWS_PER_READ):
            count = min(ROWS_PER_READ, rows - first)
            blocks = []
            for name, file in files.items():
                size = DIMENSIONS[name] * DTYPE.itemsize
                data = file.read(count * size)
                checksums[name] = google_crc32c.extend(checksums[name], data)
                blocks.append((size, data))
            while wanted is not None and wanted[0] < first + count:
                row, checksum = wanted
                found, place = 0, row - first
                for size, data in blocks:
                    found = google_crc32c.extend(found, data[place * size : (place + 1) * size])
                if found != checksum:
                    damaged.append(row)
                wanted = next(expected, None)
    return Verified(damaged, checksums)


def _allocate(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size > os.fstat(file).st_size:
        os.posix_fallocate(file, 0, size)
    os.ftruncate(file, size)
