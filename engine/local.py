"""The stream on one machine: fetch -> decode -> embed and upload the thumbnail -> write -> mark.

Each image is fetched once and decoded once. Many travel at the same time; everything they hold is
bounded by count and by bytes, so memory does not grow with the dataset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import TracebackType

from dataset.arrays import Arrays, Embedding
from dataset.rows import Row, State
from engine import decode
from engine.batches import Batches, Embedder, together
from engine.checkpoint import Recorder
from engine.prepare import Intake
from engine.stages import StageTime
from storage.async_client import ObjectUnusable

WINDOW_CPU, WINDOW_GPU = 48, 1024  # images between listing and index at once


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
        max_pixels: int = decode.MAX_PIXELS,
        window: int = WINDOW_CPU,
    ) -> None:
        self._state, self._embedder, self._window = state, embedder, window
        self._recorder = Recorder(state, arrays)
        self._batches = Batches(embedder)
        self._intake = Intake(
            image_bucket,
            index_bucket,
            state.index_id,
            decode_workers=decode_workers,
            max_pixels=max_pixels,
            with_clip_inputs=not embedder.makes_clip_inputs,
        )

    async def __aenter__(self) -> Pipeline:
        await self._intake.__aenter__()
        await self._batches.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._intake.__aexit__(kind, error, traceback)
        # After Ctrl-C the process ends at once: an image in a model can take minutes.
        if kind is not asyncio.CancelledError:
            await self._batches.__aexit__()

    async def run(self) -> None:
        """Embed every pending row; what is done when this stops, however it stops, is recorded.

        Raises:
            StorageError: storage refuses or cannot be reached.
            OSError, sqlite3.OperationalError: the disk is full or fails.
        """
        counts = self._state.counts()
        rows = self._state.pending()
        window = min(self._window, counts.images - counts.done - counts.failed)
        await self._recorder.during(together(*(self._travel(rows) for _ in range(window))))

    def times(self) -> list[StageTime]:
        """What each stage did, in the order of an image's way."""
        fetch, decode, thumbnails = self._intake.times()
        return [fetch, decode, *self._batches.times(), thumbnails]

    async def _travel(self, rows: Iterator[Row]) -> None:
        """Take one image after the other all the way."""
        for row in rows:
            try:
                embedding, imagenet_class = await self._embed(row)
            except (decode.BadImage, ObjectUnusable) as error:
                self._recorder.failed(row, str(error))
            else:
                self._recorder.done(row, embedding, imagenet_class)

    async def _embed(self, row: Row) -> tuple[Embedding, int]:
        """Everything that happens to one image.

        Raises:
            BadImage, ObjectUnusable: the reason why this image cannot be embedded.
            StorageError: the run cannot go on.
        """
        async with self._intake.prepared(row) as prepared:
            _, embedded = await together(
                self._intake.upload_thumbnail(row, prepared.thumbnail),
                self._batches.embed(prepared),
            )
        return embedded
