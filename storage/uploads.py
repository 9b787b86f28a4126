"""Upload the index: large files in parallel parts, every object verified.

A part is an object of its own until the parts are composed into the file. A second run finds the
parts, or the file, of the first one and does not send them again.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gcs
from common.errors import StorageError, TransientError
from common.files import FileToUpload, crc32c_of_file
from common.network.activity import warn
from common.terminal import printable
from gcs import DamagedContent, Refused
from storage.bucket import Bucket

if TYPE_CHECKING:
    from google.cloud import storage

MIN_PART_BYTES = 16 << 20
MAX_PARTS = 32  # the limit of one compose request
PARTS_AT_ONCE = 16
CHUNK_BYTES = 8 << 20  # of a part in one request, in memory
RESUMABLE_BYTES = 8 << 20  # google-cloud-storage sends more than this in a resumable upload
CHUNK_AGAIN = (None, 408, 429, 500, 502, 503, 504)  # HTTP statuses, or no answer: repeat a chunk
ALREADY_THERE = 400  # HTTP status: Google's storage takes a chunk twice, others may not
LOST_SESSION = (404, 410)  # HTTP statuses of a chunk: Google's advice is to begin a new upload
NEW_SESSIONS = 2  # per part
CANNOT_COMPOSE = (403, 405, 501)  # HTTP statuses: send the file whole


class UploadFailed(Exception):
    """A whole upload must be repeated, not one of its requests; the cause is a TransientError."""


class Part(NamedTuple):
    """The bytes start..start+length of a file, and the object that holds them for a while."""

    name: str
    start: int
    length: int


async def upload_files(
    client: storage.Client,
    bucket: str,
    files: Iterable[FileToUpload],
    *,
    min_part_bytes: int = MIN_PART_BYTES,
    chunk_bytes: int = CHUNK_BYTES,
) -> int:
    """Upload the files and verify size and crc32c of each; returns the bytes now in the bucket.

    Raises:
        StorageError: an object could not be written, or is not what was sent.
    """
    with Bucket(client, bucket) as calls:
        upload = Upload(calls, min_part_bytes, chunk_bytes)
        return sum([await upload.file(file) for file in files])


def part_count(size: int, min_part_bytes: int = MIN_PART_BYTES) -> int:
    """The number of parts that a file of `size` bytes is sent in; 1 if it is sent whole."""
    if size < 2 * min_part_bytes:
        return 1
    return min(MAX_PARTS, -(-size // min_part_bytes))


class Upload:
    """Sends files into a bucket."""

    def __init__(self, bucket: Bucket, min_part_bytes: int, chunk_bytes: int) -> None:
        self._bucket = bucket
        self._min_part_bytes, self._chunk_bytes = min_part_bytes, chunk_bytes

    async def file(self, file: FileToUpload) -> int:
        """Upload and verify one file; returns its size."""
        size = file.path.stat().st_size
        checksum = file.crc32c
        if checksum is None:
            checksum = await asyncio.to_thread(crc32c_of_file, file.path)
        parts = self._parts(file, size)
        if not await self._bucket.holds(file.object_name, size, checksum):
            if len(parts) < 2:
                await self._send(file, Part(file.object_name, 0, size))
            else:
                await self._in_parts(file, size, parts)
            if not await self._bucket.holds(file.object_name, size, checksum):
                raise StorageError(
                    f"{self._bucket.address(file.object_name)} is not what was sent (size or "
                    "crc32c differ): run the same command again, which sends it once more."
                )
        if len(parts) > 1:  # an interrupted run may have left them beside the whole file
            await self._delete_parts(parts)
        return size

    async def _delete_parts(self, parts: list[Part]) -> None:
        """Delete them; where that is refused, as by a retention policy, say what is left."""
        try:
            await self._bucket.delete(part.name for part in parts)
        except StorageError as error:
            if error.status != 403:
                raise
            first, last = self._bucket.address(parts[0].name), parts[-1].name.rpartition("/")[2]
            warn(
                f"{error.message} The index is complete; up to {len(parts)} parts of it remain, "
                f"{first} to {printable(last)}. They are not used: delete them when the bucket "
                "allows it."
            )

    def _parts(self, file: FileToUpload, size: int) -> list[Part]:
        """The parts to send a file of `size` bytes in; fewer than two if it is sent whole."""
        count = part_count(size, self._min_part_bytes)
        if count < 2:
            return []
        step = -(-size // count)
        return [
            Part(
                f"{file.object_name}.part-{number:02}-of-{count:02}", start, min(step, size - start)
            )
            for number, start in enumerate(range(0, size, step), start=1)
        ]

    async def _in_parts(self, file: FileToUpload, size: int, parts: list[Part]) -> None:
        free = asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(part: Part) -> None:
            async with free:
                checksum = await asyncio.to_thread(
                    crc32c_of_file, file.path, part.start, part.length
                )
                if not await self._bucket.holds(part.name, part.length, checksum):
                    await self._send(file, part)

        await asyncio.gather(*map(send, parts))
        try:
            await self._compose(file, [part.name for part in parts])
        except StorageError as error:
            if error.status not in CANNOT_COMPOSE:
                raise
            await self._send(file, Part(file.object_name, 0, size))

    async def _compose(self, file: FileToUpload, names: list[str]) -> None:
        blob = self._bucket.handle.blob(file.object_name)
        blob.content_type = file.content_type
        sources = [self._bucket.handle.blob(name) for name in names]
        what = f"Composing {self._bucket.address(file.object_name)}"
        await self._bucket.call(what, blob.compose, sources, timeout=gcs.TIMEOUT, retry=None)

    async def _send(self, file: FileToUpload, part: Part) -> None:
        """Send bytes of the file in one stream; they become the object that the part names.

        A request that fails is repeated, not the whole stream. A resumable upload whose session is
        lost is begun again, up to NEW_SESSIONS times.
        """
        what = f"Writing {self._bucket.address(part.name)}"

        def send() -> None:
            blob = self._bucket.handle.blob(part.name, chunk_size=self._chunk_bytes)
            try:
                with FileSlice(file.path, part.start, part.length) as content:
                    blob.upload_from_file(
                        content,
                        size=part.length,
                        content_type=file.content_type,
                        checksum="crc32c",
                        timeout=gcs.TIMEOUT,
                        retry=partial(_repeated, what),
                    )
            except UploadFailed as error:
                assert error.__cause__
                raise error.__cause__ from error

        left = NEW_SESSIONS if part.length > RESUMABLE_BYTES else 0
        while True:
            try:
                return await self._bucket.call(what, send)
            except StorageError as error:
                if error.status not in LOST_SESSION or not left:
                    raise
                left -= 1
                warn(f"{what}: storage lost the upload ({error.status}); it is begun again.")


def _repeated(what: str, request: Callable[[], Any]) -> Callable[[], Any]:
    """One request of an upload with our retries, in the form of google-cloud-storage's `retry`."""

    answer_lost = False

    def once() -> Any:
        nonlocal answer_lost
        try:
            return request()
        except Exception as error:
            ours = gcs.translated(error)
            if answer_lost and isinstance(ours, Refused) and ours.status == ALREADY_THERE:
                ours = TransientError("storage had received the chunk already")
                raise UploadFailed from ours
            answer_lost = isinstance(ours, TransientError) and ours.status is None
            if isinstance(ours, DamagedContent) or (
                isinstance(ours, TransientError) and ours.status not in CHUNK_AGAIN
            ):
                raise UploadFailed from ours
            raise

    return partial(gcs.call, what, once)


class FileSlice(io.RawIOBase):
    """The bytes start..start+size of a file."""

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
