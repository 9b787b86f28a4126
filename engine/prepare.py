"""The first half of an image's path, for every engine: fetch, decode, upload its thumbnail.

The images in progress are bounded by number and by bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np

from common.errors import ImageChanged, ImageError
from common.process import raise_open_file_limit, shortage
from dataset.lists import thumbnail_name
from dataset.state import Row
from engine import decode
from engine.decode import NotEmbedded, Prepared
from engine.stages import DECODE, FETCH, THUMBNAILS, Budget, Stage, StageTime
from storage.async_client import AsyncStorage, unzipped, unzipped_size
from storage.pace import WritePace

FETCHES = 128  # downloads at once
UPLOADS = 64  # thumbnail uploads at once
MAX_OBJECT_BYTES = 1 << 30  # a larger object is no image
FETCHED_BYTES = 256 << 20  # image files in memory at once

T = TypeVar("T")


class Memory(Protocol):
    """Bounds what the images under way hold. Each method holds something for one of them."""

    def file(self, row: Row) -> AbstractAsyncContextManager[None]:
        """The bytes of its object."""

    def unzipped(self, row: Row, size: int) -> AbstractAsyncContextManager[None]:
        """The bytes of its file, where the object is compressed."""

    def pixels(self, row: Row, count: int) -> AbstractAsyncContextManager[np.ndarray | None]:
        """Its pixels, at three bytes each, while they are decoded and wait for the models.

        What is held may be memory for them: uint8, with CLIP_BYTES more for CLIP's input.
        """


class OwnMemory:
    """The memory of one process."""

    def __init__(self, decoded_pixels: int) -> None:
        self._fetched, self._unzipped = Budget(FETCHED_BYTES), Budget(FETCHED_BYTES)
        self._decoded = Budget(decoded_pixels)

    def file(self, row: Row) -> AbstractAsyncContextManager[None]:
        return self._fetched.hold(row.listed.size)

    def unzipped(self, row: Row, size: int) -> AbstractAsyncContextManager[None]:
        return self._unzipped.hold(size)

    def pixels(self, row: Row, count: int) -> AbstractAsyncContextManager[None]:
        return self._decoded.hold(count)


class Preparation:
    """Fetches and decodes images and uploads their thumbnails; an async context manager.

    Without an index bucket, thumbnails are made and not uploaded.
    """

    def __init__(
        self,
        image_bucket: str,
        index_bucket: str | None,
        index_id: str,
        *,
        decode_workers: int,
        memory: Memory,
        at_once: int,  # images under way
        max_pixels: int = decode.MAX_PIXELS,
        max_object_bytes: int = MAX_OBJECT_BYTES,
        with_clip_inputs: bool = True,
        fetches: int = FETCHES,
        uploads: int = UPLOADS,
        pace: WritePace | None = None,
        mark: Callable[[Row | None], None] = lambda row: None,
    ) -> None:
        """
        Args:
            mark: called in the thread that decodes, with the row that it is at, then with None.
        """
        self._image_bucket, self._index_bucket = image_bucket, index_bucket
        self._index_id, self._max_pixels = index_id, max_pixels
        self._with_clip_inputs, self._max_object_bytes = with_clip_inputs, max_object_bytes
        self._threads = ThreadPoolExecutor(decode_workers, "decode")
        self._memory, self._mark = memory, mark
        self._objects = AsyncStorage(fetches + uploads, pace=pace)
        # Slots that can never be used would count as idle.
        self._fetching = Stage(FETCH, min(fetches, at_once))
        self._decoding = Stage(DECODE, min(decode_workers, at_once))
        self._uploading = Stage(THUMBNAILS, min(uploads, at_once))
        self.thumbnail_bytes = 0  # of all so far

    async def __aenter__(self) -> Preparation:
        raise_open_file_limit()
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
    async def prepared(self, row: Row) -> AsyncIterator[Prepared]:
        """What the models and the bucket need of one image, held while the `with` block runs.

        Raises:
            ImageError, ImageError: the reason why this image cannot be embedded.
            StorageError, ShortageError: the run cannot go on.
        """
        if row.listed.size > self._max_object_bytes:
            raise ImageError(f"{row.listed.size / 1e9:,.1f} GB is too large for an image")
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._memory.file(row))
            async with self._fetching.slot():
                data = await self._objects.fetch(self._image_bucket, row.listed)
            if size := unzipped_size(data):
                await held.enter_async_context(self._memory.unzipped(row, size))
                data = await self._in_thread(row, unzipped, data)
            image = await self._in_thread(row, decode.open_image, data, self._max_pixels)
            place = await held.enter_async_context(
                self._memory.pixels(row, image.width * image.height)
            )
            async with self._decoding.slot():
                prepared = await self._in_thread(
                    row, decode.prepare, image, self._with_clip_inputs, place
                )
            del data, image  # twice the memory of the pixels, which may wait for the models now
            yield prepared

    async def deliver(
        self, row: Row, take: Callable[[Prepared | NotEmbedded], Awaitable[None]]
    ) -> None:
        """Prepare an image and upload its thumbnail, then await `take` with the image.

        If it cannot be embedded, `take` gets the reason. The image is held until `take` ends.

        Raises:
            StorageError, ShortageError: the run cannot go on.
        """
        try:
            async with self.prepared(row) as prepared:
                await self.upload_thumbnail(row, prepared.thumbnail)
                await take(prepared._replace(thumbnail=b""))
        except ImageChanged as error:
            await take(NotEmbedded(str(error), changed=True))
        except ImageError as error:
            await take(NotEmbedded(str(error)))

    async def upload_thumbnail(self, row: Row, thumbnail: bytes) -> None:
        """Write the thumbnail to the object that the web page shows. Raises StorageError."""
        self.thumbnail_bytes += len(thumbnail)
        if self._index_bucket is None:
            return
        async with self._uploading.slot():
            name = thumbnail_name(self._index_id, row.listed.name)
            await self._objects.put(self._index_bucket, name, thumbnail, "image/jpeg")

    def times(self) -> list[StageTime]:
        """Of fetching, decoding and uploading thumbnails so far, in this order."""
        return [self._fetching.time(), self._decoding.time(), self._uploading.time()]

    async def _in_thread(self, row: Row, function: Callable[..., T], *args: Any) -> T:
        """Run Pillow or zlib outside the event loop: a hostile header can take seconds to read.

        Raises:
            ShortageError: what failed is the process or the machine, not this image.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._marked, row, function, *args
            )
        except Exception as error:
            if found := shortage(error):
                raise found from error
            raise

    def _marked(self, row: Row, function: Callable[..., T], *args: Any) -> T:
        self._mark(row)
        try:
            return function(*args)
        finally:
            self._mark(None)
