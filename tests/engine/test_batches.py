"""Images on their way into the models: which become a batch, and when; what becomes of them."""

import asyncio
import threading

import numpy as np
import pytest

from bench.schedule import Device, coco_sizes, simulate
from common.errors import ImageError
from dataset.arrays import Embedding
from engine.batches import Batches, Groups
from engine.decode import Decoded


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
    return Decoded(
        pixels=pixels, clip_input=None, thumbnail=b"", thumbnail_bytes=0, is_rotated=False
    )


async def embedded(batches, image):
    """The embedding of an image, or the error as which it ends."""
    result = asyncio.get_running_loop().create_future()
    batches.add(image, lambda outcome: result.done() or result.set_result(outcome))
    outcome = await result
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class Batch:
    def __init__(self, numbers):
        self.numbers = numbers

    def finish(self):
        return [Embedding([np.array([number])], number) for number in self.numbers]


class NumberEmbedder:
    """Returns the numbers of its images, and notes every batch; `ready` holds it up."""

    device, workers, max_pixels, makes_clip_inputs = "cpu", 1, 10**9, False

    def __init__(self, ready=None):
        self.ready, self.seen = ready or threading.Event(), []
        if ready is None:
            self.ready.set()

    def group(self, height, width):
        return height, width

    def batch_size(self, height, width):
        return 4

    def start(self, images, clip_inputs):
        assert self.ready.wait(30)
        self.seen.append([int(pixels[0, 0, 0]) for pixels in images])
        return Batch(self.seen[-1])


def run(embedder, images):
    """The classes of all images, given at once, and the Batches."""

    async def main():
        async with Batches(embedder) as running:
            tasks = [asyncio.ensure_future(embedded(running, one)) for one in images]
            await asyncio.sleep(0)  # all are enqueued
            embedder.ready.set()
            return [result.imagenet_class for result in await asyncio.gather(*tasks)], running

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_everyone_gets_the_embedding_of_their_own_image():
    classes, running = run(NumberEmbedder(), [image(n, 2 + n % 3) for n in range(50)])
    assert classes == list(range(50))
    assert (running.time().name, running.time().images) == ("models", 50)


def test_threads_share_what_waits_alone():
    embedder = NumberEmbedder(threading.Event())
    embedder.workers = 2
    embedder.batch_size = lambda height, width: 8
    run(embedder, [image(n) for n in range(9)])
    # Both threads may have begun with one image; neither takes all that is left.
    assert max(map(len, embedder.seen)) <= 5
    assert sorted(n for numbers in embedder.seen for n in numbers) == list(range(9))


def test_batches_hold_images_of_one_group_up_to_the_limit():
    embedder = NumberEmbedder(threading.Event())
    run(embedder, [image(n, 2 + n % 2) for n in range(20)])
    assert all(len({number % 2 for number in numbers}) == 1 for numbers in embedder.seen)
    assert max(map(len, embedder.seen)) == 4
    assert len(embedder.seen) <= 7  # the first may have begun with what was there


def test_a_group_may_hold_images_of_several_sizes():
    embedder = NumberEmbedder(threading.Event())
    embedder.group = lambda height, width: None
    classes, _ = run(embedder, [image(n, 2 + n) for n in range(8)])
    assert classes == list(range(8)) and max(map(len, embedder.seen)) == 4


def test_a_lone_image_does_not_wait_for_a_full_batch():
    assert run(NumberEmbedder(), [image(7)])[0] == [7]


@pytest.mark.parametrize("when", ["start", "finish"])
def test_an_error_reaches_everyone_in_its_batch_and_nobody_else(when):
    class FailingBatch:
        def finish(self):
            raise RuntimeError("no luck")

    class Failing(NumberEmbedder):
        def start(self, images, clip_inputs):
            batch = super().start(images, clip_inputs)
            if images[0].shape[0] != 9:
                return batch
            if when == "start":
                raise RuntimeError("no luck")
            return FailingBatch()

    async def main():
        async with Batches(Failing()) as running:
            tasks = [embedded(running, image(n, 9 if n < 3 else 2)) for n in range(6)]
            return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(asyncio.wait_for(main(), 60))
    assert [str(result) for result in results[:3]] == ["no luck"] * 3
    assert [result.imagenet_class for result in results[3:]] == [3, 4, 5]


def test_an_image_too_large_for_memory_fails_alone():
    class Small(NumberEmbedder):
        def start(self, images, clip_inputs):
            batch = super().start(images, clip_inputs)
            if any(int(pixels[0, 0, 0]) == 2 for pixels in images):
                raise MemoryError
            return batch

    embedder = Small(threading.Event())

    async def main():
        async with Batches(embedder) as running:
            tasks = [asyncio.ensure_future(embedded(running, image(n))) for n in range(4)]
            await asyncio.sleep(0)  # all are enqueued
            embedder.ready.set()
            return await asyncio.gather(*tasks, return_exceptions=True), running.time().images

    results, count = asyncio.run(asyncio.wait_for(main(), 60))
    assert isinstance(results[2], ImageError)
    assert str(results[2]) == "not enough memory to embed 3 x 2 pixels"
    assert [r.imagenet_class for r in results[:2] + results[3:]] == [0, 1, 3] and count == 3


class NoSize(NumberEmbedder):
    def batch_size(self, height, width):
        raise RuntimeError("the device is lost")


class TooFew(NumberEmbedder):
    def start(self, images, clip_inputs):
        return Batch([])


@pytest.mark.parametrize(("embedder", "error"), [(NoSize, RuntimeError), (TooFew, ValueError)])
def test_a_broken_embedder_leaves_nobody_waiting(embedder, error):
    async def main():
        async with Batches(embedder()) as running:
            for _ in range(2):
                with pytest.raises(error):
                    await embedded(running, image(1))

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 1), ("cuda:0", 2)])
def test_a_gpu_is_given_batches_ahead(device, ahead):
    class Counting(NumberEmbedder):
        def __init__(self):
            super().__init__(threading.Event())
            self.device, self.under_way, self.most = device, 0, 0

        def start(self, images, clip_inputs):
            numbers = super().start(images, clip_inputs).numbers
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            return CountingBatch(numbers)

    class CountingBatch(Batch):
        def finish(self):
            embedder.under_way -= 1
            return super().finish()

    embedder = Counting()
    run(embedder, [image(n) for n in range(20)])
    assert embedder.most == ahead


def test_leaving_early_ends_the_threads():
    async def main():
        embedder = NumberEmbedder(threading.Event())
        async with Batches(embedder) as running:
            task = asyncio.ensure_future(embedded(running, image(1)))
            await asyncio.sleep(0)
            embedder.ready.set()
            task.cancel()
        return [thread.is_alive() for thread in running._threads]

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [False]
