"""The stream on one machine: fetch -> decode -> embed and upload the thumbnail -> write -> mark.

Each image is fetched once and decoded once. Many travel at the same time; everything they hold is
bounded by count and by bytes, so memory does not grow with the dataset.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

import gcs
import images
from batches import Batches, Embedder
from gcs import ObjectUnusable, SmallObjects
from index import Arrays, Embedding, thumbnail_name
from names import printable
from report import StageTime
from state import Outcome, Row, State

FETCHES = 128  # downloads at once
UPLOADS = 64  # thumbnails on their way at once
WINDOW_CPU, WINDOW_GPU = 48, 1024  # images between listing and index at once
MAX_OBJECT_BYTES = 1 << 30  # a larger object is no image
FETCHED_BYTES = 256 << 20  # in files, of the images on their way
DECODED_PIXELS = 100_000_000  # of the images decoded: 3 bytes each, some 10 while decoding
CHECKPOINT_S = 2.0  # seconds of work that a power cut can cost
FAILURES_SHOWN = 10
BAR_INTERVAL_S = (0.2, 30.0)  # between two states of the progress bar: on a terminal, in a log

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


class Pipeline:
    """Embeds the pending rows of a state; an async context manager around `run`."""

    def __init__(
        self,
        state: State,
        arrays: Arrays,
        embedder: Embedder,
        *,
        image_bucket: str,
        index_bucket: str,
        decode_workers: int,
        max_pixels: int = images.MAX_PIXELS,
        window: int = WINDOW_CPU,
    ) -> None:
        self._state, self._arrays, self._embedder = state, arrays, embedder
        self._image_bucket, self._index_bucket = image_bucket, index_bucket
        self._index_id = state.index_id
        self._max_pixels, self._window = max_pixels, window
        self._threads = ThreadPoolExecutor(decode_workers, "decode")
        self._batches = Batches(embedder)
        self._objects = SmallObjects(FETCHES + UPLOADS)
        self._fetching = Stage("fetch", FETCHES)
        self._decoding = Stage("decode", decode_workers)
        self._uploading = Stage("thumbnails", UPLOADS)
        self._fetched, self._decoded = Budget(FETCHED_BYTES), Budget(DECODED_PIXELS)
        self._unzipped = Budget(FETCHED_BYTES)
        self._outcomes: deque[Outcome] = deque()  # of rows whose vectors are written but not synced
        self._committing = threading.Lock()  # a checkpoint may be in its thread when the end comes
        self._failures = self._bytes = 0

    async def __aenter__(self) -> Pipeline:
        await self._objects.__aenter__()
        await self._batches.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._objects.__aexit__()
        # After Ctrl-C the process ends at once: an image in a model can take minutes.
        interrupted = kind is asyncio.CancelledError
        self._threads.shutdown(wait=not interrupted, cancel_futures=True)
        if not interrupted:
            await self._batches.__aexit__()

    async def run(self) -> None:
        """Embed every pending row; what is done when this stops, however it stops, is recorded.

        Raises:
            StorageError: storage refuses or cannot be reached.
            OSError, sqlite3.OperationalError: the disk is full or fails.
        """
        counts = self._state.counts()
        finished = counts.done + counts.failed
        with tqdm(
            total=counts.images,
            initial=finished,
            unit=" images",
            smoothing=0.05,
            mininterval=BAR_INTERVAL_S[0 if sys.stderr.isatty() else 1],
        ) as bar:
            rows = self._state.pending()
            window = min(self._window, counts.images - finished)
            travellers = asyncio.create_task(
                _together(*(self._travel(rows, bar) for _ in range(window)))
            )
            checkpoints = asyncio.create_task(self._checkpoints(bar))
            both = (travellers, checkpoints)
            try:
                ended, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    await task
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                self._commit()

    def times(self) -> list[StageTime]:
        """What each stage did, in the order of an image's way."""
        models = [
            StageTime(name, self._batches.images[name], busy_s / self._embedder.workers)
            for name, busy_s in self._batches.busy_s.items()
        ]
        return [self._fetching.time(), self._decoding.time(), *models, self._uploading.time()]

    async def _travel(self, rows: Iterator[Row], bar: tqdm[Any]) -> None:
        """Take one image after the other all the way."""
        for row in rows:
            try:
                outcome = await self._embed(row)
            except (images.BadImage, ObjectUnusable) as error:
                outcome = Outcome(row.row, None, str(error))
                self._fail(row, str(error))
            self._outcomes.append(outcome)
            self._bytes += row.listed.size
            bar.update()

    async def _embed(self, row: Row) -> Outcome:
        """Everything that happens to one image.

        Raises:
            BadImage, ObjectUnusable: the reason why this image cannot be embedded.
            StorageError: the run cannot go on.
        """
        if row.listed.size > MAX_OBJECT_BYTES:
            raise images.BadImage(f"{row.listed.size / 1e9:,.1f} GB is too large for an image")
        async with self._fetched.hold(row.listed.size):
            async with self._fetching.slot():
                data = await self._objects.fetch(self._image_bucket, row.listed)
            if size := gcs.unzipped_size(data):
                async with self._unzipped.hold(size):
                    data = await self._in_thread(gcs.unzipped, data)
                    embedding, imagenet_class = await self._embed_bytes(row, data)
            else:
                embedding, imagenet_class = await self._embed_bytes(row, data)
        self._arrays.write(row.row, embedding)
        return Outcome(row.row, imagenet_class, None)

    async def _embed_bytes(self, row: Row, data: bytes) -> tuple[Embedding, int]:
        """The vectors and the ImageNet class of an image file; its thumbnail is then uploaded."""
        image = await self._in_thread(images.open_image, data, self._max_pixels)
        async with self._decoded.hold(image.width * image.height):
            async with self._decoding.slot():
                prepared = await self._in_thread(images.prepare, image)
            try:
                _, clip, (imagenet, imagenet_early, imagenet_class) = await _together(
                    self._upload_thumbnail(row, prepared.thumbnail),
                    self._batches.clip(prepared.clip_input),
                    self._batches.resnet(prepared.pixels),
                )
            except MemoryError as error:
                raise images.BadImage(
                    f"not enough memory to embed {image.width} x {image.height} pixels"
                ) from error
        embedding = Embedding(imagenet, imagenet_early, clip)
        if not all(np.isfinite(vector).all() for vector in embedding):
            raise images.BadImage("the models make no finite numbers of it")
        return embedding, int(imagenet_class)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run Pillow or zlib beside the event loop: a hostile header can take seconds to read."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _upload_thumbnail(self, row: Row, thumbnail: bytes) -> None:
        async with self._uploading.slot():
            name = thumbnail_name(self._index_id, row.listed.name)
            await self._objects.put(self._index_bucket, name, thumbnail, "image/jpeg")

    def _fail(self, row: Row, reason: str) -> None:
        self._arrays.clear(row.row)
        self._failures += 1
        if self._failures <= FAILURES_SHOWN:
            tqdm.write(
                f"Failed: {printable(row.listed.name)}: {printable(reason)}", file=sys.stderr
            )
        if self._failures == FAILURES_SHOWN:
            tqdm.write("Further failures are listed at the end.", file=sys.stderr)

    async def _checkpoints(self, bar: tqdm[Any]) -> None:
        """Record what is done every CHECKPOINT_S, and show the bytes a second."""
        start = time.monotonic()
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            rate = self._bytes / (time.monotonic() - start) / 1e6
            bar.set_postfix_str(f"{rate:.1f} MB/s, {self._failures} failed", refresh=False)
            await asyncio.to_thread(self._commit)

    def _commit(self) -> None:
        """Vectors to the disk first, then the rows are marked: never the other way round.

        Outcomes are taken here, not by the caller: a checkpoint whose turn never comes, because the
        run ends first, then leaves them to the last commit.
        """
        with self._committing:
            outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
            if outcomes:
                self._arrays.sync()
                self._state.record(outcomes)


async def _together(*coroutines: Awaitable[Any]) -> list[Any]:
    """The results of all; when one fails, the others are ended before its error goes on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
