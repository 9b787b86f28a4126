"""The process that a feeder is: it fetches and decodes the rows that it gets, uploads thumbnails.

feeders.py starts it, and it ends when its connection ends. The messages between the two are lists:
their kind, then their values. They travel as lines of JSON, because a feeder decodes files of
strangers: what it sends must not run code elsewhere. A feeder gets

    rows     a list of rows, each [row, name, size, crc32c, generation]
    release  row: the models have its image

and sends

    ready    it takes rows
    image    row, where its pixels begin in the shared memory, whether CLIP's input follows them,
             its About
    failed   row, reason, whether the object changed: the row has no image
    left     row: the image is too large for the memory of a feeder
    did      images and seconds busy of fetch, decode and thumbnails, since the last such message;
             also the sign of life, which stays away while the decoder is at one image
    say      a line for the user
    stop     message, whether it is a traceback: the run cannot go on
"""

from __future__ import annotations

import asyncio
import io
import json
import mmap
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from common.errors import IngestError
from dataset.state import Row
from engine.decode import Decoded, NotEmbedded
from engine.stages import PAGE, Area, NoRoom
from engine.threads import CHECK_S, Job, Threads
from gcs import ListedObject

NOTHING = -1  # the mark of a feeder that decodes no row
SEND_S = 0.02  # messages of a feeder are sent together at these intervals, which costs less


def new_memory(size: int) -> int:
    """A file of that many bytes in memory. Its pages are taken when they are written to.

    It has no name in any file system, so it ends with the last process that uses it, however these
    end. It is no part of /dev/shm, which Docker limits to 64 MB.
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("forager-images")
    else:  # not on Linux
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.ftruncate(file, size)
    return file


class SharedMemory:
    """What a feeder shares with the process that started it: images, and a mark.

    The mark is the row that it decodes at the moment. It can be read after the feeder has crashed.
    The memory is there as long as an array shows it.
    """

    def __init__(self, file: int) -> None:
        """Map a file of `new_memory`, which may be closed then."""
        memory = mmap.mmap(file, 0)
        self.mark = np.frombuffer(memory, np.int64, 1)
        self.images = np.frombuffer(memory, np.uint8, offset=PAGE)


class Lines(asyncio.Protocol):
    """One end of a connection: `receive` is called with the kind and the values of each message.

    When the other process has closed its end, or has ended, that is a message of kind "lost".
    """

    def __init__(self, receive: Callable[..., None], *, gather_s: float = 0.0) -> None:
        """`gather_s` is how long a message may wait for others, to be sent with them."""
        self._receive, self._gather_s = receive, gather_s
        self._rest, self._unsent = b"", list[Any]()
        self._transport: asyncio.Transport | None = None  # None before and after the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            for message in json.loads(line.decode()):
                self._receive(*message)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
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

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._lines = Lines(self._receive, gather_s=SEND_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._untold = 0  # rows that it has not told of yet
        self._told = np.zeros((3, 2))  # of what its stages did

    async def run(self, connection: socket.socket, job: Job, ahead: int, file_bytes: int) -> None:
        """Work until the connection ends, and with it this process.

        It has up to `ahead` rows at once, and decodes one of them at a time.
        """
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._lines, sock=connection)
        sys.stderr = Messages(self._lines)
        await self._or_stop(self._serve(job, ahead, file_bytes))
        await loop.create_future()

    async def _serve(self, job: Job, ahead: int, file_bytes: int) -> None:
        """Make ready for rows, then tell every second what was done."""
        room = Area(self._memory.images)
        self._source = Threads(
            job, 1, ahead, room, file_bytes=file_bytes, is_feeder=True, mark=self._mark
        )
        async with self._source:
            self._lines.send("ready")
            before = NOTHING
            while True:
                await asyncio.sleep(CHECK_S)
                mark = int(self._memory.mark[0])
                if mark == NOTHING or mark != before:
                    self._tell_what_it_did()
                before = mark

    def _receive(self, kind: str, *values: Any) -> None:
        getattr(self, f"_on_{kind}")(*values)

    def _on_rows(self, rows: list[list[Any]]) -> None:
        self._untold += len(rows)
        for number, *listed in rows:
            work = self._or_stop(self._one(Row(number, ListedObject(*listed))))
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _on_release(self, row: int) -> None:
        self._source.release(row)

    def _on_lost(self) -> None:
        os._exit(0)  # it has nothing to save, and the decoder may be at an image for seconds

    async def _or_stop(self, work: Awaitable[None]) -> None:
        """Do some work. An error in it ends the run."""
        try:
            await work
        except IngestError as error:
            self._lines.send("stop", error.message, False)
        except Exception:
            self._lines.send("stop", traceback.format_exc(), True)

    async def _one(self, row: Row) -> None:
        try:
            await self._source.one(row, self._tell)
        except NoRoom:
            self._send("left", row.row)

    def _tell(self, row: Row, image: Decoded | NotEmbedded) -> None:
        if isinstance(image, NotEmbedded):
            self._send("failed", row.row, *image)
            return
        start = image.pixels.ctypes.data - self._memory.images.ctypes.data
        self._send("image", row.row, start, image.clip_input is not None, image.about)

    def _send(self, kind: str, *values: Any) -> None:
        """Send what became of a row; before the last one, what was done until then."""
        self._untold -= 1
        if not self._untold:
            self._tell_what_it_did()
        self._lines.send(kind, *values)

    def _tell_what_it_did(self) -> None:
        times = np.array([time[1:] for time in self._source.times()])
        self._lines.send("did", (times - self._told).tolist())
        self._told = times

    def _mark(self, row: Row | None) -> None:
        self._memory.mark[0] = NOTHING if row is None else row.row


def main() -> None:
    """Run a feeder: the files of its connection and its memory, limits and job are its command."""
    *numbers, job = sys.argv[1:]
    connection, memory, ahead, file_bytes = map(int, numbers)
    program = Program(SharedMemory(memory))
    work = program.run(socket.socket(fileno=connection), Job(**json.loads(job)), ahead, file_bytes)
    asyncio.run(work)
