"""Images by processes, the feeders: started, given rows, and replaced when they crash or hang.

Pixels come in shared memory. Each feeder has a fixed part of it; an image that does not fit is
fetched and decoded by threads of this process. All of this is done in the event loop of the process
with the models, by a few messages per image and without a task per image.
"""

from __future__ import annotations

import asyncio
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
from dataset.state.rows import Row
from engine import threads
from engine.decode import Decoded, NotEmbedded, views
from engine.feeder import MAX_FEEDERS, NOTHING, PAGE, Lines, Share, SharedMemory
from engine.stages import Budget, StageTime, until_one_ends
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

    def __init__(self, number: int, process: subprocess.Popen[bytes], lines: Lines) -> None:
        self.number, self.process, self.lines = number, process, lines
        self.is_ready = self.is_overdue = False
        self.rows: dict[int, Row] = {}  # that it has not prepared yet
        self.released: list[int] = []  # rows whose images it may overwrite, to be sent
        self.silent_s = 0.0  # since its last message
        self.mark, self.mark_s = NOTHING, 0.0  # the row that it decodes, and for how long
        self.times = np.zeros((3, 2))  # of fetch, decode, thumbnails: images and seconds busy
        self.thumbnail_bytes = 0


class Feeders:
    """Fetches and decodes images in processes; an async context manager. As threads.Threads."""

    def __init__(self, job: Job, decode_workers: int, window: int, decoded_bytes: int) -> None:
        """
        Args:
            decode_workers: how many feeders; each decodes an image at a time.
            window: images under way at once.
            decoded_bytes: of all decoded images.
        """
        self._window = window
        self._number = max(1, min(decode_workers, MAX_FEEDERS))
        self._job = replace(job, writers=job.writers * self._number)
        theirs = (decoded_bytes - decoded_bytes // OWN_SHARE) // self._number
        self._share = Share(
            ahead=max(AHEAD, FETCHES // self._number),
            file_bytes=(FETCHED_BYTES - FETCHED_BYTES // OWN_SHARE) // self._number,
            image_bytes=theirs // PAGE * PAGE,
        )
        self._memory = SharedMemory.create(self._number * self._share.image_bytes)
        room, file_bytes = Budget(decoded_bytes // OWN_SHARE), FETCHED_BYTES // OWN_SHARE
        self._threads = Threads(job, decode_workers, window, room, file_bytes=file_bytes)
        self._feeders: dict[int, Feeder] = {}  # those that run, by number
        self._started: list[Feeder] = []  # also those that have ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: deque[Row] = deque()  # rows of feeders that ended: they go first
        self._left = 0  # rows that no feeder was given yet
        self._under_way: set[int] = set()
        self._holders: dict[int, int] = {}  # row -> the feeder whose memory its image holds
        self._crashes: Counter[int] = Counter()  # by row
        self._idle_ends = 0
        self._is_woken = self._is_stopped = False

    async def __aenter__(self) -> Feeders:
        self._loop = asyncio.get_running_loop()
        await self._threads.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_stopped = True
        for feeder in self._feeders.values():
            feeder.process.kill()
            feeder.lines.close()
        for task in self._tasks:
            task.cancel()
        # After Ctrl-C this process ends at once. A killed process takes some milliseconds.
        if kind is not asyncio.CancelledError:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for feeder in self._feeders.values():
                feeder.process.wait()
            self._memory.close()
        await self._threads.__aexit__(kind)

    async def run(self, rows: Iterator[Row], count: int, take: Take) -> None:
        """Give each of `count` rows to `take`, decoded or with why it is not.

        Raises:
            IngestError: storage refuses or cannot be reached, or the feeders end.
            ShortageError: the machine has no room for so many processes.
        """
        self._rows, self._left, self._take = rows, count, take
        self._done: asyncio.Future[None] = self._loop.create_future()
        for number in range(min(self._number, count)):
            if number not in self._feeders:
                await self._start(number)
        self._wake()
        await until_one_ends(self._done, self._watch())

    def release(self, row: int) -> None:
        """Let go of what an image holds: it is embedded, or has failed."""
        self._under_way.discard(row)
        holder = self._holders.pop(row, None)
        if holder is None:
            self._threads.release(row)
        elif holder in self._feeders:
            self._feeders[holder].released.append(row)
        elif holder not in self._holders.values():
            self._do(self._start(holder))  # the memory of the one that ended is free now
        self._wake()

    def times(self) -> list[StageTime]:
        """Of fetching, decoding and uploading thumbnails so far, in this order."""
        theirs = sum((feeder.times for feeder in self._started), np.zeros((3, 2)))
        return [
            StageTime(own.name, own.images + int(images), own.busy_s + busy_s / self._number)
            for own, (images, busy_s) in zip(self._threads.times(), theirs, strict=True)
        ]

    @property
    def thumbnail_bytes(self) -> int:
        """Of the thumbnails made so far."""
        made = sum(feeder.thumbnail_bytes for feeder in self._started)
        return self._threads.thumbnail_bytes + made

    async def _start(self, number: int) -> None:
        self._memory.marks[number] = NOTHING
        ours, theirs = socket.socketpair()
        with theirs:
            files = theirs.fileno(), self._memory.file
            try:
                # In a session of its own: Ctrl-C is for this process, which ends the feeders.
                process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(number), *map(str, files)],
                    pass_fds=files,
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**SETTINGS, **os.environ},
                )
            except OSError as error:
                ours.close()
                raise ShortageError(
                    f"Process {number + 1} of {self._number} that decode images cannot be started "
                    f"({error.strerror}): lower --decode_workers, or raise the limit, such as with "
                    "`ulimit -u`."
                ) from error
        lines = Lines(partial(self._receive, number))
        self._feeders[number] = feeder = Feeder(number, process, lines)
        self._started.append(feeder)
        await self._loop.create_unix_connection(lambda: lines, sock=ours)
        lines.send("job", asdict(self._job), asdict(self._share))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task. An error in it ends the run."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self._fail(error)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    def _fail(self, error: BaseException) -> None:
        """Stop the run with this error, if none came before it."""
        if not self._done.done():
            self._done.set_exception(error)

    # What follows runs in the event loop, one message after the other.

    def _wake(self) -> None:
        """Hand out rows soon: once for all that happens in this round of the loop."""
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_woken = False
        if self._is_stopped:
            return
        try:
            for feeder in sorted(self._feeders.values(), key=lambda feeder: len(feeder.rows)):
                if feeder.released:
                    feeder.lines.send("release", feeder.released)
                    feeder.released = []
                if feeder.is_ready and len(feeder.rows) <= self._wanted() // 2:
                    self._hand_out(feeder)
        except Exception as error:
            self._fail(error)
        if not self._left and not self._under_way and not self._done.done():
            self._done.set_result(None)

    def _wanted(self) -> int:
        """How many rows a feeder has at once: few towards the end, so that all have some."""
        return max(1, min(self._share.ahead, self._left // self._number))

    def _hand_out(self, feeder: Feeder) -> None:
        """Give a feeder more rows, as far as the window allows."""
        given: list[tuple[object, ...]] = []
        wanted = self._wanted()
        while self._left and len(feeder.rows) < wanted and len(self._under_way) < self._window:
            row = self._again.popleft() if self._again else next(self._rows, None)
            if row is None:
                self._left = 0
                break
            self._left -= 1
            self._under_way.add(row.row)
            feeder.rows[row.row] = row
            given.append((row.row, *row.listed))
        if given:
            feeder.lines.send("rows", given)

    def _receive(self, number: int, kind: str, *values: object) -> None:
        if self._is_stopped:
            return
        try:
            feeder = self._feeders[number]
            feeder.silent_s = 0.0
            getattr(self, f"_on_{kind}")(feeder, *values)
        except Exception as error:
            self._fail(error)

    def _on_ready(self, feeder: Feeder) -> None:
        feeder.is_ready = True
        self._wake()

    def _on_image(
        self, feeder: Feeder, number: int, start: int, size: list[int], has_clip: bool, turned: bool
    ) -> None:
        row = self._prepared(feeder, number)
        self._holders[number] = feeder.number
        height, width = size
        pixels, clip_input = views(self._memory.images[start:], height, width, has_clip)
        image = Decoded(pixels=pixels, clip_input=clip_input, thumbnail=None, is_rotated=turned)
        self._take(row, image)

    def _on_failed(self, feeder: Feeder, number: int, reason: str, changed: bool) -> None:
        self._take(self._prepared(feeder, number), NotEmbedded(reason, changed))

    def _on_left(self, feeder: Feeder, number: int) -> None:
        self._do(self._threads.one(self._prepared(feeder, number), self._take))

    def _prepared(self, feeder: Feeder, number: int) -> Row:
        """The row that a feeder is done with."""
        self._idle_ends = 0
        self._wake()
        return feeder.rows.pop(number)

    def _on_did(self, feeder: Feeder, times: list[list[float]], thumbnail_bytes: int) -> None:
        feeder.times, feeder.thumbnail_bytes = np.array(times), thumbnail_bytes

    def _on_say(self, feeder: Feeder, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _on_stop(self, feeder: Feeder, message: str, is_traceback: bool) -> None:
        raise RuntimeError(message) if is_traceback else IngestError(message)

    async def _watch(self) -> None:
        """Kill a feeder that is silent, or at one image, for DEADLINE_S: stopped, or hostile.

        The seconds are counted here: time in which the whole machine stands still is none.
        """
        while True:
            await asyncio.sleep(threads.CHECK_S)
            for feeder in self._feeders.values():
                mark = int(self._memory.marks[feeder.number])
                is_same = mark == feeder.mark != NOTHING
                feeder.mark_s = feeder.mark_s + threads.CHECK_S if is_same else 0.0
                feeder.mark = mark
                feeder.silent_s += threads.CHECK_S
                if max(feeder.mark_s, feeder.silent_s) > threads.DEADLINE_S:
                    feeder.is_overdue = True
                    feeder.process.kill()

    def _on_lost(self, feeder: Feeder) -> None:
        """A feeder has ended: name the image that it was at, let others do its rows."""
        code = feeder.process.wait()
        del self._feeders[feeder.number]
        self._under_way.difference_update(feeder.rows)
        decoding = feeder.rows.pop(int(self._memory.marks[feeder.number]), None)
        how = how_it_ended(code)
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
        self._left += len(feeder.rows)
        self._again.extend(feeder.rows.values())
        if decoding is None:
            tqdm.write(f"A process that decodes images {how}; it is replaced.", file=sys.stderr)
        else:
            self._blame(decoding, how)
        if feeder.number not in self._holders.values():  # otherwise when these are released
            self._do(self._start(feeder.number))
        self._wake()

    def _blame(self, row: Row, how: str) -> None:
        """Try an image again whose feeder has ended; after TRIES it has failed."""
        self._crashes[row.row] += 1
        name = printable(row.listed.name)
        if self._crashes[row.row] < TRIES:
            tqdm.write(
                f"The process that decoded {name} {how}; the image is tried once more.",
                file=sys.stderr,
            )
            self._left += 1
            self._again.append(row)
        else:
            self._under_way.add(row.row)
            self._take(row, NotEmbedded(f"the process that decoded it {how}, {TRIES} times"))


def how_it_ended(code: int) -> str:
    """What a process did, from its returncode: "was ended by SIGSEGV"."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
