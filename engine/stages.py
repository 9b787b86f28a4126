"""The stages of an image's path: what bounds them, what they count, what limits a run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, NamedTuple

FETCH, DECODE, MODELS, THUMBNAILS = "fetch", "decode", "models", "thumbnails"
BUSY_SHARE = 0.7  # of the time: a stage that is busier is called the bottleneck
ADVICE = {
    FETCH: "Run closer to the bucket.",
    DECODE: "Try --decode_workers {more} on a machine with more cores.",
    MODELS: "A GPU (or a faster one), or several with --engine ray, would help.",
    THUMBNAILS: "Run closer to the index bucket.",
}


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
        self.name, self.slots = name, slots
        self.images, self.seconds = 0, 0.0
        self._free = asyncio.Semaphore(slots)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        async with self._free:
            start = time.perf_counter()
            try:
                yield
                self.images += 1
            finally:
                self.seconds += time.perf_counter() - start

    def time(self) -> StageTime:
        return StageTime(self.name, self.images, self.seconds / self.slots)


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
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        if self._strict and amount > self._limit:
            raise NoRoom
        amount = min(amount, self._limit)
        await self._take(amount)
        try:
            yield
        finally:
            self._left += amount
            self._hand_out()

    async def _take(self, amount: int) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, granted))
        self._hand_out()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._left += amount
            self._hand_out()
            raise

    def _hand_out(self) -> None:
        while self._waiting:
            amount, granted = self._waiting[0]
            if granted.cancelled():
                self._waiting.popleft()
            elif amount <= self._left:
                self._waiting.popleft()
                self._left -= amount
                granted.set_result(None)
            else:
                return


async def together(*coroutines: Awaitable[Any]) -> list[Any]:
    """The results of all. When one fails, the others are cancelled before its error is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def until_one_ends(*work: Awaitable[Any]) -> None:
    """Wait until the first ends, then cancel the others. Raises the error of the first."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
