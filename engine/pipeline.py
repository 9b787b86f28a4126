"""The one path of an image, from a row to its record. Each step has a file of its own.

    source    Threads of this process (threads.py), or processes where a GPU computes (feeders.py).
              They fetch the file, decode it once, and upload the thumbnail (decode.py). What the
              image holds is the source's until `release`.
    batches   Images of one canvas share a batch, which a thread gives to the models (batches.py).
    record    On one machine the vectors are written to the disk and the row is marked done
              (checkpoint.py); in a cluster they travel to the driver (ray/worker.py).

An image that cannot be embedded has a reason instead, which is recorded as well. Many images are
under way at the same time. All that they hold is bounded by count and by bytes (stages.py), so
memory does not grow with the dataset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from dataset.arrays import Embedding
from dataset.state import Row
from engine.batches import BatchEmbedder, Batches
from engine.decode import Decoded, Embedded, NotEmbedded
from engine.feeders import Feeders
from engine.stages import Budget, StageTime, until_one_ends
from engine.threads import Job, Threads

WINDOW_CPU, WINDOW_GPU = 48, 1024  # images between listing and record at once


class Pipeline:
    """Embeds rows; an async context manager around `run`, which may be called several times."""

    def __init__(
        self,
        job: Job,
        embedder: BatchEmbedder,
        record: Callable[[Row, Embedded | NotEmbedded], None],
        *,
        decode_workers: int,
        in_processes: bool,
        window: int | None = None,
    ) -> None:
        """
        Args:
            record: called in the event loop, once per row, with what became of it.
            in_processes: feeders fetch and decode, not threads.
            window: images between listing and record at once.
        """
        window = window or (WINDOW_CPU if embedder.device == "cpu" else WINDOW_GPU)
        decoded_bytes = 3 * embedder.waiting_pixels
        self._record = record
        self.thumbnail_bytes = 0  # of all thumbnails so far
        self._batches = Batches(embedder, self._fail)
        self._source: Threads | Feeders
        if in_processes:
            self._source = Feeders(job, decode_workers, window, decoded_bytes)
        else:
            self._source = Threads(job, decode_workers, window, Budget(decoded_bytes))

    async def __aenter__(self) -> Pipeline:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self._batches)
            await entered.enter_async_context(self._source)
            self._entered = entered.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._entered.__aexit__(*error)

    async def run(self, rows: Iterator[Row], count: int) -> None:
        """Embed `count` rows. All are recorded when this returns.

        Raises:
            StorageError: storage refuses or cannot be reached.
            IngestError: the machine ran out of something, or the feeders end.
            Exception: what `record` or the models raised.
        """
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await until_one_ends(self._source.run(rows, count, self._take), self._failure)

    def times(self) -> list[StageTime]:
        """What each stage did so far, in the order of an image's path."""
        fetch, decode, thumbnails = self._source.times()
        return [fetch, decode, self._batches.time(), thumbnails]

    def _take(self, row: Row, image: Decoded | NotEmbedded) -> None:
        if isinstance(image, NotEmbedded):
            self._finish(row, image)
        else:
            self.thumbnail_bytes += image.about.thumbnail_bytes
            self._batches.add(image, partial(self._done, row, image))

    def _done(self, row: Row, image: Decoded, result: Embedding | NotEmbedded) -> None:
        """Record what the models made of an image."""
        if self._failure.done():  # the run has ended
            return
        try:
            if isinstance(result, NotEmbedded):
                self._finish(row, result)
            else:
                self._finish(row, Embedded(result, image.about))
        except Exception as error:
            self._fail(error)

    def _finish(self, row: Row, result: Embedded | NotEmbedded) -> None:
        self._record(row, result)
        self._source.release(row.row)

    def _fail(self, error: Exception) -> None:
        """End the run with this error, if it has not ended."""
        if not self._failure.done():
            self._failure.set_exception(error)
