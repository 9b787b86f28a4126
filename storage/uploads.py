"""Upload the index: large files in parallel parts, every object verified.

A part is an object of its own until the parts are composed into the file. A part that is still
large is composed of parts itself, so a request that fails costs little. A second run finds the
parts, or the file, of the first one and does not send them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import StorageError
from common.files import FilePart, FileToUpload
from common.terminal import printable, warn
from storage.async_client import AsyncStorage

MIN_PART_BYTES = 16 << 20
MAX_PARTS = 32  # the limit of one compose request
REQUESTS_AT_ONCE = 16
CANNOT_COMPOSE = (403, 405, 412, 501)  # HTTP statuses: send the object whole, unless it is there


async def upload_files(bucket: str, files: Iterable[FileToUpload]) -> int:
    """Upload the files and verify size and crc32c of each; returns the bytes now in the bucket.

    Raises:
        StorageError: an object could not be written, or is not what was sent.
    """
    async with AsyncStorage(REQUESTS_AT_ONCE) as objects:
        upload = Upload(bucket, objects, asyncio.Semaphore(REQUESTS_AT_ONCE))
        return sum([await upload.file(file) for file in files])


def split(size: int) -> list[range]:
    """The bytes of each part of a file or part of `size` bytes; [] if it is sent whole."""
    if size < 2 * MIN_PART_BYTES:
        return []
    step = -(-size // min(MAX_PARTS, -(-size // MIN_PART_BYTES)))
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def part_count(size: int) -> int:
    """The number of parts, with those of parts, in which a file of `size` bytes is sent."""
    return sum(1 + part_count(len(part)) for part in split(size))


class Object(NamedTuple):
    """A file, or a part of one, and the object that it becomes."""

    file: FileToUpload
    data: FilePart

    @property
    def name(self) -> str:
        return self.file.object_name

    def parts(self) -> list[Object]:
        """The parts that it is composed of; [] if it is sent whole."""
        found, ranges = [], split(self.data.size)
        for number, part in enumerate(ranges, start=1):
            name = f"{self.name}.part-{number:02}-of-{len(ranges):02}"
            data = FilePart(self.data.path, self.data.start + part.start, len(part))
            found.append(Object(self.file._replace(object_name=name, crc32c=None), data))
        return found

    def all_parts(self) -> Iterator[Object]:
        """The same, with their parts."""
        for part in self.parts():
            yield part
            yield from part.all_parts()


@dataclass(frozen=True)
class Upload:
    """Sends files into a bucket."""

    bucket: str
    objects: AsyncStorage
    free: asyncio.Semaphore

    async def file(self, file: FileToUpload) -> int:
        """Upload and verify one file; returns its size."""
        size = file.path.stat().st_size
        whole = Object(file, FilePart(file.path, 0, size))
        await self._put(whole)
        if not await self._holds(whole):
            raise StorageError(
                f"gs://{self.bucket}/{printable(whole.name)} is not what was sent (size or crc32c "
                "differ): run the same command again, which sends it once more."
            )
        # An interrupted run may have left some beside the whole file.
        await self._delete([part.name for part in whole.all_parts()])
        return size

    async def _holds(self, wanted: Object) -> bool:
        """Whether the bucket has this object already."""
        async with self.free:
            found = await self.objects.find(self.bucket, wanted.name)
        if found is None or found.size != wanted.data.size:
            return False
        return found.crc32c == (wanted.file.crc32c or await asyncio.to_thread(wanted.data.crc32c))

    async def _put(self, wanted: Object) -> None:
        """Send an object, or compose it of its parts, unless it is there."""
        if await self._holds(wanted):
            return
        if parts := wanted.parts():
            await asyncio.gather(*map(self._put, parts))
            if await self._compose(wanted, parts):
                return
        async with self.free:
            await self.objects.put(self.bucket, wanted.name, wanted.data, wanted.file.content_type)

    async def _compose(self, wanted: Object, parts: list[Object]) -> bool:
        """Join parts to an object; returns whether that is there then."""
        names = [part.name for part in parts]
        try:
            async with self.free:
                await self.objects.compose(
                    self.bucket, wanted.name, names, wanted.file.content_type
                )
        except StorageError as error:
            if error.status not in CANNOT_COMPOSE:
                raise
            return await self._holds(wanted)
        return True

    async def _delete(self, names: list[str]) -> None:
        """Delete them; where that is refused, as by a retention policy, say what is left."""
        if held := await self.objects.delete(self.bucket, names):
            last = names[-1].rpartition("/")[2]
            warn(
                f"{held[0]} The index is complete; {len(held)} parts of it remain, "
                f"gs://{self.bucket}/{printable(names[0])} to {printable(last)}. They are not "
                "used: delete them when the bucket allows it."
            )
