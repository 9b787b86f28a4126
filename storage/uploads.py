"""The index on its way into the bucket: large files in parallel parts, every object verified.

A part is an object of its own until the parts are composed into the file; a second run finds the
parts, or the file, that a first one left and does not send them again.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from google.api_core import exceptions as api

import gcs
from common import retries
from common.terminal import printable
from dataset.lists import IndexFile
from gcs import StorageError, crc32c_of_file, crc32c_of_listing

if TYPE_CHECKING:
    from google.cloud import storage

MIN_PART_BYTES = 16 << 20
MAX_PARTS = 32  # what one compose request takes
PARTS_AT_ONCE = 16
CHUNK_BYTES = 8 << 20  # of a part in one request, in memory
TIMEOUT = (15, 120)  # seconds: connect, read
DELETIONS_AT_ONCE = 32
# asyncio's own threads are a few more than the cores; these only wait for the network.
_THREADS = ThreadPoolExecutor(max(PARTS_AT_ONCE, DELETIONS_AT_ONCE), "upload")
NO_COMPOSE = (api.MethodNotImplemented, api.MethodNotAllowed, api.Forbidden)


class Part(NamedTuple):
    """The bytes start..start+length of a file, and the object that holds them for a while."""

    name: str
    start: int
    length: int


class _Slice(io.RawIOBase):
    """The bytes start..start+size of a file, as a file of their own."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._start, self._size, self._at = start, size, 0

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._at
        data = os.pread(
            self._file.fileno(), left if size < 0 else min(size, left), self._start + self._at
        )
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


async def upload_files(client: storage.Client, bucket: str, files: Iterable[IndexFile]) -> int:
    """Upload the files and verify size and crc32c of each; returns the bytes now in the bucket.

    Raises:
        StorageError: an object could not be written, or is not what was sent.
    """
    total = 0
    for file in files:
        total += await _upload(client.bucket(bucket), file)
    return total


async def _upload(bucket: storage.Bucket, file: IndexFile) -> int:
    size = file.path.stat().st_size
    checksum = await asyncio.to_thread(crc32c_of_file, file.path)
    parts = _parts(file, size)
    if not await _is_there(bucket, file.object_name, size, checksum):
        if len(parts) < 2:
            await _send(bucket, file, file.object_name, 0, size)
        else:
            await _upload_in_parts(bucket, file, size, parts)
        if not await _is_there(bucket, file.object_name, size, checksum):
            raise StorageError(
                f"gs://{bucket.name}/{file.object_name} is not what was sent (size or crc32c "
                "differ): run the same command again, which sends it once more."
            )
    if len(parts) > 1:  # an interrupted run may have left them beside the whole file
        await delete_objects(bucket, [part.name for part in parts])
    return size


def _parts(file: IndexFile, size: int) -> list[Part]:
    """The parts a file of `size` bytes is sent in; fewer than two if it is sent whole."""
    if size < 2 * MIN_PART_BYTES:
        return []
    count = min(MAX_PARTS, -(-size // MIN_PART_BYTES))
    step = -(-size // count)
    return [
        Part(f"{file.object_name}.part-{number:02}-of-{count:02}", start, min(step, size - start))
        for number, start in enumerate(range(0, size, step), start=1)
    ]


async def _upload_in_parts(
    bucket: storage.Bucket, file: IndexFile, size: int, parts: list[Part]
) -> None:
    free = asyncio.Semaphore(PARTS_AT_ONCE)

    async def send(name: str, start: int, length: int) -> None:
        async with free:
            checksum = await asyncio.to_thread(crc32c_of_file, file.path, start, length)
            if not await _is_there(bucket, name, length, checksum):
                await _send(bucket, file, name, start, length)

    await asyncio.gather(*(send(*part) for part in parts))
    try:
        await _compose(bucket, file, [part.name for part in parts])
    except NO_COMPOSE:
        await _send(bucket, file, file.object_name, 0, size)


async def _compose(bucket: storage.Bucket, file: IndexFile, names: list[str]) -> None:
    blob = bucket.blob(file.object_name)
    blob.content_type = file.content_type
    sources = [bucket.blob(name) for name in names]
    compose = partial(blob.compose, sources, timeout=TIMEOUT, retry=None)
    await _call(f"Composing {file.object_name}", compose, refused=NO_COMPOSE)


async def _send(
    bucket: storage.Bucket, file: IndexFile, name: str, start: int, length: int
) -> None:
    """One stream: `length` bytes of the file from `start` become the object `name`."""

    def send() -> None:
        with _Slice(file.path, start, length) as content:
            try:
                bucket.blob(name, chunk_size=CHUNK_BYTES).upload_from_file(
                    content,
                    size=length,
                    content_type=file.content_type,
                    checksum="crc32c",
                    timeout=TIMEOUT,
                    retry=None,
                )
            except api.BadRequest as error:
                if "crc32c" not in str(error).lower():
                    raise
                raise gcs.DamagedContent("storage received other bytes than were sent") from error

    await _call(f"Writing gs://{bucket.name}/{name}", send)


async def _is_there(bucket: storage.Bucket, name: str, size: int, checksum: int) -> bool:
    look = partial(bucket.get_blob, name, timeout=TIMEOUT, retry=None)
    blob = await _call(f"Looking for gs://{bucket.name}/{name}", look)
    return blob is not None and blob.size == size and crc32c_of_listing(blob.crc32c) == checksum


async def delete_objects(bucket: storage.Bucket, names: Iterable[str]) -> None:
    """Delete objects, those that are gone already included."""
    free = asyncio.Semaphore(DELETIONS_AT_ONCE)

    def delete(name: str) -> None:
        try:
            bucket.delete_blob(name, timeout=TIMEOUT, retry=None)
        except api.NotFound:
            return

    async def bounded(name: str) -> None:
        async with free:
            await _call(f"Deleting gs://{bucket.name}/{printable(name)}", partial(delete, name))

    await asyncio.gather(*(bounded(name) for name in names))


async def delete_index(client: storage.Client, bucket: str, index_id: str) -> int:
    """Delete everything an abandoned ingest uploaded; returns the number of objects."""
    deleted = 0
    for directory in ("indexes", "aux_labels", "thumbnails"):
        path = gcs.GsPath(bucket, f"{directory}/{index_id}/")
        pages = gcs.list_objects(client, path)
        while (page := await asyncio.to_thread(next, pages, None)) is not None:
            await delete_objects(client.bucket(bucket), [listed.name for listed in page])
            deleted += len(page)
    return deleted


async def _in_thread(function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function)


async def _call(
    what: str, function: Callable[[], Any], refused: tuple[type[Exception], ...] = ()
) -> Any:
    """A blocking call of google-cloud-storage in a thread, with our own retries around it.

    Raises:
        StorageError: it failed for good; what is in `refused` is raised as it is.
    """
    try:
        return await retries.call(what, _in_thread, function)
    except refused:
        raise
    except Exception as error:
        raise gcs.explained(error, what) from error
