"""Images by processes, the feeders: started, given rows, and replaced when they crash or hang.

Pixels come in memory that is shared, a fixed amount per feeder; an image that does not fit is
fetched and decoded by threads of this process. All of this is done in the event loop of the process
with the models, by a few messages per image and without a task per image.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import IngestError, ShortageError
from common.program import ROOT
from common.terminal import printable
from dataset.quality import Quality
from dataset.state import Row
from engine import threads
from engine.decode import About, Decoded, NotEmbedded, views
from engine.feeder import NOTHING, Lines, SharedMemory, new_memory
from engine.stages import PAGE, Budget, StageTime, until_one_ends
from engine.threads import FETCHED_BYTES, FETCHES, Job, Take, Threads

# Not `python -m`: modules in the user's working directory are not for import.
PROGRAM = (
    f"import sys; sys.path[:] = [{str(ROOT)!r}, *filter(None, sys.path)]; "
    "from engine.feeder import main; main()"
)
SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    # glibc gives the memory of every image back to the system and takes it again, which costs 1.3
    # times the CPU time. With these settings it keeps up to 32 MB.
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}
AHEAD = 16  # rows that a feeder has at least, so that it never waits for the bucket
OWN_SHARE = 4  # one part in four of the bytes of files and images is for threads of this process
TRIES = 2  # of an image whose feeder ended while it was decoded
IDLE_ENDS = 10  # feeders in a row that end while they decode nothing, before the run stops


class Feeder:
    """One process, as this process sees it."""

    def __init__(self, process: subprocess.Popen[bytes], memory: SharedMemory) -> None:
        self.process, self.memory = process, memory
        self.lines: Lines
        self.is_ready = self.is_overdue = False
        self.rows: dict[int, Row] = {}  # that it has not told of yet
        self.silent_s = 0.0  # since its last sign of life


class Feeders:
    """Fetches and decodes images in processes; an async context manager. As threads.Threads."""

    def __init__(self, job: Job, decode_workers: int, window: int, decoded_bytes: int) -> None:
        """
        Args:
            decode_workers: how many feeders; each decodes an image at a time.
            window: images under way at once.
            decoded_bytes: of all decoded images.
        """
        self._window, self._number = window, decode_workers
        self._job = replace(job, writers=job.writers * decode_workers)
        own_bytes, own_file_bytes = decoded_bytes // OWN_SHARE, FETCHED_BYTES // OWN_SHARE
        self._ahead = max(AHEAD, FETCHES // decode_workers)
        self._file_bytes = (FETCHED_BYTES - own_file_bytes) // decode_workers
        self._image_bytes = (decoded_bytes - own_bytes) // decode_workers // PAGE * PAGE
        room = Budget(own_bytes)
        self._threads = Threads(job, decode_workers, window, room, file_bytes=own_file_bytes)
        self._feeders: set[Feeder] = set()  # those that run
        self._tasks: set[asyncio.Future[Any]] = set()
        self._again: deque[Row] = deque()  # rows of feeders that ended: they go first
        self._left = 0  # rows that are not under way yet
        self._under_way = 0  # rows that are not released yet
        self._holders: dict[int, Feeder] = {}  # row -> the feeder whose memory its image holds
        self._crashes: Counter[int] = Counter()  # by row
        self._idle_ends = 0
        self._times = np.zeros((3, 2))  # of fetch, decode, thumbnails: images and seconds busy

    async def __aenter__(self) -> Feeders:
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        await self._threads.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        feeders, self._feeders = self._feeders, set()
        for feeder in feeders:
            feeder.process.kill()
            feeder.lines.close()
        for task in self._tasks:
            task.cancel()
        # After Ctrl-C this process ends at once. A killed process takes some milliseconds.
        if kind is not asyncio.CancelledError:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for feeder in feeders:
                feeder.process.wait()
        await self._threads.__aexit__(kind, *error)

    async def run(self, rows: Iterator[Row], count: int, take: Take) -> None:
        """Give each of `count` rows to `take`, decoded or with why it is not.

        Raises:
            IngestError: storage refuses or cannot be reached, or the feeders end.
            ShortageError: the machine has no room for so many processes.
        """
        self._rows, self._left, self._take = rows, count, take
        self._failure: asyncio.Future[None] = self._loop.create_future()
        for _ in range(min(self._number, count) - len(self._feeders)):
            self._start()
        self._changed.set()
        await until_one_ends(self._hand_out_all(), self._watch(), self._failure)

    def release(self, row: int) -> None:
        """Let go of what an image holds: it is embedded, or has failed."""
        self._under_way -= 1
        if holder := self._holders.pop(row, None):
            holder.lines.send("release", row)
        else:
            self._threads.release(row)
        self._changed.set()

    def times(self) -> list[StageTime]:
        """Of fetching, decoding and uploading thumbnails so far, in this order."""
        return [
            StageTime(own.name, own.images + int(images), own.busy_s + busy_s / self._number)
            for own, (images, busy_s) in zip(self._threads.times(), self._times, strict=True)
        ]

    def _start(self) -> None:
        """Start a feeder, with memory of its own: that of an earlier one may still hold images."""
        memory_file = new_memory(PAGE + self._image_bytes)
        ours, theirs = socket.socketpair()
        files = theirs.fileno(), memory_file
        numbers = *files, self._ahead, self._file_bytes
        try:
            # In a session of its own: Ctrl-C is for this process, which ends the feeders.
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *map(str, numbers), json.dumps(asdict(self._job))],
                pass_fds=files,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**SETTINGS, **os.environ},
            )
            memory = SharedMemory(memory_file)
        except OSError as error:
            ours.close()
            raise ShortageError(
                f"The {self._number} processes that decode images cannot be started "
                f"({error.strerror}): lower --decode_workers, or raise the limit, such as with "
                "`ulimit -u`."
            ) from error
        finally:
            theirs.close()
            os.close(memory_file)
        memory.mark[0] = NOTHING
        feeder = Feeder(process, memory)
        feeder.lines = Lines(partial(self._receive, feeder))
        self._feeders.add(feeder)
        self._do(self._loop.create_unix_connection(lambda: feeder.lines, sock=ours))

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        """Start a task. An error in it ends the run."""

        def ended(task: asyncio.Future[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self._fail(error)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    def _fail(self, error: BaseException) -> None:
        """Stop the run with this error, if none came before it."""
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _hand_out_all(self) -> None:
        """Give rows to feeders until every row is released."""
        while self._left or self._under_way:
            await self._changed.wait()
            self._changed.clear()
            # Few rows towards the end, so that all feeders have some.
            wanted = max(1, min(self._ahead, self._left // self._number))
            for feeder in sorted(self._feeders, key=lambda feeder: len(feeder.rows)):
                if feeder.is_ready and len(feeder.rows) <= wanted // 2:
                    self._hand_out(feeder, wanted)

    def _hand_out(self, feeder: Feeder, wanted: int) -> None:
        """Give a feeder more rows, as far as the window allows."""
        given: list[tuple[object, ...]] = []
        while len(feeder.rows) < wanted and (row := self._next_row()):
            feeder.rows[row.row] = row
            given.append((row.row, *row.listed))
        if given:
            feeder.lines.send("rows", given)

    def _next_row(self) -> Row | None:
        if self._again:
            return self._again.popleft()
        if not self._left or self._under_way >= self._window:
            return None
        row = next(self._rows, None)
        if row is None:
            self._left = 0
        else:
            self._left -= 1
            self._under_way += 1
        return row

    def _receive(self, feeder: Feeder, kind: str, *values: object) -> None:
        """Do what a message asks for, by the method of its kind."""
        if feeder not in self._feeders:  # this process ended it
            return
        try:
            getattr(self, f"_on_{kind}")(feeder, *values)
        except Exception as error:
            self._fail(error)
        self._changed.set()

    def _on_ready(self, feeder: Feeder) -> None:
        feeder.is_ready = True

    def _on_image(
        self, feeder: Feeder, number: int, start: int, has_clip_input: bool, values: list[Any]
    ) -> None:
        row = self._told(feeder, number)
        self._holders[number] = feeder
        about = About._make([*values[:-1], Quality(*values[-1])])
        place = feeder.memory.images[start:]
        pixels, clip_input = views(place, about.height, about.width, has_clip_input)
        image = Decoded(pixels=pixels, clip_input=clip_input, thumbnail=None, about=about)
        self._take(row, image)

    def _on_failed(self, feeder: Feeder, number: int, reason: str, changed: bool) -> None:
        self._take(self._told(feeder, number), NotEmbedded(reason, changed))

    def _on_left(self, feeder: Feeder, number: int) -> None:
        self._do(self._threads.one(self._told(feeder, number), self._take))

    def _told(self, feeder: Feeder, number: int) -> Row:
        """The row that a feeder is done with."""
        self._idle_ends = 0
        return feeder.rows.pop(number)

    def _on_did(self, feeder: Feeder, times: list[list[float]]) -> None:
        feeder.silent_s = 0.0
        self._times += times

    def _on_say(self, feeder: Feeder, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _on_stop(self, feeder: Feeder, message: str, is_traceback: bool) -> None:
        raise RuntimeError(message) if is_traceback else IngestError(message)

    async def _watch(self) -> None:
        """Kill a feeder without a sign of life for DEADLINE_S: stopped, or at a hostile image.

        The seconds are counted here: time in which the whole machine stands still is none.
        """
        while True:
            await asyncio.sleep(threads.CHECK_S)
            for feeder in self._feeders:
                feeder.silent_s += threads.CHECK_S
                if feeder.silent_s > threads.DEADLINE_S:
                    feeder.is_overdue = True
                    feeder.process.kill()

    def _on_lost(self, feeder: Feeder) -> None:
        """A feeder has ended: name the image that it was at, let others do its rows."""
        code = feeder.process.wait()
        self._feeders.remove(feeder)
        decoding = feeder.rows.pop(int(feeder.memory.mark[0]), None)
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        if feeder.is_overdue:
            did = "did not answer for" if decoding is None else "took"
            how = f"{did} more than {threads.DEADLINE_S:.0f} s"
        self._idle_ends += decoding is None
        cannot_start = not feeder.is_ready and code > 0
        if cannot_start or self._idle_ends > IDLE_ENDS:
            raise IngestError(
                f"A process that decodes images {how}{'' if cannot_start else ', as others before'}"
                ": run the same command again, or add --decode_in threads, which needs no such "
                "processes."
            )
        self._again.extend(feeder.rows.values())
        if decoding is None:
            tqdm.write(f"A process that decodes images {how}; it is replaced.", file=sys.stderr)
        else:
            self._blame(decoding, how)
        self._start()

    def _blame(self, row: Row, how: str) -> None:
        """Try an image again whose feeder has ended; after TRIES it has failed."""
        self._crashes[row.row] += 1
        if self._crashes[row.row] == TRIES:
            self._take(row, NotEmbedded(f"the process that decoded it {how}, {TRIES} times"))
            return
        self._again.append(row)
        name = printable(row.listed.name)
        tqdm.write(
            f"The process that decoded {name} {how}; the image is tried once more.",
            file=sys.stderr,
        )
