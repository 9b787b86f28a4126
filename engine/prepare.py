"""The first half of an image's path, for every engine: fetch, decode, upload its thumbnail.

The images in progress are bounded by number and by bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from common.resources import raise_open_file_limit, shortage
from dataset.lists import thumbnail_name
from dataset.rows import Row
from engine import decode
from engine.stages import DECODE, FETCH, THUMBNAILS, Budget, Stage, StageTime
from storage.async_client import AsyncStorage
from storage.gzipped import unzipped, unzipped_size

FETCHES = 128  # downloads at once
UPLOADS = 64  # thumbnail uploads at once
MAX_OBJECT_BYTES = 1 << 30  # a larger object is no image
FETCHED_BYTES = 256 << 20  # image files in memory at once

T = TypeVar("T")


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
        decoded_pixels: int,  # of the images that are decoded, or wait for the models
        at_once: int,  # images under way
        max_pixels: int = decode.MAX_PIXELS,
        max_object_bytes: int = MAX_OBJECT_BYTES,
        with_clip_inputs: bool = True,
    ) -> None:
        self._image_bucket, self._index_bucket = image_bucket, index_bucket
        self._index_id, self._max_pixels = index_id, max_pixels
        self._with_clip_inputs, self._max_object_bytes = with_clip_inputs, max_object_bytes
        self._threads = ThreadPoolExecutor(decode_workers, "decode")
        self._objects = AsyncStorage(FETCHES + UPLOADS)
        # Slots that can never be used would count as idle.
        self._fetching = Stage(FETCH, min(FETCHES, at_once))
        self._decoding = Stage(DECODE, min(decode_workers, at_once))
        self._uploading = Stage(THUMBNAILS, min(UPLOADS, at_once))
        self._fetched, self._unzipped = Budget(FETCHED_BYTES), Budget(FETCHED_BYTES)
        self._decoded = Budget(decoded_pixels)
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
    async def prepared(self, row: Row) -> AsyncIterator[decode.Prepared]:
        """What the models and the bucket need of one image, held while the `with` block runs.

        Raises:
            BadImage, ObjectUnusable: the reason why this image cannot be embedded.
            StorageError, ShortageError: the run cannot go on.
        """
        if row.listed.size > self._max_object_bytes:
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

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run Pillow or zlib outside the event loop: a hostile header can take seconds to read.

        Raises:
            ShortageError: what failed is the process or the machine, not this image.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        except Exception as error:
            if found := shortage(error):
                raise found from error
            raise
