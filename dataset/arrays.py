"""The embeddings that an index holds, and their arrays on disk while they fill.

The arrays have no header, in spite of `.npy`: little-endian float32, C order, one row per image.
The server opens them with numpy.memmap. They are written with pwrite, not through a mapping: pages
of a mapping would count as this process's memory. While they fill, an image has its slot
(images.py) in place of its row; `put_in_order` ends that.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import google_crc32c
import numpy as np

from common.errors import DiskError
from common.files import refuse_irregular, sync_directory

if TYPE_CHECKING:
    from dataset.state import State


T = TypeVar("T")


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
ROW_BYTES = {name: dimension * DTYPE.itemsize for name, dimension in DIMENSIONS.items()}
BYTES_PER_ROW = sum(ROW_BYTES.values())
ROWS_PER_READ = 1000
ZEROS = tuple(np.zeros(dimension, DTYPE) for dimension in DIMENSIONS.values())


class Embedding(NamedTuple):
    """What the models make of one image."""

    vectors: Sequence[np.ndarray]  # float32 of unit length, in the order of EMBEDDINGS
    imagenet_class: int


def array_path(directory: Path, name: str) -> Path:
    """The file of one embedding's array under a work directory."""
    return directory / "index" / "local" / name / "embeddings.npy"


def arrays_complete(directory: Path, rows: int, *, exactly: bool = True) -> bool:
    """Whether all arrays are there with space for `rows` rows, or for at least as many."""

    def fits(path: Path, wanted: int) -> bool:
        size = path.stat().st_size if path.is_file() else -1
        return size == wanted or (size > wanted and not exactly)

    return all(fits(array_path(directory, name), rows * size) for name, size in ROW_BYTES.items())


class Arrays:
    """The embedding arrays with `rows` slots, open for writing; a context manager.

    A new array holds zeros and takes its whole space on the disk at once: a full disk shows now,
    not after hours.

    Raises:
        DiskError: not enough space.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        self._files: dict[str, int] = {}  # name -> file descriptor
        for name, row_bytes in ROW_BYTES.items():
            path = array_path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_irregular(path)
            self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            size = rows * row_bytes
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
        blocks = [np.ascontiguousarray(vector, DTYPE).tobytes() for vector in vectors]
        if [len(block) for block in blocks] != [*ROW_BYTES.values()]:
            raise ValueError(
                f"{[len(block) for block in blocks]} bytes are not the vectors of an image"
            )
        self.write_block(row, blocks)
        return row_checksum(blocks, 0)

    def write_block(self, row: int, blocks: Sequence[bytes | memoryview]) -> None:
        """Put the vectors of consecutive rows, as bytes, into their rows; durable after `sync`.

        `blocks` has the vectors of these rows for each array, in the order of EMBEDDINGS.
        """
        for (name, file), data in zip(self._files.items(), blocks, strict=True):
            if os.pwrite(file, data, row * ROW_BYTES[name]) != len(data):  # a part of it
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
                data = file.read(count * ROW_BYTES[name])
                checksums[name] = google_crc32c.extend(checksums[name], data)
                blocks.append(data)
            while wanted is not None and wanted[0] < first + count:
                row, checksum = wanted
                if row_checksum(blocks, row - first) != checksum:
                    damaged.append(row)
                wanted = next(expected, None)
    return Verified(damaged, checksums)


def row_checksum(blocks: Sequence[bytes | memoryview], row: int) -> int:
    """The crc32c of one row of blocks, one of each array in the order of EMBEDDINGS; as `write`."""
    checksum = 0
    for block, size in zip(blocks, ROW_BYTES.values(), strict=True):
        checksum = google_crc32c.extend(checksum, bytes(block[row * size : (row + 1) * size]))
    return int(checksum)


def _allocate(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate") and size > os.fstat(file).st_size:
        os.posix_fallocate(file, 0, size)
    os.ftruncate(file, size)


def put_in_order(state: State) -> None:
    """Bring the arrays into row order, one after the other, and number the slots of a state anew.

    So the disk holds one array twice at most. An array in row order gets a temporary name and is
    renamed after the state has recorded it: whatever ends this, the next call goes on with it.

    Raises:
        DiskError: not enough space.
    """
    directory, rows = state.directory, state.counts().images
    ordered = state.ordered_arrays()
    if ordered is None and not state.is_in_order():
        state.mark_ordered(ordered := [])
    if ordered is not None:
        for name, row_bytes in ROW_BYTES.items():
            path = array_path(directory, name)
            temporary = path.with_name(path.name + ".ordered")
            if name not in ordered:
                _copy_in_order(path, temporary, state.slots_in_order(), row_bytes)
                ordered.append(name)
                state.mark_ordered(ordered)
            if temporary.exists():
                os.replace(temporary, path)
                sync_directory(path.parent)
    if ordered is not None or state.slots() != rows:
        state.number_rows()
    with Arrays(directory, rows):  # cuts what is beyond the last row
        pass


def _copy_in_order(source: Path, target: Path, slots: Iterator[int], row_bytes: int) -> None:
    """Write the rows of an array in the order of `slots` to a new file, durably."""
    refuse_irregular(target)
    try:
        with open(source, "rb") as old, open(target, "wb") as new:
            for run in grouped(slots, _follows):
                new.write(os.pread(old.fileno(), len(run) * row_bytes, run[0] * row_bytes))
            new.flush()
            os.fsync(new.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        target.unlink(missing_ok=True)
        raise DiskError(
            f"{target.parent} has no space for its array a second time, in row order "
            f"({error.strerror}): free some; the same command then continues."
        ) from error


def _follows(run: list[int], slot: int) -> bool:
    return slot == run[-1] + 1 and len(run) < ROWS_PER_READ


def grouped(items: Iterable[T], joins: Callable[[list[T], T], bool]) -> Iterator[list[T]]:
    """The items in lists, in order: each goes into the last list, or begins one if it does not
    `join` that.
    """
    group: list[T] = []
    for item in items:
        if group and not joins(group, item):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
