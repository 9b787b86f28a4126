"""The engine on one machine with a GPU: feeders fetch and decode, this process embeds and records.

Each image is fetched once and decoded once, as in pipeline.py. What images hold is bounded for all
feeders together.
"""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType

from common.errors import ImageError
from dataset.arrays import Arrays, Embedding
from dataset.state import Row, State
from engine.batches import BatchEmbedder, Batches
from engine.checkpoint import CHECKPOINT_S, Recorder
from engine.decode import CLIP_BYTES, NotEmbedded, Prepared
from engine.local.feeder_process import Job
from engine.local.feeders import Feeders
from engine.local.pipeline import window_of
from engine.local.shared_memory import PAGE, SharedMemory
from engine.prepare import FETCHES, MAX_OBJECT_BYTES
from engine.stages import StageTime

AHEAD = 16  # rows that a feeder has at least, so that it never waits for the bucket
MAX_FEEDERS = PAGE // 8


class FedPipeline:
    """As Pipeline of pipeline.py, with `decode_workers` processes that decode an image each."""

    def __init__(
        self,
        state: State,
        arrays: Arrays,
        embedder: BatchEmbedder,
        *,
        image_bucket: str,
        index_bucket: str | None,
        decode_workers: int,
        window: int | None = None,
        checkpoint_s: float = CHECKPOINT_S,
        max_object_bytes: int = MAX_OBJECT_BYTES,
    ) -> None:
        self._state = state
        counts = state.counts()
        self._images = counts.images - counts.done - counts.failed
        # Of each image, by time.monotonic(), in a trial: a few of them.
        self.finished: list[float] | None = [] if index_bucket is None else None
        self._recorder = Recorder(state, arrays, checkpoint_s=checkpoint_s, finished=self.finished)
        self._batches = Batches(embedder)
        feeders = max(1, min(decode_workers, self._images, MAX_FEEDERS))
        job = Job(
            image_bucket,
            index_bucket,
            state.index_id,
            feeders,
            max(AHEAD, FETCHES // feeders),
            embedder.max_pixels,
            max_object_bytes,
            not embedder.makes_clip_inputs,
        )
        # Whatever the limit, the largest image has a place when there is no other.
        size = 3 * max(embedder.waiting_pixels, embedder.max_pixels) + CLIP_BYTES
        self._memory = SharedMemory.create(-(-size // PAGE) * PAGE)
        self._feeders = Feeders(
            job,
            self._memory,
            window=window or window_of(embedder),
            take=self._take,
        )

    async def __aenter__(self) -> FedPipeline:
        try:
            await self._feeders.start()
            await self._batches.__aenter__()
        except BaseException:
            self._feeders.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._feeders.stop()
        # After Ctrl-C the process ends at once: an image in a model can take minutes.
        if kind is not asyncio.CancelledError:
            self._feeders.wait()
            await self._batches.__aexit__()
            self._memory.close()

    async def run(self) -> None:
        """Embed every pending row. What is done when this stops, for whatever reason, is recorded.

        Raises:
            IngestError: storage refuses or cannot be reached, or the feeders end.
            OSError, sqlite3.OperationalError: the disk is full or fails.
        """
        self._feeders.give(self._state.pending(), self._images)
        await self._recorder.during(self._done())

    async def _done(self) -> None:
        await self._feeders.done

    @property
    def thumbnail_bytes(self) -> int:
        """Of the thumbnails made so far."""
        return self._feeders.thumbnail_bytes

    def times(self) -> list[StageTime]:
        """What each stage did, in the order of an image's path."""
        fetch, decode, thumbnails = self._feeders.times()
        return [fetch, decode, self._batches.time(), thumbnails]

    def _take(self, row: Row, image: Prepared | NotEmbedded) -> None:
        """Embed an image that a feeder prepared, or record why there is none."""
        if isinstance(image, NotEmbedded):
            self._record(row, None, None, False, image)
        else:
            height, width = image.pixels.shape[:2]
            self._batches.add(image, partial(self._record, row, width, height, image.is_rotated))

    def _record(
        self,
        row: Row,
        width: int | None,
        height: int | None,
        is_rotated: bool,
        outcome: Embedding | NotEmbedded | Exception,
    ) -> None:
        """Take what became of a row. An error stops the run, unless it is the image's fault."""
        try:
            if isinstance(outcome, ImageError):
                outcome = NotEmbedded(str(outcome))
            elif isinstance(outcome, Exception):
                raise outcome
            self._recorder.take(row, outcome, width, height, is_rotated)
            self._feeders.release(row.row)
        except Exception as error:
            self._feeders.fail(error)
