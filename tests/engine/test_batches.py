"""Images on their way into the models."""

import asyncio
import threading

import numpy as np
import pytest

from engine import batches
from engine.batches import Batches


def image(number, height=2, width=3):
    return np.full((height, width, 3), number, np.uint8)


class Recorder:
    """Returns the numbers of its images, and notes every batch; `ready` holds it up."""

    device = "cpu"
    workers = 1
    clip_batch_size = 3
    makes_clip_inputs = False

    def __init__(self, ready=None):
        self.ready, self.seen = ready or threading.Event(), []
        if ready is None:
            self.ready.set()

    def resnet_batch_size(self, height, width):
        return 4

    def start_resnet(self, images):
        assert self.ready.wait(30)
        self.seen.append(("ResNet", [int(pixels[0, 0, 0]) for pixels in images]))
        numbers = np.array([pixels[0, 0, 0] for pixels in images], np.float32)
        return lambda: (numbers[:, None], numbers[:, None] + 0.5, numbers.astype(np.int64))

    def start_clip(self, inputs):
        assert self.ready.wait(30)
        self.seen.append(("CLIP", [int(pixels[0, 0, 0]) for pixels in inputs]))
        numbers = np.array([pixels[0, 0, 0] for pixels in inputs], np.float32)
        return lambda: numbers[:, None]

    def start_both(self, images):
        rows = self.start_resnet(images)()
        return lambda: (*rows, rows[0] + 0.25)


def run(embedder, images, model="resnet"):
    """The results of all images, given at once, and the Batches."""

    async def main():
        async with Batches(embedder) as running:
            tasks = [asyncio.ensure_future(getattr(running, model)(pixels)) for pixels in images]
            await asyncio.sleep(0)  # all are enqueued
            embedder.ready.set()
            return await asyncio.gather(*tasks), running

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_everyone_gets_the_result_of_their_own_image():
    results, running = run(Recorder(), [image(n, 2 + n % 3) for n in range(50)])
    assert [(int(a[0]), float(b[0]), int(c)) for a, b, c in results] == [
        (n, n + 0.5, n) for n in range(50)
    ]
    assert running.images == {"ResNet": 50, "CLIP": 0, "both": 0}


def test_clip_has_its_own_batches():
    embedder = Recorder(threading.Event())
    results, running = run(embedder, [image(n, 224, 224) for n in range(8)], "clip")
    assert [float(result[0]) for result in results] == list(range(8))
    assert max(len(numbers) for _, numbers in embedder.seen) == 3
    assert running.images == {"ResNet": 0, "CLIP": 8, "both": 0}


def test_both_models_may_share_a_batch_of_pixels():
    embedder = Recorder(threading.Event())
    embedder.makes_clip_inputs = True
    results, running = run(embedder, [image(n) for n in range(8)], "both")
    assert [(int(a[0]), int(c), float(d[0])) for a, _, c, d in results] == [
        (n, n, n + 0.25) for n in range(8)
    ]
    assert max(len(numbers) for _, numbers in embedder.seen) == 4
    assert [(stage.name, stage.images) for stage in running.times()] == [("models", 8)]


def test_the_first_of_clip_does_not_wait_for_a_full_batch():
    embedder = Recorder(threading.Event())

    async def main():
        async with Batches(embedder) as running:
            both = [running.clip(image(1, 224, 224))]
            both += [running.resnet(image(n)) for n in range(9)]
            tasks = [asyncio.ensure_future(one) for one in both]
            await asyncio.sleep(0)  # all are enqueued
            embedder.ready.set()
            await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(main(), 60))
    models = [model for model, _ in embedder.seen]
    assert models[0] == "CLIP"  # the oldest, of three that fit


def test_threads_share_what_waits_alone():
    embedder = Recorder(threading.Event())
    embedder.workers, embedder.clip_batch_size = 2, 8
    run(embedder, [image(n, 224, 224) for n in range(9)], "clip")
    # Both threads may have begun with one image; no one takes all that is left.
    assert max(len(numbers) for _, numbers in embedder.seen) <= 5
    assert sorted(n for _, numbers in embedder.seen for n in numbers) == list(range(9))


def test_batches_hold_images_of_one_size_up_to_the_limit():
    embedder = Recorder(threading.Event())
    run(embedder, [image(n, 2 + n % 2) for n in range(20)])
    sizes = [{number % 2 for number in numbers} for _, numbers in embedder.seen]
    assert all(len(size) == 1 for size in sizes)
    assert max(len(numbers) for _, numbers in embedder.seen) == 4
    assert len(embedder.seen) <= 7  # the first may have begun with what was there


def test_a_lone_image_does_not_wait_for_a_full_batch():
    results, _ = run(Recorder(), [image(7)])
    assert int(results[0][2]) == 7


def test_an_image_that_waits_too_long_goes_first(monkeypatch):
    monkeypatch.setattr(batches, "MAX_WAIT_S", -1.0)  # all are overdue: the oldest goes first
    embedder = Recorder(threading.Event())
    run(embedder, [image(0), image(1, 5), *(image(n, 7) for n in range(2, 10))])
    first = [numbers[0] for _, numbers in embedder.seen]
    assert first.index(1) < first.index(2)


def test_full_groups_go_before_others():
    embedder = Recorder(threading.Event())
    run(embedder, [image(0), image(1, 5), *(image(n, 7) for n in range(2, 10))])
    first = [numbers[0] for _, numbers in embedder.seen]
    assert first.index(2) < first.index(1)


@pytest.mark.parametrize("when", ["start", "finish"])
def test_an_error_reaches_everyone_in_its_batch_and_nobody_else(when):
    class Failing(Recorder):
        def start_resnet(self, images):
            result = super().start_resnet(images)
            if images[0].shape[0] != 9:
                return result
            if when == "start":
                raise RuntimeError("no luck")

            def fail():
                raise RuntimeError("no luck")

            return fail

    async def main():
        async with Batches(Failing()) as running:
            tasks = [running.resnet(image(n, 9 if n < 3 else 2)) for n in range(6)]
            return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(asyncio.wait_for(main(), 60))
    assert [str(result) for result in results[:3]] == ["no luck"] * 3
    assert [int(result[2]) for result in results[3:]] == [3, 4, 5]


class NoSize(Recorder):
    def resnet_batch_size(self, height, width):
        raise RuntimeError("the device is lost")


class TooFew(Recorder):
    def start_resnet(self, images):
        return lambda: (np.zeros((0, 1)), np.zeros((0, 1)), np.zeros(0))


@pytest.mark.parametrize(("embedder", "error"), [(NoSize, RuntimeError), (TooFew, ValueError)])
def test_a_broken_embedder_leaves_nobody_waiting(embedder, error):
    async def main():
        async with Batches(embedder()) as running:
            for _ in range(2):
                with pytest.raises(error):
                    await running.resnet(image(1))

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize(("device", "ahead"), [("cpu", 1), ("cuda:0", 2)])
def test_a_gpu_is_given_batches_ahead(device, ahead):
    class Counting(Recorder):
        def __init__(self):
            super().__init__(threading.Event())
            self.device, self.started, self.most = device, 0, 0

        def start_resnet(self, images):
            result = super().start_resnet(images)
            self.started += 1
            self.most = max(self.most, self.started)

            def finish():
                self.started -= 1
                return result()

            return finish

    embedder = Counting()
    run(embedder, [image(n) for n in range(20)])
    assert embedder.most == ahead


def test_leaving_early_ends_the_threads():
    async def main():
        embedder = Recorder(threading.Event())
        async with Batches(embedder) as running:
            task = asyncio.ensure_future(running.resnet(image(1)))
            await asyncio.sleep(0.01)
            embedder.ready.set()
            task.cancel()
        return [thread.is_alive() for thread in running._threads]

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [False]
