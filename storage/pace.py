"""The rate of uploads: a ramp for a fresh prefix, and slower when storage asks for it.

Google's guidance: begin with up to 1,000 writes per second, double no faster than every 20 minutes.
429 and 503 ask for a lower rate of all writes, not only for a later retry of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from common.errors import TransientError

FIRST_RATE = 1000.0  # writes per second
DOUBLING_S = 20 * 60.0
MIN_RATE = 50.0  # writes per second, however many are refused
INTERVAL_S = 1.0  # between two adjustments of the rate
REFUSED_SHARE = 0.05  # of the writes in an interval; a smaller share does not lower the rate
BACK_OFF = 0.95  # the new rate, of the rate that storage accepted; at least half the old rate
GROWTH = 1.02  # per interval without such a share
BURST_S = 0.05  # writes that come late may catch up this much
TOO_FAST = (429, 503)  # HTTP statuses


def least_seconds(writes: int) -> float:
    """The seconds that writes under a fresh prefix take, as the rate grows from FIRST_RATE."""
    return DOUBLING_S * math.log2(1 + writes * math.log(2) / (FIRST_RATE * DOUBLING_S))


class WritePace:
    """The rate of all writes together. Times are those of the running event loop."""

    def __init__(self, first_rate: float = FIRST_RATE, min_rate: float = MIN_RATE) -> None:
        """Processes that write at the same time share both rates."""
        self._first_rate, self._min_rate = first_rate, min_rate
        self.rate = first_rate
        self._accepted = self._refused = 0  # in this interval
        self._start: float | None = None
        self._next = self._interval = 0.0

    @contextlib.asynccontextmanager
    async def turn(self, writes: int = 1) -> AsyncIterator[None]:
        """Wait for the turn of these writes, then count what becomes of them in the `with` block.

        Several writes go in one request, and are counted as all accepted or all refused.
        """
        await self._wait(writes)
        try:
            yield
        except TransientError as error:
            self._refused += writes * (error.status in TOO_FAST)
            raise
        self._accepted += writes

    async def _wait(self, writes: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._start is None:
            self._start = self._interval = self._next = now
        if now - self._interval >= INTERVAL_S:
            self._adjust(now)
        self._next = max(self._next, now - BURST_S)
        wait = self._next - now
        self._next += writes / self.rate
        if wait > 0:
            await asyncio.sleep(wait)

    def _adjust(self, now: float) -> None:
        """Set the rate from what storage accepted and refused in the interval that ends."""
        assert self._start is not None
        if self._refused > REFUSED_SHARE * (self._accepted + self._refused):
            accepted = self._accepted / (now - self._interval)
            self.rate = max(self._min_rate, self.rate / 2, BACK_OFF * accepted)
        else:
            ramp = self._first_rate * 2 ** ((now - self._start) / DOUBLING_S)
            self.rate = min(ramp, self.rate * GROWTH)
        self._accepted = self._refused = 0
        self._interval = now
