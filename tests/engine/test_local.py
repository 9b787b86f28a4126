"""The stream on one machine: once through, and bounded everywhere."""

import asyncio
import re
import threading
from collections import Counter
from functools import partial

import pytest

import ingest
from engine.local.fed_pipeline import FedPipeline
from engine.local.pipeline import Pipeline
from engine.stages import Budget, Stage
from testing.embedders import FakeEmbedder
from testing.photographs import picture
from tests.stand_in import StandIn


def test_each_image_is_fetched_once_and_each_thumbnail_written_once(
    world, fast_models, emulator, monkeypatch
):
    world.put("v/v.jpg", *(f"t/{number}.jpg" for number in range(30)))
    with StandIn(emulator) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        assert world.run().exit_code == 0
        paths = Counter(asked.path for asked in storage.asked)
    fetched = {path: count for path, count in paths.items() if "alt=media" in path}
    written = {path: count for path, count in paths.items() if "name=thumbnails" in path}
    assert (len(fetched), set(fetched.values())) == (31, {1})
    assert (len(written), set(written.values())) == (31, {1})


def test_a_device_that_makes_clip_inputs_gets_pixels_alone(world, fast_models, monkeypatch):
    names = [f"t/{number}.jpg" for number in range(9)]
    world.put("v/v.jpg", *names)
    world.put(**{"t/tall.png": picture(0, (20, 50), "PNG")})
    fast_models.makes_clip_inputs = True
    result = world.run()
    assert result.exit_code == 0, result.output
    assert sum(fast_models.batches) == 11
    assert re.search(r"^embedding +\S+ s +11 ", result.stdout, re.M)
    assert "11 embedded now" in result.stdout


class Held(FakeEmbedder):
    """Holds every batch up until nothing more is fetched."""

    def __init__(self, storage):
        super().__init__()
        self.storage, self.seen = storage, []

    def start(self, images, clip_inputs):
        fetched = -1
        while fetched != self._fetched():
            fetched = self._fetched()
            threading.Event().wait(0.1)
        self.seen.append(fetched - sum(self.batches))
        return super().start(images, clip_inputs)

    def _fetched(self):
        return sum("alt=media" in asked.path for asked in self.storage.asked)


@pytest.mark.parametrize("kind", [Pipeline, FedPipeline])
def test_images_on_their_way_are_bounded_by_the_window(
    world, fast_models, emulator, monkeypatch, kind
):
    world.put("v/v.jpg", *(f"t/{number:02}.jpg" for number in range(23)))
    monkeypatch.setattr(ingest, "Pipeline", partial(kind, window=6))
    with StandIn(emulator) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        embedder = world.embedder = Held(storage)
        assert world.run().exit_code == 0
    assert 1 < max(embedder.seen) <= 6
    assert sum(embedder.batches) == 24


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_budget_is_never_overdrawn_and_everyone_gets_their_turn():
    async def main():
        budget, held, most, order = Budget(10), 0, 0, []

        async def take(number, amount):
            nonlocal held, most
            async with budget.hold(amount):
                order.append(number)
                held += min(amount, 10)
                most = max(most, held)
                await asyncio.sleep(0.001)
                held -= min(amount, 10)

        amounts = [3, 4, 9, 1, 10, 25, 2, 0, 7, 5]
        await asyncio.gather(*(take(*pair) for pair in enumerate(amounts)))
        return most, order

    most, order = run(main())
    assert most == 10
    assert order == list(range(10))


@pytest.mark.parametrize("granted", [False, True])
def test_a_budget_survives_cancelled_holders(granted):
    async def main():
        budget = Budget(10)

        async def take(amount, then=None):
            async with budget.hold(amount):
                await asyncio.sleep(0.01)
            if granted and then:
                then()  # in the very moment in which the second's turn has come

        first = asyncio.ensure_future(take(10, lambda: second.cancel()))
        second = asyncio.ensure_future(take(10))
        third = asyncio.ensure_future(take(10))
        await asyncio.sleep(0)
        if not granted:
            second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        return [first.cancelled(), second.cancelled(), third.cancelled()]

    assert run(main()) == [False, True, False]


def test_a_stage_lets_so_many_in_at_once_and_counts_them():
    async def main():
        stage, inside, most = Stage("fetch", 3), 0, 0

        async def visit(fail):
            nonlocal inside, most
            async with stage.slot():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1
                if fail:
                    raise ValueError

        await asyncio.gather(*(visit(n == 5) for n in range(9)), return_exceptions=True)
        return most, stage.time()

    most, time = run(main())
    assert most == 3
    assert (time.name, time.images) == ("fetch", 8)
    assert 0.03 <= time.busy_s < 0.3


def test_failures_are_said_once_each_up_to_ten(world, fast_models):
    world.put("v/v.jpg", **{f"t/{number:02}.jpg": b"no image" for number in range(12)})
    result = world.run("--skip_bad_images")
    assert result.exit_code == 0
    assert len(re.findall(r"Failed: t/\d\d\.jpg: not an image", result.stderr)) == 10
    assert "Further failures are listed at the end." in result.stderr
