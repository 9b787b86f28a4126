"""The feeders of a run: started, given rows, granted memory, and replaced when one crashes.

All of this is done in the event loop of the process with the models, by a few messages per image
and without a task per image.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from tqdm import tqdm

from common.errors import IngestError, ShortageError
from common.program import ROOT
from common.terminal import printable
from dataset.state import Row
from engine.decode import NotEmbedded, Prepared, views
from engine.local.feeder_process import FILES, PIXELS, UNZIPPED, Job
from engine.local.messages import Lines
from engine.local.shared_memory import NOTHING, Amounts, Places, SharedMemory
from engine.prepare import FETCHED_BYTES
from engine.stages import DECODE, FETCH, THUMBNAILS, StageTime

# Not `python -m`: modules in the user's working directory are not for import.
PROGRAM = (
    f"import sys; sys.path[:] = [{str(ROOT)!r}, *filter(None, sys.path)]; "
    "from engine.local.feeder_process import main; main()"
)
SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    # glibc gives the memory of every image back to the system and takes it again, which costs 1.3
    # times the CPU time. With these settings it keeps up to 32 MB.
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}
TRIES = 2  # of an image whose feeder ended while it was decoded
IDLE_ENDS = 10  # feeders that end between two images, and at none, before the run stops


class Feeder:
    """One process, as the others see it."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], lines: Lines) -> None:
        self.number, self.process, self.lines = number, process, lines
        self.rows: dict[int, Row] = {}  # that it has not prepared yet
        self.is_ready = False
        self.times = np.zeros((3, 2))  # of fetch, decode, thumbnails: images and seconds busy
        self.thumbnail_bytes = 0


Ask = tuple[Feeder, int, int]


class Feeders:
    """The processes. Rows go in, prepared images come out; what an image holds is released last.

    `take` gets each row with its image, or with why it has none. `done` has a result when all rows
    are released, or the error that stops the run.
    """

    def __init__(
        self,
        job: Job,
        memory: SharedMemory,
        *,
        window: int,  # rows between listing and index at once
        take: Callable[[Row, Prepared | NotEmbedded], None],
    ) -> None:
        self._job, self._memory, self._window, self._take = job, memory, window, take
        self._feeders: dict[int, Feeder] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._places = Places(len(memory.places))
        self._held: dict[str, Amounts | Places] = {
            FILES: Amounts(FETCHED_BYTES),
            UNZIPPED: Amounts(FETCHED_BYTES),
            PIXELS: self._places,
        }
        # Kind -> who waits for memory of it, in order of arrival: feeder, row, amount.
        self._asked: dict[str, deque[Ask]] = {UNZIPPED: deque(), PIXELS: deque()}
        self._rows: Iterator[Row] = iter(())
        self._next: deque[Row] = deque()  # rows that go before those of the iterator
        self._hungry: deque[Feeder] = deque()  # those that are to get rows, in this order
        self._left = 0  # rows that no feeder was given yet
        self._under_way: set[int] = set()
        self._crashes: Counter[int] = Counter()  # by row
        self._idle_ends = 0
        self._ended_times = np.zeros((3, 2))  # of feeders that have ended
        self._ended_thumbnail_bytes = 0
        self._is_woken = self._is_stopped = False

    async def start(self) -> None:
        """Start all. Raises ShortageError: the machine has no room for so many processes."""
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        # Marks an error as retrieved: if something else stops the run first, nobody awaits it.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        for number in range(self._job.feeders):
            await self._start(number)

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
                    f"Process {number + 1} of {self._job.feeders} that decode images cannot be "
                    f"started ({error.strerror}): lower --decode_workers, or raise the limit, such "
                    "as with `ulimit -u`."
                ) from error
        receivers = ("ready", "ask", "image", "failed", "did", "say", "stop")
        lines = Lines(
            {kind: partial(self._receive, number, kind) for kind in receivers},
            lost=partial(self._receive, number, "lost"),
        )
        self._feeders[number] = Feeder(number, process, lines)
        await self._loop.create_unix_connection(lambda: lines, sock=ours)
        lines.send("job", *self._job)
        if self._is_stopped:
            lines.close()

    def give(self, rows: Iterator[Row], count: int) -> None:
        """Begin with these rows; `count` says how many there are."""
        self._rows, self._left = rows, count
        self.wake()

    def release(self, row: int) -> None:
        """Take back what an image holds: it is embedded, or has failed."""
        for held in self._held.values():
            held.release(row)
        self._under_way.discard(row)
        self.wake()

    def fail(self, error: Exception) -> None:
        """Stop the run with this error, if none came before it."""
        if not self.done.done():
            self.done.set_exception(error)

    def stop(self) -> None:
        """End all feeders, whatever they do."""
        self._is_stopped = True
        for feeder in self._feeders.values():
            feeder.process.kill()
            feeder.lines.close()

    def wait(self) -> None:
        """Wait until all have ended, after `stop`: a killed process takes some milliseconds."""
        for feeder in self._feeders.values():
            feeder.process.wait()

    def times(self) -> list[StageTime]:
        """Of fetching, decoding and uploading thumbnails so far, in this order."""
        pairs = self._ended_times + sum(feeder.times for feeder in self._feeders.values())
        return [
            StageTime(name, int(images), busy_s / self._job.feeders)
            for name, (images, busy_s) in zip((FETCH, DECODE, THUMBNAILS), pairs, strict=True)
        ]

    @property
    def thumbnail_bytes(self) -> int:
        """Of the thumbnails made so far."""
        made = sum(feeder.thumbnail_bytes for feeder in self._feeders.values())
        return self._ended_thumbnail_bytes + made

    # What follows runs in the event loop, one message after the other.

    def wake(self) -> None:
        """Grant and hand out soon: once for all that happens in this round of the loop."""
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_woken = False
        if self._is_stopped:
            return
        try:
            for kind in self._asked:
                self._grant(kind)
            while self._hungry and self._hand_out(self._hungry[0]):
                self._hungry.popleft()
        except Exception as error:
            self.fail(error)
        if not self._left and not self._under_way and not self.done.done():
            self.done.set_result(None)

    def _grant(self, kind: str) -> None:
        asked = self._asked[kind]
        while asked:
            feeder, row, amount = asked[0]
            place = self._held[kind].take(row, amount)
            if place is None:
                return
            asked.popleft()
            feeder.lines.send("granted", kind, row, place)

    def _hand_out(self, feeder: Feeder) -> bool:
        """Give a feeder more rows. False if too much is under way to give it all that it wants."""
        given: list[tuple[object, ...]] = []
        wanted = self._wanted()
        while self._left and len(feeder.rows) < wanted:
            if len(self._under_way) >= self._window:
                break
            row = self._next.popleft() if self._next else next(self._rows, None)
            if row is None:
                self._left = 0
                break
            size = min(row.listed.size, self._job.max_object_bytes)
            if self._held[FILES].take(row.row, size) is None:
                self._next.appendleft(row)
                break
            self._left -= 1
            self._under_way.add(row.row)
            feeder.rows[row.row] = row
            given.append((row.row, *row.listed))
        if given:
            feeder.lines.send("rows", given)
        return not self._left or len(feeder.rows) >= wanted

    def _wanted(self) -> int:
        """How many rows a feeder has at once: few towards the end, so that all have some."""
        return max(1, min(self._job.ahead, self._left // self._job.feeders))

    def _receive(self, number: int, kind: str, *values: object) -> None:
        if self._is_stopped:
            return
        try:
            getattr(self, f"_on_{kind}")(self._feeders[number], *values)
        except Exception as error:
            self.fail(error)

    def _on_ready(self, feeder: Feeder) -> None:
        feeder.is_ready = True
        self._hungry.append(feeder)
        self.wake()

    def _on_ask(self, feeder: Feeder, kind: str, row: int, amount: int) -> None:
        self._asked[kind].append((feeder, row, amount))
        self._grant(kind)

    def _on_image(
        self,
        feeder: Feeder,
        number: int,
        height: int,
        width: int,
        with_clip_input: bool,
        is_rotated: bool,
    ) -> None:
        row = self._prepared(feeder, number)
        place = self._memory.places[self._places.place(number) :]
        there = views(place, height, width, with_clip_input)
        self._take(row, Prepared(*there, b"", is_rotated))

    def _on_failed(self, feeder: Feeder, number: int, reason: str, changed: bool) -> None:
        self._take(self._prepared(feeder, number), NotEmbedded(reason, changed))

    def _prepared(self, feeder: Feeder, number: int) -> Row:
        """The row that a feeder has done; it holds no file any more."""
        self._idle_ends = 0
        for kind in (FILES, UNZIPPED):
            self._held[kind].release(number)
        row = feeder.rows.pop(number)
        if feeder not in self._hungry and len(feeder.rows) <= self._wanted() // 2:
            self._hungry.append(feeder)
        self.wake()
        return row

    def _on_did(self, feeder: Feeder, pairs: list[list[float]], thumbnail_bytes: int) -> None:
        feeder.times, feeder.thumbnail_bytes = np.array(pairs), thumbnail_bytes

    def _on_say(self, feeder: Feeder, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _on_stop(self, feeder: Feeder, message: str, is_traceback: bool) -> None:
        raise RuntimeError(message) if is_traceback else IngestError(message)

    def _on_lost(self, feeder: Feeder) -> None:
        """A feeder has ended: name the image that it was at, let others do its rows."""
        code = feeder.process.wait()
        how = how_it_ended(code)
        del self._feeders[feeder.number]
        self._ended_times += feeder.times
        self._ended_thumbnail_bytes += feeder.thumbnail_bytes
        for kind, asked in self._asked.items():
            self._asked[kind] = deque(ask for ask in asked if ask[0] is not feeder)
        self._hungry = deque(other for other in self._feeders.values() if other.is_ready)
        for number in feeder.rows:
            self.release(number)
        at = feeder.rows.pop(int(self._memory.marks[feeder.number]), None)
        self._idle_ends += at is None
        cannot_start = not feeder.is_ready and code > 0
        if cannot_start or self._idle_ends > IDLE_ENDS:
            raise IngestError(
                f"A process that decodes images {how}{'' if cannot_start else ', as others before'}"
                ": run the same command again, or add --decode_in threads, which needs no such "
                "processes."
            )
        self._left += len(feeder.rows)
        self._next.extend(feeder.rows.values())
        if at is None:
            tqdm.write(f"A process that decodes images {how}; it is replaced.", file=sys.stderr)
        else:
            self._blame(at, how)
        task = asyncio.ensure_future(self._start(feeder.number))
        self._starting.add(task)
        task.add_done_callback(self._started)

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
            self._next.append(row)
        else:
            self._under_way.add(row.row)
            self._take(row, NotEmbedded(f"the process that decoded it {how}, {TRIES} times"))

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.fail(error)


def how_it_ended(code: int) -> str:
    """What a process did, from its returncode: "was ended by SIGSEGV"."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
