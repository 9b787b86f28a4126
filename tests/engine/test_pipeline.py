"""Images on their way from listing to record: each once, bounded, failures said."""

import re
import threading
import time

import pytest

from engine import decode, threads
from testing.embedders import FakeEmbedder
from testing.photographs import picture
from tests.harness import wait_for
from tests.stand_in import StandIn


def test_a_device_that_makes_clip_inputs_gets_pixels_alone(world, fast_models, monkeypatch):
    names = [f"t/{number}.jpg" for number in range(9)]
    world.put("v/v.jpg", *names)
    world.put(**{"t/tall.png": picture(0, (20, 50), "PNG")})
    fast_models.makes_clip_inputs = True
    result = world.ingest()
    assert sum(fast_models.batches) == 11
    assert re.search(r"^embedding +\S+ s +11 ", result.stdout, re.M)
    assert "11 embedded now" in result.stdout


WINDOW, IMAGES = 6, 24


class Held(FakeEmbedder):
    """Holds every batch up until the window is full, and looks whether more is fetched."""

    def __init__(self, storage):
        super().__init__()
        self.storage, self.seen = storage, []

    def start(self, images, clip_inputs):
        done = sum(self.batches)
        wait_for(lambda: self._fetched() >= min(IMAGES, done + WINDOW))
        time.sleep(0.1)  # in which more would be fetched
        self.seen.append(self._fetched() - done)
        return super().start(images, clip_inputs)

    def _fetched(self):
        return sum("alt=media" in asked.path for asked in self.storage.asked)


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_images_on_their_way_are_bounded_by_the_window(world, emulator, where):
    world.put("v/v.jpg", *(f"t/{number:02}.jpg" for number in range(IMAGES - 1)))
    with StandIn(emulator) as storage:
        embedder = world.embedder = Held(storage)
        world.ingest("--decode_in", where, storage=storage, FAKE_WINDOW=f"{WINDOW}")
    assert max(embedder.seen) == WINDOW
    assert sum(embedder.batches) == IMAGES


def test_failures_are_said_once_each_up_to_ten(world, fast_models):
    world.put("v/v.jpg", **{f"t/{number:02}.jpg": b"no image" for number in range(12)})
    result = world.ingest("--skip_bad_images")
    assert len(re.findall(r"Failed: t/\d\d\.jpg: not an image", result.stderr)) == 10
    assert "Further failures are listed at the end." in result.stderr


def test_an_image_that_takes_long_in_a_thread_is_named(world, fast_models, monkeypatch):
    warned, said, plain = threading.Event(), threads.warn, decode.open_image

    def slow(data, max_pixels):
        if data == b"slow":
            assert warned.wait(60)
        return plain(data, max_pixels)

    def warn(message):
        said(message)
        if "slow" in message:  # on a busy machine, others take long too
            warned.set()

    monkeypatch.setattr(decode, "open_image", slow)
    monkeypatch.setattr(threads, "warn", warn)
    monkeypatch.setattr(threads, "CHECK_S", 0.01)
    monkeypatch.setattr(threads, "DEADLINE_S", 0.1)
    world.put("v/v.jpg", "t/a.jpg", **{"t/slow.jpg": b"slow"})
    result = world.ingest("--skip_bad_images", "--decode_workers", "2")
    assert "Decoding t/slow.jpg has taken more than 0 s and goes on." in result.stderr
