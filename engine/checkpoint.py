"""The last step of an image's path, the same for every engine: record what became of each row.

Vectors reach the disk before their rows are marked done. So whatever stops a run, the vectors of
every row that is marked are there.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import ImagesChanged
from common.terminal import count, printable, say
from dataset.arrays import BYTES_PER_ROW, ZEROS, Arrays
from dataset.state import Outcome, Row, State
from engine.decode import Embedded, NotEmbedded
from engine.stages import until_one_ends

CHECKPOINT_S = 2.0  # seconds of work that a power cut can lose
FAILURES_SHOWN = 10
BAR_INTERVAL_S = (0.2, 30.0)  # between updates of the progress bar: on a terminal, in a log


class Recorder:
    """Writes the vectors of rows, and every `checkpoint_s` records what became of them."""

    def __init__(
        self,
        state: State,
        arrays: Arrays,
        *,
        checkpoint_s: float = CHECKPOINT_S,
        finished: list[float] | None = None,
    ) -> None:
        self._state, self._arrays, self._checkpoint_s = state, arrays, checkpoint_s
        self._finished = finished  # gets the time of each row
        self._outcomes: deque[Outcome] = deque()  # of rows whose vectors are written but not synced
        self._committing = threading.Lock()  # the last commit may meet one in a thread
        self._failures = self._bytes = self._changed = self._rotated = 0
        self._changes: list[str] = []  # the first of them
        self._embeds, self._since = False, 0.0  # anything since this time.monotonic()

    async def during(self, work: Coroutine[Any, Any, Any]) -> None:
        """Await work that calls `record`. What is done when it stops, whatever stops it, is kept.

        Raises:
            Exception: what the work raised.
            OSError, sqlite3.OperationalError: the disk is full or fails.
            ImagesChanged: everything else is done.
        """
        counts = self._state.counts()
        self._since = time.monotonic()
        with tqdm(
            total=counts.images,
            initial=counts.done + counts.failed,
            unit=" images",
            smoothing=0.05,
            mininterval=BAR_INTERVAL_S[0 if sys.stderr.isatty() else 1],
        ) as self._bar:
            try:
                await until_one_ends(work, self._checkpoints())
            finally:
                self.commit()
        if self._rotated:
            say(
                f"EXIF rotations in {count(self._rotated, 'image')} of those embedded now are not "
                "applied: vectors and thumbnails are of the pixels as stored.",
            )
        if self._changed:
            more = self._changed - len(self._changes)
            lines = [*self._changes, *([f"and {more:,} more"] if more else [])]
            listed = "".join(f"\n  {line}" for line in lines)
            raise ImagesChanged(
                f"{count(self._changed, 'image')} changed in the bucket since the listing:{listed}"
            )

    def record(self, row: Row, result: Embedded | NotEmbedded) -> None:
        """Take what became of one row. A failed row gets zeros; a changed one stays pending."""
        if isinstance(result, Embedded):
            vectors, imagenet_class = result.embedding
            if all(np.isfinite(vector).all() for vector in vectors):
                about, checksum = result.about, self._arrays.write(row.row, vectors)
                self._rotated += about.is_rotated
                described = checksum, about.width, about.height, None, about.quality
                self._add(row, Outcome(row.row, imagenet_class, None, *described))
                return
            result = NotEmbedded("the models compute no finite numbers for it")
        if not result.changed:
            self._failed(row, result.reason)
            return
        self._changed += 1
        if self._changed <= FAILURES_SHOWN:
            self._changes.append(f"{printable(row.listed.name)}: {printable(result.reason)}")

    def copied(self, outcomes: Sequence[Outcome]) -> None:
        """Take rows whose vectors were copied into the arrays from another index."""
        self._outcomes.extend(outcomes)
        self._bytes += len(outcomes) * BYTES_PER_ROW
        self._bar.update(len(outcomes))

    def _failed(self, row: Row, reason: str) -> None:
        self._failures += 1
        if self._failures <= FAILURES_SHOWN:
            name = printable(row.listed.name)
            tqdm.write(f"Failed: {name}: {printable(reason)}", file=sys.stderr)
        if self._failures == FAILURES_SHOWN:
            tqdm.write("Further failures are listed at the end.", file=sys.stderr)
        self._add(row, Outcome(row.row, None, reason, self._arrays.write(row.row, ZEROS)))

    def _add(self, row: Row, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._embeds = True
        if self._finished is not None:
            self._finished.append(time.monotonic())
        self._bytes += row.listed.size
        self._bar.update()

    async def _checkpoints(self) -> None:
        """Record what is done from time to time, and show the bytes per second."""
        start = time.monotonic()
        while True:
            await asyncio.sleep(self._checkpoint_s)
            rate = self._bytes / (time.monotonic() - start) / 1e6
            self._bar.set_postfix_str(f"{rate:.1f} MB/s, {self._failures} failed", refresh=False)
            await asyncio.to_thread(self.commit)

    def commit(self) -> None:
        """Wait until the vectors are on the disk, then mark their rows.

        Outcomes are taken here, not by the caller: if the run ends before a checkpoint gets its
        thread, the last commit still finds them.
        """
        with self._committing:
            outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
            if outcomes:
                self._arrays.sync()
                self._state.record(outcomes)
                self._record_time()

    def _record_time(self) -> None:
        """Add the seconds since the last time to those of embedding; copying takes hardly any."""
        embeds, since = self._embeds, self._since
        self._embeds, self._since = False, time.monotonic()
        if embeds:
            self._state.add_embedding_time(self._since - since)
