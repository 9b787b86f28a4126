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
from typing import TYPE_CHECKING, Any

import gcs
from common.errors import StorageError, TransientError
from common.files import FileToUpload, crc32c_of_file
from common.terminal import printable, warn
from gcs import DamagedContent, Refused
from storage.async_client import AsyncStorage

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


@dataclass(frozen=True, kw_only=True)
class Part:
    """The bytes start..start+size of a file, and the object that they become."""

    file: FileToUpload
    name: str
    start: int
    size: int
    crc32c: int

    @property
    def content(self) -> tuple[int, int]:
        """As that of a listed object."""
        return self.size, self.crc32c


async def upload_files(client: storage.Client, bucket: str, files: Iterable[FileToUpload]) -> int:
    """Upload the files and verify size and crc32c of each; returns the bytes now in the bucket.

    Raises:
        StorageError: an object could not be written, or is not what was sent.
    """
    # asyncio's own threads are a few more than the cores; these only wait for the network.
    threads = ThreadPoolExecutor(PARTS_AT_ONCE, "storage")
    try:
        async with AsyncStorage(PARTS_AT_ONCE) as objects:
            upload = Upload(client.bucket(bucket), objects, threads)
            return sum([await upload.file(file) for file in files])
    finally:
        # After Ctrl-C a thread may still wait for a lost network: the process does not.
        threads.shutdown(wait=False, cancel_futures=True)


def part_count(size: int) -> int:
    """The number of parts that a file of `size` bytes is sent in; 1 if it is sent whole."""
    if size < 2 * MIN_PART_BYTES:
        return 1
    return min(MAX_PARTS, -(-size // MIN_PART_BYTES))


@dataclass(frozen=True)
class Upload:
    """Sends files into a bucket."""

    bucket: storage.Bucket
    objects: AsyncStorage
    threads: ThreadPoolExecutor

    async def file(self, file: FileToUpload) -> int:
        """Upload and verify one file; returns its size."""
        size = file.path.stat().st_size
        whole = await self._part(file, file.object_name, 0, size, file.crc32c)
        count = part_count(size)
        names = [f"{whole.name}.part-{n:02}-of-{count:02}" for n in range(1, count + 1)]
        if not await self._holds(whole):
            if count == 1:
                await self._send(whole)
            else:
                await self._send_in_parts(whole, names)
            if not await self._holds(whole):
                raise StorageError(
                    f"{self._address(whole.name)} is not what was sent (size or crc32c differ): "
                    "run the same command again, which sends it once more."
                )
        if count > 1:  # an interrupted run may have left them beside the whole file
            await self._delete(names)
        return size

    async def _part(
        self, file: FileToUpload, name: str, start: int, size: int, crc32c: int | None = None
    ) -> Part:
        if crc32c is None:
            crc32c = await asyncio.to_thread(crc32c_of_file, file.path, start, size)
        return Part(file=file, name=name, start=start, size=size, crc32c=crc32c)

    async def _holds(self, part: Part) -> bool:
        """Whether the bucket has this object already."""
        found = await self.objects.find(self.bucket.name, part.name)
        return found is not None and found.content == part.content

    async def _delete(self, names: list[str]) -> None:
        """Delete them; where that is refused, as by a retention policy, say what is left."""
        if held := await self.objects.delete(self.bucket.name, names):
            last = names[-1].rpartition("/")[2]
            warn(
                f"{held[0]} The index is complete; {len(held)} parts of it remain, "
                f"{self._address(names[0])} to {printable(last)}. They are not used: delete them "
                "when the bucket allows it."
            )

    async def _send_in_parts(self, whole: Part, names: list[str]) -> None:
        """Send an object for each name, and compose them to the whole file."""
        free = asyncio.Semaphore(PARTS_AT_ONCE)
        step = -(-whole.size // len(names))

        async def send(name: str, start: int) -> None:
            async with free:
                size = min(step, whole.size - start)
                part = await self._part(whole.file, name, start, size)
                if not await self._holds(part):
                    await self._send(part)

        await asyncio.gather(*map(send, names, range(0, whole.size, step)))
        blob = self.bucket.blob(whole.name)
        blob.content_type = whole.file.content_type
        sources = [self.bucket.blob(name) for name in names]
        compose = partial(blob.compose, sources, timeout=gcs.TIMEOUT, retry=None)
        try:
            await self._call(f"Composing {self._address(whole.name)}", compose)
        except StorageError as error:
            if error.status not in CANNOT_COMPOSE:
                raise
            if not await self._holds(whole):
                await self._send(whole)

    async def _send(self, part: Part) -> None:
        """Send bytes of the file in one stream; they become the object that the part names.

        A request that fails is repeated, not the whole stream. A resumable upload whose session is
        lost is begun again, up to NEW_SESSIONS times.
        """
        what = f"Writing {self._address(part.name)}"
        left = NEW_SESSIONS if part.size > RESUMABLE_BYTES else 0
        while True:
            try:
                return await self._call(what, partial(self._stream, what, part))
            except StorageError as error:
                if error.status not in LOST_SESSION or not left:
                    bucket = self.bucket.name
                    return await self.objects.accept_held(error, bucket, part.name, part.content)
                left -= 1
                warn(f"{what}: storage lost the upload ({error.status}); it is begun again.")

    def _stream(self, what: str, part: Part) -> None:
        blob = self.bucket.blob(part.name, chunk_size=CHUNK_BYTES)
        try:
            with FileSlice(part.file.path, part.start, part.size) as content:
                blob.upload_from_file(
                    content,
                    size=part.size,
                    content_type=part.file.content_type,
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

    def _address(self, name: str) -> str:
        """The object as messages name it."""
        return f"gs://{self.bucket.name}/{printable(name)}"


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
                received = TransientError("storage had received the chunk already")
                raise UploadFailed from received
            if isinstance(ours, TransientError):
                answer_lost = ours.status is None
                if isinstance(ours, DamagedContent) or ours.status not in CHUNK_AGAIN:
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
        assert whence == os.SEEK_SET  # google-cloud-storage seeks in no other way
        return super().seek(self._start + offset) - self._start

    def tell(self) -> int:
        return super().tell() - self._start
