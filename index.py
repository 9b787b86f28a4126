"""The index of a dataset on disk: the embedding arrays while they fill, and the lists beside them.

The arrays are headerless: little-endian float32, C order, one row an image, in spite of `.npy`; the
server opens them with numpy.memmap. They are written with pwrite, not through a mapping: pages of a
mapping would count as this process's memory.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from disk import sync_directory
from names import identifier
from state import TRAIN, VAL, State

DIMENSIONS = {"imagenet": 2048, "imagenet_early": 1024, "clip": 512}
DTYPE = np.dtype("<f4")
BYTES_A_ROW = sum(DIMENSIONS.values()) * DTYPE.itemsize
PICKLE_BATCH = 1000  # entries between two SETITEMS opcodes, as pickle itself writes them


class DiskFull(click.ClickException):
    """No space is left for the arrays."""


class Embedding(NamedTuple):
    """The three vectors of one image, float32, of unit length."""

    imagenet: np.ndarray  # (2048,)
    imagenet_early: np.ndarray  # (1024,)
    clip: np.ndarray  # (512,)


class IndexFile(NamedTuple):
    """A file of the index and the object it becomes."""

    path: Path
    object_name: str
    content_type: str


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


def write_lists(state: State, directory: Path) -> None:
    """Write labels.json, the two identifier lists and the ImageNet classes, from the state."""
    index = directory / "index"
    index.mkdir(parents=True, exist_ok=True)
    _write(index / "labels.json", _json_list(state.objects()))
    _write(index / "identifiers.json", _json_object(state.identifiers(TRAIN)))
    _write(index / "val_identifiers.json", _json_object(state.identifiers(VAL)))
    (directory / "aux").mkdir(exist_ok=True)
    classes = ((name.rpartition("/")[2], c) for name, c in state.imagenet_classes())
    _write(directory / "aux" / "imagenet.pickle", pickled_dict(classes))


def index_files(directory: Path, index_id: str) -> list[IndexFile]:
    """All files of the index except the thumbnails, with their object names; largest first."""
    prefix = f"indexes/{index_id}"
    binary, text = "application/octet-stream", "application/json"
    return [
        *(
            IndexFile(array_path(directory, name), f"{prefix}/local/{name}/embeddings.npy", binary)
            for name in DIMENSIONS
        ),
        *(
            IndexFile(directory / "index" / name, f"{prefix}/{name}", text)
            for name in ("labels.json", "identifiers.json", "val_identifiers.json")
        ),
        IndexFile(
            directory / "aux" / "imagenet.pickle", f"aux_labels/{index_id}/imagenet.pickle", binary
        ),
    ]


def thumbnail_name(index_id: str, object_name: str) -> str:
    """The object that holds the thumbnail of an image."""
    return f"thumbnails/{index_id}/{identifier(object_name)}.jpg"


def pickled_dict(entries: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """The pickle (protocol 2) of {text: int}, piece by piece: the dict is never in memory.

    Opcodes as in CPython's Lib/pickletools.py.
    """
    yield pickle.PROTO + b"\x02" + pickle.EMPTY_DICT
    batch: list[bytes] = []

    def flush() -> bytes:
        data = pickle.MARK + b"".join(batch) + pickle.SETITEMS if batch else b""
        batch.clear()
        return data

    for text, number in entries:
        data = text.encode()
        batch.append(
            pickle.BINUNICODE
            + struct.pack("<I", len(data))
            + data
            + pickle.BININT
            + struct.pack("<i", number)
        )
        if len(batch) == PICKLE_BATCH:
            yield flush()
    yield flush() + pickle.STOP


def _json_list(items: Iterable[str]) -> Iterator[bytes]:
    separator = "["
    for item in items:
        yield (separator + json.dumps(item)).encode()
        separator = ", "
    yield b"[]" if separator == "[" else b"]"


def _json_object(items: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    separator = "{"
    for key, value in items:
        yield f"{separator}{json.dumps(key)}: {value}".encode()
        separator = ", "
    yield b"{}" if separator == "{" else b"}"


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file under a temporary name, flush it, rename it."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)
