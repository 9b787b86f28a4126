"""Images by threads of this process: downloads, decoding, uploads of thumbnails, how many at once.

A feeder (feeder.py) runs this too, with one thread that decodes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from common.errors import ImageChanged, ImageError
from common.process import raise_open_file_limit
from common.terminal import printable, warn
from dataset.lists import thumbnail_name
from dataset.state import Row
from engine import decode
from engine.decode import Decoded, NotEmbedded
from engine.stages import DECODE, FETCH, THUMBNAILS, Area, Budget, Stage, StageTime, together
from storage.async_client import AsyncStorage, unzipped, unzipped_size
from storage.pace import FIRST_RATE, MIN_RATE, WritePace

FETCHES = 128  # downloads at once
UPLOADS = 64  # thumbnail uploads at once
MAX_OBJECT_BYTES = 1 << 30  # a larger object is no image
FETCHED_BYTES = 256 << 20  # image files in memory at once, and as much of unzipped ones
# Of decoding one image. The largest that is allowed takes some 10 s of a free core; on a busy
# machine several times as long.
DEADLINE_S = 120.0
CHECK_S = 1.0  # between two looks at which images are decoded

T = TypeVar("T")
Take = Callable[[Row, Decoded | NotEmbedded], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a source of decoded images needs to know: threads, feeders and Ray's actors alike."""

    image_bucket: str
    index_bucket: str | None  # None in a trial: thumbnails are made and not uploaded
    index_id: str
    max_pixels: int  # of an image
    with_clip_inputs: bool  # False where the device makes CLIP's inputs
    max_object_bytes: int = MAX_OBJECT_BYTES
    writers: int = 1  # processes that upload thumbnails at once: they share the rate of writes


class Threads:
    """Fetches and decodes images, uploads their thumbnails; an async context manager."""

    def __init__(
        self,
        job: Job,
        decode_workers: int,
        window: int,
        room: Budget | Area,
        *,
        file_bytes: int = FETCHED_BYTES,
        is_feeder: bool = False,
        mark: Callable[[Row | None], None] | None = None,
    ) -> None:
        """
        Args:
            window: images under way at once.
            room: for decoded images, which hold it until `release`.
            is_feeder: raise NoRoom for files of more than `file_bytes`.
            mark: called in the thread that decodes, with the row that it is at, then with None.
        """
        self._job, self._window, self._room = job, window, room
        self._files = Budget(file_bytes, strict=is_feeder)
        self._unzipped = Budget(file_bytes, strict=is_feeder)
        self._threads = ThreadPoolExecutor(decode_workers, "decode")
        self._mark = mark or self._note
        self._at: dict[int, tuple[Row, float]] = {}  # thread -> the row that it is at, since when
        pace = WritePace(FIRST_RATE / job.writers, MIN_RATE / job.writers)
        self._objects = AsyncStorage(FETCHES + UPLOADS, pace=pace)
        # Slots that can never be used would count as idle.
        self._fetching = Stage(FETCH, min(FETCHES, window))
        self._decoding = Stage(DECODE, min(decode_workers, window))
        self._uploading = Stage(THUMBNAILS, min(UPLOADS, window))
        self._held: dict[int, asyncio.Future[None]] = {}  # row -> done when it is released

    async def __aenter__(self) -> Threads:
        raise_open_file_limit()
        await self._objects.__aenter__()
        self._watch = asyncio.create_task(self._warn_of_slow_images())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watch.cancel()
        await self._objects.__aexit__()
        # After Ctrl-C the process ends at once: a thread may be at a large image.
        self._threads.shutdown(wait=kind is not asyncio.CancelledError, cancel_futures=True)

    async def run(self, rows: Iterator[Row], count: int, take: Take) -> None:
        """Give each of `count` rows to `take`, decoded or with why it is not.

        Raises:
            StorageError, ShortageError: the run cannot go on.
        """

        async def travel() -> None:
            for row in rows:
                await self.one(row, take)

        await together(*(travel() for _ in range(min(self._window, count))))

    async def one(self, row: Row, take: Take) -> None:
        """Give one row to `take`, then wait until it is released.

        Raises:
            StorageError, ShortageError: the run cannot go on.
            NoRoom: this is a feeder, and the image does not fit.
        """
        async with AsyncExitStack() as held:
            try:
                decoded = await self._decoded(row, held)
                await self._upload_thumbnail(row, decoded)
            except ImageError as error:
                take(row, NotEmbedded(str(error), isinstance(error, ImageChanged)))
                return
            released = self._held[row.row] = asyncio.get_running_loop().create_future()
            take(row, decoded)
            del decoded
            await released

    def release(self, row: int) -> None:
        """Let go of what an image holds: it is embedded, or has failed."""
        released = self._held.pop(row, None)
        if released and not released.done():
            released.set_result(None)

    def times(self) -> list[StageTime]:
        """Of fetching, decoding and uploading thumbnails so far, in this order."""
        return [self._fetching.time(), self._decoding.time(), self._uploading.time()]

    async def _decoded(self, row: Row, held: AsyncExitStack) -> Decoded:
        """Fetch and decode an image; `held` keeps the room that it takes."""
        if row.listed.size > self._job.max_object_bytes:
            raise ImageError(f"{row.listed.size / 1e9:,.1f} GB is too large for an image")
        in_thread = partial(self._in_thread, row)
        async with AsyncExitStack() as reading:
            await reading.enter_async_context(self._files.hold(row.listed.size))
            async with self._fetching.slot():
                data = await self._objects.fetch(self._job.image_bucket, row.listed)
            if size := unzipped_size(data):
                await reading.enter_async_context(self._unzipped.hold(size))
                data = await in_thread(unzipped, data)
            image = await in_thread(decode.open_image, data, self._job.max_pixels)
            del data  # the image has it
            size = decode.decoded_bytes(image, self._job.with_clip_inputs)
            place = await held.enter_async_context(self._room.hold(size))
            async with self._decoding.slot():
                return await in_thread(decode.prepare, image, self._job.with_clip_inputs, place)

    async def _upload_thumbnail(self, row: Row, image: Decoded) -> None:
        """Write the thumbnail to the object that the web page shows. Raises StorageError."""
        bucket, data = self._job.index_bucket, image.thumbnail
        if bucket is None or data is None:
            return
        async with self._uploading.slot():
            name = thumbnail_name(self._job.index_id, row.listed.name)
            await self._objects.put(bucket, name, data, "image/jpeg")

    async def _in_thread(self, row: Row, function: Callable[..., T], *args: Any) -> T:
        """Run Pillow or zlib outside the event loop: a hostile header can take seconds to read."""

        def marked() -> T:
            self._mark(row)
            try:
                with decode.fault_of_image("it cannot be decoded"):
                    return function(*args)
            finally:
                self._mark(None)

        return await asyncio.get_running_loop().run_in_executor(self._threads, marked)

    def _note(self, row: Row | None) -> None:
        """As `mark` of a source that is no feeder."""
        thread = threading.get_ident()
        if row is None:
            self._at.pop(thread, None)
        else:
            self._at[thread] = row, time.monotonic()

    async def _warn_of_slow_images(self) -> None:
        """Name each image that takes longer than DEADLINE_S to decode: a thread cannot be ended."""
        warned: set[int] = set()
        while True:
            await asyncio.sleep(CHECK_S)
            for row, since in list(self._at.values()):
                if time.monotonic() - since > DEADLINE_S and row.row not in warned:
                    warned.add(row.row)
                    name = printable(row.listed.name)
                    warn(f"Decoding {name} has taken more than {DEADLINE_S:.0f} s and goes on.")
