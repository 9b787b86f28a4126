"""One image into memory, the same for every engine: fetched, decoded once, its thumbnail uploaded.

Everything that images on their way hold is bounded by count and by bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from common.memory import keep_freed_memory
from dataset.lists import thumbnail_name
from dataset.rows import Row
from engine import decode
from engine.stages import StageTime
from storage.async_client import AsyncStorage
from storage.gzipped import unzipped, unzipped_size

FETCHES = 128  # downloads at once
UPLOADS = 64  # thumbnails on their way at once
MAX_OBJECT_BYTES = 1 << 30  # a larger object is no image
FETCHED_BYTES = 256 << 20  # in files, of the images on their way
DECODED_PIXELS = 100_000_000  # of the images decoded: 3 bytes each, some 10 while decoding

T = TypeVar("T")


class Stage:
    """At most `slots` images at once, in order of arrival; counts them and the time they take."""

    def __init__(self, name: str, slots: int) -> None:
        self.name, self.slots = name, slots
        self.images, self.seconds = 0, 0.0
        self._free = asyncio.Semaphore(slots)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        async with self._free:
            start = time.perf_counter()
            try:
                yield
                self.images += 1
            finally:
                self.seconds += time.perf_counter() - start

    def time(self) -> StageTime:
        return StageTime(self.name, self.images, self.seconds / self.slots)


class Budget:
    """A quantity (bytes, pixels) that may be held at once, handed out in order of arrival.

    More than the whole is given alone, when nothing else is held.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        amount = min(amount, self._limit)
        await self._take(amount)
        try:
            yield
        finally:
            self._left += amount
            self._hand_out()

    async def _take(self, amount: int) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, granted))
        self._hand_out()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._left += amount
            self._hand_out()
            raise

    def _hand_out(self) -> None:
        while self._waiting:
            amount, granted = self._waiting[0]
            if granted.cancelled():
                self._waiting.popleft()
            elif amount <= self._left:
                self._waiting.popleft()
                self._left -= amount
                granted.set_result(None)
            else:
                return


class Intake:
    """Fetches and decodes images and uploads their thumbnails; an async context manager."""

    def __init__(
        self,
        image_bucket: str,
        index_bucket: str,
        index_id: str,
        *,
        decode_workers: int,
        max_pixels: int = decode.MAX_PIXELS,
        decoded_pixels: int = DECODED_PIXELS,
        with_clip_inputs: bool = True,
    ) -> None:
        self._image_bucket, self._index_bucket = image_bucket, index_bucket
        self._index_id, self._max_pixels = index_id, max_pixels
        self._with_clip_inputs = with_clip_inputs
        self._threads = ThreadPoolExecutor(decode_workers, "decode")
        self._objects = AsyncStorage(FETCHES + UPLOADS)
        self._fetching = Stage("fetch", FETCHES)
        self._decoding = Stage("decode", decode_workers)
        self._uploading = Stage("thumbnails", UPLOADS)
        self._fetched, self._unzipped = Budget(FETCHED_BYTES), Budget(FETCHED_BYTES)
        self._decoded = Budget(decoded_pixels)

    async def __aenter__(self) -> Intake:
        keep_freed_memory()
        await self._objects.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._objects.__aexit__()
        # After Ctrl-C the process ends at once: a thread may wait for a lost network.
        self._threads.shutdown(wait=kind is not asyncio.CancelledError, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def prepared(self, row: Row) -> AsyncIterator[decode.Prepared]:
        """What the models and the bucket need of one image, for the time of a `with` block.

        Raises:
            BadImage, ObjectUnusable: the reason why this image cannot be embedded.
            StorageError: the run cannot go on.
        """
        if row.listed.size > MAX_OBJECT_BYTES:
            raise decode.BadImage(f"{row.listed.size / 1e9:,.1f} GB is too large for an image")
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._fetched.hold(row.listed.size))
            async with self._fetching.slot():
                data = await self._objects.fetch(self._image_bucket, row.listed)
            if size := unzipped_size(data):
                await held.enter_async_context(self._unzipped.hold(size))
                data = await self._in_thread(unzipped, data)
            image = await self._in_thread(decode.open_image, data, self._max_pixels)
            await held.enter_async_context(self._decoded.hold(image.width * image.height))
            async with self._decoding.slot():
                prepared = await self._in_thread(decode.prepare, image, self._with_clip_inputs)
            yield prepared

    async def upload_thumbnail(self, row: Row, thumbnail: bytes) -> None:
        """Put the thumbnail where the web page looks for it. Raises StorageError."""
        async with self._uploading.slot():
            name = thumbnail_name(self._index_id, row.listed.name)
            await self._objects.put(self._index_bucket, name, thumbnail, "image/jpeg")

    def times(self) -> list[StageTime]:
        """Of fetching, decoding and uploading thumbnails, so far."""
        return [self._fetching.time(), self._decoding.time(), self._uploading.time()]

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run Pillow or zlib beside the event loop: a hostile header can take seconds to read."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
