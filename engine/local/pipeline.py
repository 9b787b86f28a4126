"""The engine on one machine: fetch -> decode -> embed and upload the thumbnail -> record.

Each image is fetched once and decoded once. Many images are under way at the same time. Everything
they hold is bounded by count and by bytes, so memory does not grow with the dataset.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import TracebackType

from common.errors import ImageChanged, ImageError
from dataset.arrays import Arrays, Embedding
from dataset.state import Row, State
from engine.batches import BatchEmbedder, Batches
from engine.checkpoint import CHECKPOINT_S, Recorder
from engine.prepare import MAX_OBJECT_BYTES, OwnMemory, Preparation
from engine.stages import StageTime, together

WINDOW_CPU, WINDOW_GPU = 48, 1024  # images between listing and index at once


def window_of(embedder: BatchEmbedder) -> int:
    """How many images are between listing and index at once."""
    return WINDOW_CPU if embedder.device == "cpu" else WINDOW_GPU


class Pipeline:
    """Embeds the pending rows of a state; an async context manager around `run`."""

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
        """Without an index bucket, as in a trial, no thumbnail is uploaded."""
        self._state = state
        self._window = window or window_of(embedder)
        # Of each image, by time.monotonic(), in a trial: a few of them.
        self.finished: list[float] | None = [] if index_bucket is None else None
        self._recorder = Recorder(state, arrays, checkpoint_s=checkpoint_s, finished=self.finished)
        self._batches = Batches(embedder)
        self._preparation = Preparation(
            image_bucket,
            index_bucket,
            state.index_id,
            decode_workers=decode_workers,
            max_pixels=embedder.max_pixels,
            memory=OwnMemory(embedder.waiting_pixels),
            at_once=self._window,
            max_object_bytes=max_object_bytes,
            with_clip_inputs=not embedder.makes_clip_inputs,
        )

    async def __aenter__(self) -> Pipeline:
        await self._preparation.__aenter__()
        try:
            await self._batches.__aenter__()
        except BaseException:
            await self._preparation.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._preparation.__aexit__(kind, error, traceback)
        # After Ctrl-C the process ends at once: an image in a model can take minutes.
        if kind is not asyncio.CancelledError:
            await self._batches.__aexit__()

    async def run(self) -> None:
        """Embed every pending row. What is done when this stops, for whatever reason, is recorded.

        Raises:
            StorageError: storage refuses or cannot be reached.
            OSError, sqlite3.OperationalError: the disk is full or fails.
        """
        counts = self._state.counts()
        rows = self._state.pending()
        window = min(self._window, counts.images - counts.done - counts.failed)
        await self._recorder.during(together(*(self._travel(rows) for _ in range(window))))

    @property
    def thumbnail_bytes(self) -> int:
        """Of the thumbnails made so far."""
        return self._preparation.thumbnail_bytes

    def times(self) -> list[StageTime]:
        """What each stage did, in the order of an image's path."""
        fetch, decode, thumbnails = self._preparation.times()
        return [fetch, decode, self._batches.time(), thumbnails]

    async def _travel(self, rows: Iterator[Row]) -> None:
        """Take one image after the other through all stages."""
        for row in rows:
            try:
                described = await self._embed(row)
            except ImageChanged as error:
                self._recorder.changed(row, str(error))
            except ImageError as error:
                self._recorder.failed(row, str(error))
            else:
                self._recorder.done(row, *described)

    async def _embed(self, row: Row) -> tuple[Embedding, int, int, bool]:
        """Everything that happens to one image but recording.

        Returns its embedding, its width and height, and whether it carries an EXIF rotation.

        Raises:
            ImageError, ImageError: the reason why this image cannot be embedded.
            StorageError: the run cannot go on.
        """
        async with self._preparation.prepared(row) as prepared:
            _, embedding = await together(
                self._preparation.upload_thumbnail(row, prepared.thumbnail),
                self._batches.embed(prepared),
            )
            height, width = prepared.pixels.shape[:2]
            return embedding, width, height, prepared.is_rotated
