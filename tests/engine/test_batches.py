"""Images on their way into the models: which become a batch, and when; what becomes of them."""

import asyncio
import threading

import numpy as np
import pytest

from bench.schedule import Device, coco_sizes, simulate
from dataset.arrays import Embedding
from dataset.quality import Quality
from engine.batches import Batches, Groups
from engine.decode import About, Decoded, NotEmbedded


def groups(**options):
    return Groups(lambda item: 4, **options)


def test_a_full_group_is_ready_at_once():
    waiting = groups(gather_s=10, quiet_s=10)
    for number in range(5):
        waiting.add("a", number, now=1.0)
    assert waiting.take(1.0) == [0, 1, 2, 3]
    assert waiting.take(1.0) == [] and waiting.ready_at() == 11.0


def test_a_group_waits_for_more_images_and_no_longer():
    waiting = groups(gather_s=3, quiet_s=100)
    waiting.add("a", 1, now=0.0)
    waiting.add("b", 2, now=2.0)
    assert waiting.take(2.9) == []
    assert waiting.take(3.0) == [1]
    assert waiting.take(3.0) == [] and waiting.ready_at() == 5.0


def test_nothing_waits_once_no_more_images_come():
    waiting = groups(gather_s=3, quiet_s=1)
    waiting.add("a", 1, now=0.0)
    waiting.add("b", 2, now=0.5)
    assert waiting.take(1.4) == []
    assert waiting.ready_at() == 1.5
    assert waiting.take(1.5) == [1] and waiting.take(1.5) == [2]
    assert waiting.ready_at() is None


def test_the_fullest_group_goes_first_then_the_overdue_one():
    waiting = groups(max_wait_s=5)
    waiting.add("a", "rare", now=0.0)
    for number in range(3):
        waiting.add("b", number, now=1.0)
    assert waiting.take(1.0) == [0, 1, 2]
    waiting.add("b", 3, now=6.0)
    waiting.add("b", 4, now=6.0)
    assert waiting.take(6.0) == ["rare"]


def test_threads_share_a_group_that_waits_alone():
    waiting = groups()
    for number in range(4):
        waiting.add("a", number, now=0.0)
    assert waiting.take(0.0, sharing=2) == [0, 1]


@pytest.mark.parametrize(("rate", "share"), [(4000, 0.85), (450, 0.95)])
def test_batches_of_coco_are_full_enough(rate, share):
    """As many images as COCO train2017 has: the more there are, the less new shapes cost."""
    figures = simulate(coco_sizes(118_287), Device(rate), arrivals=1e9)
    assert figures["device busy"] >= share
    assert figures["mean batch"] >= 24
    assert figures["padding"] <= 0.08


def test_ten_images_do_not_wait_for_others():
    figures = simulate(coco_sizes(10), Device(4000, new_shape_s=0.0), arrivals=1000)
    assert figures["longest wait, s"] < 0.1


def image(number, height=2, width=3):
    pixels = np.full((height, width, 3), number, np.uint8)
    about = About(width, height, False, 0, Quality(0, 0, 0, 0))
    return Decoded(pixels=pixels, clip_input=None, thumbnail=b"", about=about)


class NumberEmbedder:
    """Gives images the class that is their number, and notes every batch; `ready` holds it up."""

    workers = 1

    def __init__(self, device="cpu"):
        self.device, self.ready, self.seen = device, threading.Event(), []
        self.under_way = self.most = 0

    def group(self, height, width):
        return height, width

    def batch_size(self, height, width):
        return 4

    def start(self, images, clip_inputs):
        assert self.ready.wait(30)
        numbers = [int(pixels[0, 0, 0]) for pixels in images]
        self.seen.append(numbers)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return lambda: self.finish(numbers)

    def finish(self, numbers):
        self.under_way -= 1
        return [Embedding([np.array([number])], number) for number in numbers]


def run(embedder, images):
    """What becomes of images that are given at once, and the Batches."""

    async def main():
        loop = asyncio.get_running_loop()
        async with Batches(embedder, loop.create_future().set_exception) as running:
            results = [loop.create_future() for _ in images]
            for one, result in zip(images, results, strict=True):
                running.add(one, result.set_result)
            embedder.ready.set()
            return await asyncio.gather(*results), running

    return asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("same_group", [False, True])
def test_everyone_gets_the_embedding_of_their_own_image(same_group, monkeypatch):
    """Also where a group holds images of several sizes."""
    embedder = NumberEmbedder()
    if same_group:
        monkeypatch.setattr(embedder, "group", lambda height, width: None)
    results, running = run(embedder, [image(n, 2 + n % 3) for n in range(50)])
    assert [result.imagenet_class for result in results] == list(range(50))
    assert (running.time().name, running.time().images) == ("models", 50)
    assert max(map(len, embedder.seen)) == 4
    mixed = [len({number % 3 for number in numbers}) > 1 for numbers in embedder.seen]
    assert any(mixed) is same_group
    assert len(embedder.seen) <= 16  # they are full, but for the first and the last of each group


def test_threads_share_what_waits_alone(monkeypatch):
    embedder = NumberEmbedder()
    monkeypatch.setattr(embedder, "workers", 2)
    monkeypatch.setattr(embedder, "batch_size", lambda height, width: 8)
    run(embedder, [image(n) for n in range(9)])
    # Both threads may have begun with one image; neither takes all that is left.
    assert max(map(len, embedder.seen)) <= 5
    assert sorted(n for numbers in embedder.seen for n in numbers) == list(range(9))


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 1), ("cuda:0", 2)])
def test_a_gpu_is_given_batches_ahead(device, ahead):
    embedder = NumberEmbedder(device)
    run(embedder, [image(n) for n in range(20)])
    assert embedder.most == ahead


def test_an_image_too_large_for_memory_fails_alone():
    class Small(NumberEmbedder):
        def finish(self, numbers):
            if 2 in numbers:
                raise MemoryError
            return super().finish(numbers)

    results, running = run(Small(), [image(n) for n in range(4)])
    assert results.pop(2) == NotEmbedded("not enough memory to embed 3 x 2 pixels")
    assert [result.imagenet_class for result in results] == [0, 1, 3]
    assert running.time().images == 3


def lost(*_):
    raise RuntimeError("the device is lost")


@pytest.mark.parametrize(
    ("method", "broken", "error"),
    [
        *(("batch_size", lost, RuntimeError), ("start", lost, RuntimeError)),
        *(("finish", lost, RuntimeError), ("finish", lambda numbers: [], ValueError)),
    ],
)
def test_other_errors_end_the_run_and_leave_nobody_waiting(method, broken, error, monkeypatch):
    embedder = NumberEmbedder()
    embedder.ready.set()
    monkeypatch.setattr(embedder, method, broken)

    async def main():
        failure = asyncio.get_running_loop().create_future()
        async with Batches(embedder, failure.set_exception) as running:
            running.add(image(1), None)
            with pytest.raises(error):
                await failure
            with pytest.raises(error):
                running.add(image(1), None)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_leaving_early_ends_the_threads():
    async def main():
        embedder = NumberEmbedder()
        async with Batches(embedder, None) as running:
            running.add(image(1), lambda result: None)
            embedder.ready.set()
        return [thread.is_alive() for thread in running._threads]

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [False]
