"""Images on their way from listing to record: each once, bounded, failures said."""

import re
import threading
from collections import Counter
from functools import partial

import pytest

from engine import decode, threads
from engine.pipeline import Pipeline
from steps import embed
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


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_images_on_their_way_are_bounded_by_the_window(
    world, fast_models, emulator, monkeypatch, where
):
    world.put("v/v.jpg", *(f"t/{number:02}.jpg" for number in range(23)))
    monkeypatch.setattr(embed, "Pipeline", partial(Pipeline, window=6))
    with StandIn(emulator) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        embedder = world.embedder = Held(storage)
        assert world.run("--decode_in", where).exit_code == 0
    assert 1 < max(embedder.seen) <= 6
    assert sum(embedder.batches) == 24


def test_failures_are_said_once_each_up_to_ten(world, fast_models):
    world.put("v/v.jpg", **{f"t/{number:02}.jpg": b"no image" for number in range(12)})
    result = world.run("--skip_bad_images")
    assert result.exit_code == 0
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
        warned.set()

    monkeypatch.setattr(decode, "open_image", slow)
    monkeypatch.setattr(threads, "warn", warn)
    monkeypatch.setattr(threads, "CHECK_S", 0.01)
    monkeypatch.setattr(threads, "DEADLINE_S", 0.1)
    world.put("v/v.jpg", "t/a.jpg", **{"t/slow.jpg": b"slow"})
    result = world.run("--skip_bad_images", "--decode_workers", "2")
    assert result.exit_code == 0, result.output
    assert "Decoding t/slow.jpg has taken more than 0 s and goes on." in result.stderr
