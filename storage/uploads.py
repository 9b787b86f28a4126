"""Upload the index: large files in parallel parts, every object verified.

A part is an object of its own until the parts are composed into the file. A second run finds the
parts, or the file, of the first one and does not send them again.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gcs
from common.errors import StorageError, TransientError
from common.files import FileToUpload, crc32c_of_file
from common.terminal import printable, warn
from gcs import DamagedContent, Refused
from storage.async_client import HELD, AsyncStorage

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
CANNOT_COMPOSE = (403, 405, 412, 501)  # HTTP statuses: send the file whole, unless it is there


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
    # asyncio's own threads are a few more than the cores; these only wait for the network.
    threads = ThreadPoolExecutor(PARTS_AT_ONCE, "storage")
    try:
        async with AsyncStorage(PARTS_AT_ONCE) as objects:
            upload = Upload(
                bucket=client.bucket(bucket),
                objects=objects,
                threads=threads,
                min_part_bytes=min_part_bytes,
                chunk_bytes=chunk_bytes,
            )
            return sum([await upload.file(file) for file in files])
    finally:
        # After Ctrl-C a thread may still wait for a lost network: the process does not.
        threads.shutdown(wait=False, cancel_futures=True)


def part_count(size: int, min_part_bytes: int = MIN_PART_BYTES) -> int:
    """The number of parts that a file of `size` bytes is sent in; 1 if it is sent whole."""
    if size < 2 * min_part_bytes:
        return 1
    return min(MAX_PARTS, -(-size // min_part_bytes))


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Sends files into a bucket."""

    bucket: storage.Bucket
    objects: AsyncStorage
    threads: ThreadPoolExecutor
    min_part_bytes: int
    chunk_bytes: int

    async def file(self, file: FileToUpload) -> int:
        """Upload and verify one file; returns its size."""
        size, checksum = file.path.stat().st_size, file.crc32c
        if checksum is None:
            checksum = await asyncio.to_thread(crc32c_of_file, file.path)
        whole, parts = Part(file.object_name, 0, size), self._parts(file, size)
        if not await self._holds(whole, checksum):
            if parts:
                await self._in_parts(file, whole, checksum, parts)
            else:
                await self._send(file, whole, checksum)
            if not await self._holds(whole, checksum):
                raise StorageError(
                    f"{self._address(whole)} is not what was sent (size or crc32c differ): run "
                    "the same command again, which sends it once more."
                )
        if parts:  # an interrupted run may have left them beside the whole file
            await self._delete(parts)
        return size

    async def _holds(self, part: Part, checksum: int) -> bool:
        """Whether the bucket has this object already."""
        found = await self.objects.find(self.bucket.name, part.name)
        return found is not None and found.content == (part.length, checksum)

    async def _delete(self, parts: list[Part]) -> None:
        """Delete them; where that is refused, as by a retention policy, say what is left."""
        try:
            await asyncio.gather(*(self.objects.delete(self.bucket.name, p.name) for p in parts))
        except StorageError as error:
            if error.status not in HELD:
                raise
            last = parts[-1].name.rpartition("/")[2]
            warn(
                f"{error.message} The index is complete; up to {len(parts)} parts of it remain, "
                f"{self._address(parts[0])} to {printable(last)}. They are not used: delete them "
                "when the bucket allows it."
            )

    def _parts(self, file: FileToUpload, size: int) -> list[Part]:
        """The parts to send a file of `size` bytes in; none if it is sent whole."""
        count = part_count(size, self.min_part_bytes)
        if count < 2:
            return []
        step = -(-size // count)
        return [
            Part(
                f"{file.object_name}.part-{number:02}-of-{count:02}", start, min(step, size - start)
            )
            for number, start in enumerate(range(0, size, step), start=1)
        ]

    async def _in_parts(
        self, file: FileToUpload, whole: Part, checksum: int, parts: list[Part]
    ) -> None:
        free = asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(part: Part) -> None:
            async with free:
                of_part = await asyncio.to_thread(
                    crc32c_of_file, file.path, part.start, part.length
                )
                if not await self._holds(part, of_part):
                    await self._send(file, part, of_part)

        await asyncio.gather(*map(send, parts))
        blob = self.bucket.blob(whole.name)
        blob.content_type = file.content_type
        sources = [self.bucket.blob(part.name) for part in parts]
        compose = partial(blob.compose, sources, timeout=gcs.TIMEOUT, retry=None)
        try:
            await self._call(f"Composing {self._address(whole)}", compose)
        except StorageError as error:
            if error.status not in CANNOT_COMPOSE:
                raise
            if not await self._holds(whole, checksum):
                await self._send(file, whole, checksum)

    async def _send(self, file: FileToUpload, part: Part, checksum: int) -> None:
        """Send bytes of the file in one stream; they become the object that the part names.

        A request that fails is repeated, not the whole stream. A resumable upload whose session is
        lost is begun again, up to NEW_SESSIONS times.
        """
        what = f"Writing {self._address(part)}"
        left = NEW_SESSIONS if part.length > RESUMABLE_BYTES else 0
        while True:
            try:
                return await self._call(what, partial(self._stream, what, file, part))
            except StorageError as error:
                if error.status not in LOST_SESSION or not left:
                    content = part.length, checksum
                    bucket = self.bucket.name
                    return await self.objects.accept_held(error, bucket, part.name, content)
                left -= 1
                warn(f"{what}: storage lost the upload ({error.status}); it is begun again.")

    def _stream(self, what: str, file: FileToUpload, part: Part) -> None:
        blob = self.bucket.blob(part.name, chunk_size=self.chunk_bytes)
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

    async def _call(self, what: str, function: Callable[[], None]) -> None:
        """`gcs.call` in a thread. Raises StorageError."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.threads, gcs.call, what, function)

    def _address(self, part: Part) -> str:
        """The object as messages name it."""
        return f"gs://{self.bucket.name}/{printable(part.name)}"


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


class FileSlice(io.FileIO):
    """The bytes start..start+size of a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__(path)
        self._start, self._size = start, size
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left)) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset, whence = offset + self._size, os.SEEK_SET
        if whence == os.SEEK_SET:
            offset += self._start
        return super().seek(offset, whence) - self._start

    def tell(self) -> int:
        return super().tell() - self._start
