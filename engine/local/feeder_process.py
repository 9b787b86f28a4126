"""What a feeder runs: it fetches and decodes the rows that it is given, uploads thumbnails.

It is started by feeders.py and ends when its connection ends. Messages that it gets:

    job      the fields of a Job; once, first
    rows     a list of rows, each [row, name, size, crc32c, generation]
    granted  kind, row, place: what it asked for may be held

Messages that it sends:

    ready    it takes rows
    ask      kind, row, amount: the row needs so many bytes of this kind
    image    row, height, width, whether CLIP's input is there, whether it carries an EXIF rotation:
             the image is in its place
    failed   row, reason, whether the object changed: the row has no image
    did      images and seconds busy of fetch, decode and thumbnails, and bytes of
             thumbnails, so far
    say      a line for the user
    stop     message, whether it is a traceback: the run cannot go on
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator
from functools import partial
from typing import NamedTuple

import numpy as np

from common.errors import IngestError
from dataset.state import Row
from engine.decode import CLIP_BYTES, NotEmbedded, Prepared
from engine.local.messages import Lines
from engine.local.shared_memory import NOTHING, SharedMemory
from engine.prepare import Preparation
from gcs import ListedObject
from storage.pace import FIRST_RATE, MIN_RATE, WritePace

FILES, UNZIPPED, PIXELS = "files", "unzipped", "pixels"  # what a row holds bytes of
GATHER_S = 0.02  # between two times that a feeder sends: rows ahead keep it busy meanwhile
TOLD_S = 1.0  # between two messages with what it did, and one when no row is left


class Job(NamedTuple):
    """What a feeder needs to know. It is the same for all feeders of a run."""

    image_bucket: str
    index_bucket: str | None  # none in a trial, which uploads no thumbnails
    index_id: str
    feeders: int
    ahead: int  # rows that a feeder has at once; it decodes one of them at a time
    max_pixels: int
    max_object_bytes: int
    with_clip_inputs: bool


class GrantedMemory:
    """What rows may hold, as the process with the models grants it: a budget of all feeders.

    It is held until that process takes it back: when the row failed, or is embedded.
    """

    def __init__(self, lines: Lines, places: np.ndarray) -> None:
        self._lines, self._places = lines, places
        self._asked: dict[tuple[str, int], asyncio.Future[int]] = {}

    @contextlib.asynccontextmanager
    async def file(self, row: Row) -> AsyncIterator[None]:
        yield  # granted with the row

    @contextlib.asynccontextmanager
    async def unzipped(self, row: Row, size: int) -> AsyncIterator[None]:
        await self._ask(UNZIPPED, row, size)
        yield

    @contextlib.asynccontextmanager
    async def pixels(self, row: Row, count: int) -> AsyncIterator[np.ndarray]:
        size = 3 * count + CLIP_BYTES
        place = await self._ask(PIXELS, row, size)
        yield self._places[place : place + size]

    async def _ask(self, kind: str, row: Row, amount: int) -> int:
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked[kind, row.row] = granted
        self._lines.send("ask", kind, row.row, amount)
        return await granted

    def granted(self, kind: str, row: int, place: int) -> None:
        """Receive an answer."""
        self._asked.pop((kind, row)).set_result(place)


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


class Feeder:
    """The program of a feeder."""

    def __init__(self, number: int, memory: SharedMemory) -> None:
        self._mark = memory.marks[number : number + 1]
        # A feeder has nothing to save. The decoder may be at an image for seconds.
        self._lines = Lines(
            {"job": self._begin, "rows": self._add, "granted": self._grant},
            lost=lambda: os._exit(0),
            gather_s=GATHER_S,
        )
        self._memory = GrantedMemory(self._lines, memory.places)
        self._rows: asyncio.Queue[Row] = asyncio.Queue()
        self._left = 0  # rows that are under way
        self._told = 0.0

    async def run(self, connection: socket.socket) -> None:
        """Work until the connection ends, and with it this process."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._lines, sock=connection)
        sys.stderr = Messages(self._lines)
        await loop.create_future()

    def _begin(self, *job: object) -> None:
        self._work = asyncio.create_task(self._prepare(Job(*job)))  # type: ignore[arg-type]

    def _add(self, rows: list[list[object]]) -> None:
        self._left += len(rows)
        for number, *listed in rows:
            self._rows.put_nowait(Row(number, ListedObject(*listed)))  # type: ignore[arg-type]

    def _grant(self, kind: str, row: int, place: int) -> None:
        self._memory.granted(kind, row, place)

    async def _prepare(self, job: Job) -> None:
        try:
            self._preparation = Preparation(
                job.image_bucket,
                job.index_bucket,
                job.index_id,
                decode_workers=1,
                memory=self._memory,
                max_pixels=job.max_pixels,
                max_object_bytes=job.max_object_bytes,
                with_clip_inputs=job.with_clip_inputs,
                at_once=job.ahead,
                fetches=job.ahead,
                uploads=job.ahead,
                pace=WritePace(FIRST_RATE / job.feeders, MIN_RATE / job.feeders),
                mark=self._set_mark,
            )
            async with self._preparation:
                self._lines.send("ready")
                await asyncio.gather(*(self._travel() for _ in range(job.ahead)))
        except IngestError as error:
            self._lines.send("stop", error.message, False)
        except Exception:
            self._lines.send("stop", traceback.format_exc(), True)

    def _set_mark(self, row: Row | None) -> None:
        self._mark[0] = NOTHING if row is None else row.row

    async def _travel(self) -> None:
        """Prepare one row after the other."""
        while True:
            row = await self._rows.get()
            await self._preparation.deliver(row, partial(self._tell, row))

    async def _tell(self, row: Row, image: Prepared | NotEmbedded) -> None:
        self._left -= 1
        if not self._left or time.monotonic() > self._told + TOLD_S:
            self._told = time.monotonic()
            self._tell_what_it_did()
        if isinstance(image, NotEmbedded):
            self._lines.send("failed", row.row, *image)
        else:
            height, width = image.pixels.shape[:2]
            has_clip_input = image.clip_input is not None
            self._lines.send("image", row.row, height, width, has_clip_input, image.is_rotated)

    def _tell_what_it_did(self) -> None:
        times = [time[1:] for time in self._preparation.times()]
        self._lines.send("did", times, self._preparation.thumbnail_bytes)


def main() -> None:
    """Run a feeder: its number, its connection and the memory are in the command."""
    number, connection, memory = map(int, sys.argv[1:])
    feeder = Feeder(number, SharedMemory(memory))
    asyncio.run(feeder.run(socket.socket(fileno=connection)))
