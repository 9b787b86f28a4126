"""The process that a feeder is: it fetches and decodes the rows that it gets, uploads thumbnails.

feeders.py starts it, and it ends when its connection ends. The messages between the two are lines
of JSON, because a feeder decodes files of strangers: what it sends must not run code elsewhere. A
message is a list: its kind, then its values. A feeder gets

    job      a Job, and a Share of the memory; once, first
    rows     a list of rows, each [row, name, size, crc32c, generation]
    release  a list of rows: the models have their images

and sends

    ready    it takes rows
    image    row, where its pixels begin in the shared memory, [height, width], whether CLIP's
             input follows them, whether it carries an EXIF rotation
    failed   row, reason, whether the object changed: the row has no image
    left     row: the image is too large for the memory of a feeder
    did      images and seconds busy of fetch, decode and thumbnails, and bytes of thumbnails, all
             so far; also a sign of life
    say      a line for the user
    stop     message, whether it is a traceback: the run cannot go on
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import mmap
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import IngestError
from dataset.state.rows import Row
from engine.decode import Decoded, NotEmbedded
from engine.stages import NoRoom
from engine.threads import CHECK_S, Job, Threads
from gcs import ListedObject

PAGE = 64 << 10  # bytes; images begin at multiples in the shared memory
MAX_FEEDERS = PAGE // 8
NOTHING = -1  # the mark of a feeder that decodes no row
SEND_S = 0.02  # messages of a feeder are sent together at these intervals, which costs less


class SharedMemory:
    """Memory for images, and a mark for each feeder: the row that it decodes at the moment.

    It has no name in any file system, so it ends with the last process that uses it, however these
    end. It is no part of /dev/shm, which Docker limits to 64 MB. A mark can be read after its
    feeder has crashed.
    """

    def __init__(self, file: int) -> None:
        """Map the memory of a file descriptor that `create` returned in another process."""
        self.file = file
        memory = mmap.mmap(file, os.fstat(file).st_size)
        self.marks = np.frombuffer(memory, np.int64, MAX_FEEDERS)
        self.images = np.frombuffer(memory, np.uint8, offset=PAGE)

    @classmethod
    def create(cls, size: int) -> SharedMemory:
        """New memory, `size` bytes for images. Its pages are taken when they are written to."""
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("forager-images")
        else:  # not on Linux
            with tempfile.TemporaryFile() as unnamed:
                file = os.dup(unnamed.fileno())
        os.ftruncate(file, PAGE + size)
        return cls(file)

    def close(self) -> None:
        """Close the file. The memory itself goes with the last array that shows it."""
        os.close(self.file)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one feeder may use. All feeders have the same."""

    ahead: int  # rows that it has at once; it decodes one of them at a time
    file_bytes: int
    image_bytes: int  # of the shared memory, at image_bytes times its number


class Area:
    """A feeder's part of the shared memory; each decoded image holds pages of it."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self._pages = bytearray(len(memory) // PAGE)  # 0 where a page is free
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[np.ndarray]:
        """So many bytes in a `with` block, granted in order of arrival.

        Raises:
            NoRoom: the whole area has fewer.
        """
        pages = -(-amount // PAGE)
        if pages > len(self._pages):
            raise NoRoom
        async with self._turn:
            while (first := self._pages.find(bytes(pages))) < 0:
                self._freed.clear()
                await self._freed.wait()
            self._pages[first : first + pages] = b"\1" * pages
        try:
            yield self._memory[first * PAGE : first * PAGE + amount]
        finally:
            self._pages[first : first + pages] = bytes(pages)
            self._freed.set()


class Lines(asyncio.Protocol):
    """One end of a connection: `receive` is called with the kind and the values of each message.

    When the other process has closed its end, or has ended, that is a message of kind "lost".
    """

    def __init__(self, receive: Callable[..., None], *, gather_s: float = 0.0) -> None:
        """`gather_s` is how long a message may wait for others, to be sent with them."""
        self._receive, self._gather_s = receive, gather_s
        self._rest, self._unsent = b"", list[Any]()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            for message in json.loads(line.decode()):
                self._receive(*message)

    def connection_lost(self, error: Exception | None) -> None:
        self._receive("lost")

    def send(self, kind: str, *values: Any) -> None:
        """Send a message, without waiting until the other process reads it."""
        if not self._unsent:
            asyncio.get_running_loop().call_later(self._gather_s, self._flush)
        self._unsent.append((kind, *values))

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(self._unsent).encode() + b"\n")
        self._unsent.clear()

    def close(self) -> None:
        """Close this end at once."""
        if self._transport is not None:
            self._transport.abort()


class Messages(io.TextIOBase):
    """A standard error whose lines the other process prints, above its progress bar.

    Any thread may write to it.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines, self._rest = lines, ""
        self._loop = asyncio.get_running_loop()

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._loop.call_soon_threadsafe(self._lines.send, "say", line)
        return len(text)


class Program:
    """What runs in the process."""

    def __init__(self, number: int, memory: SharedMemory) -> None:
        self._number, self._memory = number, memory
        self._lines = Lines(self._receive, gather_s=SEND_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = 0  # rows that it has not told of yet

    async def run(self, connection: socket.socket) -> None:
        """Work until the connection ends, and with it this process."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._lines, sock=connection)
        sys.stderr = Messages(self._lines)
        await loop.create_future()

    def _receive(self, kind: str, *values: Any) -> None:
        getattr(self, f"_on_{kind}")(*values)

    def _on_job(self, job: dict[str, Any], share: dict[str, Any]) -> None:
        self._do(self._serve(Job(**job), Share(**share)))

    def _on_rows(self, rows: list[list[Any]]) -> None:
        self._left += len(rows)
        for number, *listed in rows:
            self._do(self._one(Row(number, ListedObject(*listed))))

    def _on_release(self, rows: list[int]) -> None:
        for row in rows:
            self._source.release(row)

    def _on_lost(self) -> None:
        os._exit(0)  # it has nothing to save, and the decoder may be at an image for seconds

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task. An error in it ends the run."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._did)

    def _did(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = task.exception()
        if isinstance(error, IngestError):
            self._lines.send("stop", error.message, False)
        elif error:
            self._lines.send("stop", "".join(traceback.format_exception(error)), True)

    async def _serve(self, job: Job, share: Share) -> None:
        """Make ready for rows, then tell every second what was done: the parent sees life in it."""
        start = share.image_bytes * self._number
        room = Area(self._memory.images[start : start + share.image_bytes])
        files = share.file_bytes
        self._source = Threads(
            job, 1, share.ahead, room, file_bytes=files, is_feeder=True, mark=self._mark
        )
        async with self._source:
            self._lines.send("ready")
            while True:
                await asyncio.sleep(CHECK_S)
                self._tell_what_it_did()

    async def _one(self, row: Row) -> None:
        try:
            await self._source.one(row, self._tell)
        except NoRoom:
            self._count_told()
            self._lines.send("left", row.row)

    def _tell(self, row: Row, image: Decoded | NotEmbedded) -> None:
        self._count_told()
        if isinstance(image, NotEmbedded):
            self._lines.send("failed", row.row, *image)
            return
        start = image.pixels.ctypes.data - self._memory.images.ctypes.data
        size, has_clip_input = (image.height, image.width), image.clip_input is not None
        self._lines.send("image", row.row, start, size, has_clip_input, image.is_rotated)

    def _count_told(self) -> None:
        self._left -= 1
        if not self._left:
            self._tell_what_it_did()

    def _tell_what_it_did(self) -> None:
        times = [time[1:] for time in self._source.times()]
        self._lines.send("did", times, self._source.thumbnail_bytes)

    def _mark(self, row: Row | None) -> None:
        self._memory.marks[self._number] = NOTHING if row is None else row.row


def main() -> None:
    """Run a feeder: its number, its connection and the memory are in the command."""
    number, connection, memory = map(int, sys.argv[1:])
    program = Program(number, SharedMemory(memory))
    asyncio.run(program.run(socket.socket(fileno=connection)))
