"""The rate of writes: a ramp for a fresh prefix, and a common slow-down when storage refuses."""

import asyncio
import collections

import pytest

from common.errors import TransientError
from common.retries import Retries
from storage.pace import DOUBLING_S, WritePace
from tests.harness import in_virtual_time

UPLOADS = 64  # at once, as in the ingest


class Bucket:
    """Takes up to `limit` writes in any second and refuses the others; an answer takes 50 ms."""

    def __init__(self, limit):
        self.limit, self.taken, self.refused = limit, collections.deque(), 0
        self.names = set()

    async def write(self, name):
        loop = asyncio.get_running_loop()
        while self.taken and self.taken[0] <= loop.time() - 1:
            self.taken.popleft()
        accepted = len(self.taken) < self.limit
        if accepted:
            self.taken.append(loop.time())
        await asyncio.sleep(0.05)
        if not accepted:
            self.refused += 1
            raise TransientError("HTTP 429", 429)
        self.names.add(name)


async def upload(bucket, pace, count):
    """Seconds for `count` uploads, each tried up to eight times."""
    names, retries = iter(range(count)), Retries()

    async def attempt(name):
        async with pace.turn():
            await bucket.write(name)

    async def worker():
        for name in names:
            await retries.call("Writing", attempt, name)

    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.gather(*(worker() for _ in range(UPLOADS)))
    return loop.time() - start


@pytest.mark.parametrize(("limit", "count"), [(100, 3000), (300, 6000), (700, 20_000)])
def test_a_bucket_that_refuses_above_a_rate_loses_no_upload(limit, count, capsys):
    bucket = Bucket(limit)
    seconds = in_virtual_time(upload(bucket, WritePace(), count))
    assert len(bucket.names) == count
    assert seconds <= 1.3 * count / limit
    assert bucket.refused <= 0.2 * count


def test_writes_begin_at_the_rate_for_a_fresh_prefix():
    seconds = in_virtual_time(upload(Bucket(10**9), WritePace(first_rate=200), 2000))
    assert 2000 / 200 * 0.98 <= seconds <= 2000 / 200 * 1.02


def test_the_rate_doubles_every_twenty_minutes():
    pace = WritePace()

    async def run():
        for _ in range(int(2 * DOUBLING_S)):
            async with pace.turn():
                await asyncio.sleep(1)

    in_virtual_time(run())
    assert pace.rate == pytest.approx(4000, rel=0.01)


def test_a_slow_program_does_not_wait():
    async def run():
        pace, loop = WritePace(), asyncio.get_running_loop()
        for _ in range(100):
            await asyncio.sleep(0.1)
            before = loop.time()
            async with pace.turn():
                assert loop.time() == before

    in_virtual_time(run())


def test_a_few_refusals_are_left_to_their_retries():
    pace = WritePace()

    async def run():
        for number in range(400):
            await asyncio.sleep(0.01)
            try:
                async with pace.turn():
                    if number % 40 == 0:
                        raise TransientError("HTTP 503", 503)
            except TransientError:
                pass

    in_virtual_time(run())
    assert pace.rate >= 1000
