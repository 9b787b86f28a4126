"""The stages of an image's path: what bounds them, what they count, what limits a run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

FETCH, DECODE, MODELS, THUMBNAILS = "fetch", "decode", "models", "thumbnails"
PAGE = 64 << 10  # bytes; images begin at multiples of it in an Area
BUSY_SHARE = 0.7  # of the time: a stage that is busier is called the bottleneck
ADVICE = {
    FETCH: "Run closer to the bucket.",
    DECODE: "Try --decode_workers {more} on a machine with more cores.",
    MODELS: "A GPU (or a faster one), or several with --engine ray, would help.",
    THUMBNAILS: "Run closer to the index bucket.",
}

T = TypeVar("T")


class StageTime(NamedTuple):
    """What one stage did: the mean seconds that its slots (threads, connections) were busy."""

    name: str
    images: int
    busy_s: float

    @property
    def rate(self) -> float:
        """Images per second while busy: what the stage could do alone. 0 if it was never busy."""
        return self.images / self.busy_s if self.busy_s >= 0.001 else 0.0

    def busy_share(self, wall_s: float) -> float:
        """The share of the time in which all its slots were busy."""
        return min(1.0, self.busy_s / max(wall_s, 0.001))


class Bottleneck(NamedTuple):
    """The stage that slows the others down, and what would help."""

    stage: str
    busy_share: float
    advice: str


def limiting_stage(
    times: Sequence[StageTime], wall_s: float, decode_workers: int
) -> Bottleneck | None:
    """The stage that was busy nearly all of the time that embedding took, or None."""
    busiest = max(times, key=lambda stage: stage.busy_s, default=None)
    if busiest is None or busiest.busy_share(wall_s) < BUSY_SHARE:
        return None
    advice = ADVICE[busiest.name].format(more=2 * decode_workers)
    return Bottleneck(busiest.name, busiest.busy_share(wall_s), advice)


class Stage:
    """Lets up to `slots` images in at once, in order of arrival; counts them and their time."""

    def __init__(self, name: str, slots: int) -> None:
        self._name, self._slots = name, slots
        self._images, self._busy_s = 0, 0.0
        self._free = asyncio.Semaphore(slots)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        async with self._free:
            start = time.perf_counter()
            try:
                yield
                self._images += 1
            finally:
                self._busy_s += time.perf_counter() - start

    def time(self) -> StageTime:
        return StageTime(self._name, self._images, self._busy_s / self._slots)


class NoRoom(Exception):
    """More than the limit was asked for: a process that has more must do it."""


class Budget:
    """Bytes that may be held at once, granted in order of arrival.

    A request for more than the limit is granted when nothing else is held; a `strict` budget raises
    NoRoom for it.
    """

    def __init__(self, limit: int, *, strict: bool = False) -> None:
        self._limit = self._left = limit
        self._strict = strict
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        if self._strict and amount > self._limit:
            raise NoRoom
        amount = min(amount, self._limit)
        async with self._turn:
            while amount > self._left:
                self._freed.clear()
                await self._freed.wait()
            self._left -= amount
        try:
            yield
        finally:
            self._left += amount
            self._freed.set()


class Area:
    """Memory for images; each decoded image holds pages of it."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self._pages = bytearray(len(memory) // PAGE)  # 0 where a page is free
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()

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


async def together(*work: Awaitable[T]) -> list[T]:
    """The results of all. When one fails, the others are cancelled before its error is raised."""
    async with _started(work) as tasks:
        return await asyncio.gather(*tasks)


async def until_one_ends(*work: Awaitable[object]) -> None:
    """Wait until the first ends, then cancel the others. Raises the error of the first."""
    async with _started(work) as tasks:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()


@contextlib.asynccontextmanager
async def _started(work: Sequence[Awaitable[T]]) -> AsyncIterator[Sequence[asyncio.Future[T]]]:
    """Tasks that do this work; at the end of the `with` block they are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
