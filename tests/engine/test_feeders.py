"""Feeding by processes: the results of threads, and what becomes of processes that end."""

import asyncio
import gzip
import io
import os
import re
import signal
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from engine import feeders, threads
from engine.stages import PAGE, Area, NoRoom
from testing.embedders import FakeEmbedder
from testing.photographs import picture
from tests.harness import TRAIN, VAL, ended, feeders_of, is_running, is_stopped, pictures, wait_for
from tests.stand_in import Rule

DOWNLOAD, THUMBNAIL = r"GET /storage/.*alt=media", r"POST /upload/.*name=thumbnails"
IN_PROCESSES = "--decode_in", "processes", "--decode_workers", "1"
# Of a feeder: an image of these bytes ends it, or is never decoded.
ODD_DECODER = """
import ctypes, os, pathlib, time
from PIL import Image
plain = Image.open
def open(file, *args, **options):
    if file.getvalue() == b"crash":
        ctypes.string_at(0)
    if file.getvalue() == b"hang":
        pathlib.Path(os.environ["PYTHONPATH"], "hangs").touch()
        time.sleep(600)
    return plain(file, *args, **options)
Image.open = open
"""
STOPPED_AT_FIRST = """
import os, pathlib, signal
here = pathlib.Path(os.environ["PYTHONPATH"], "started")
if not here.exists():
    here.touch()
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_results_are_those_of_threads_and_each_image_is_fetched_once(
    undisturbed, fresh, storage, where
):
    fresh.ingest("--decode_in", where, "--decode_workers", "2", storage=storage)
    fresh.assert_same(undisturbed)
    for pattern in (DOWNLOAD, THUMBNAIL):
        counts = Counter(asked.path for asked in storage.requests(pattern))
        assert (len(counts), set(counts.values())) == (TRAIN + VAL, {1})
    stages = {stage["name"]: stage["images"] for stage in fresh.report()["stages"]}
    assert stages == dict.fromkeys(("fetch", "decode", "models", "thumbnails"), TRAIN + VAL)


def test_a_trial_in_processes(fresh, storage):
    fresh.ingest("--trial", "4", *IN_PROCESSES, storage=storage, server="")
    assert storage.requests(THUMBNAIL) == []
    assert fresh.report("trial.json")["trial"]["forecast"]["thumbnail_bytes"] > 0


def turned():
    """A photograph whose EXIF data ask to turn it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(io.BytesIO(picture(4))).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_odd_and_bad_images_are_as_in_threads(make_world, tmp_path):
    objects = {
        **pictures(2, 1),
        "train/tall.png": picture(1, (20, 500), "PNG"),
        "train/zipped.jpg": gzip.compress(picture(2)),
        "train/text.jpg": b"no image",
        "train/empty.jpg": b"",
        "train/turned.jpg": turned(),
        "train/cut.jpg": picture(3)[:-150],
        "val/large.jpg": np.random.default_rng(0).bytes(70_000),
    }
    made = [make_world(objects, "threads")]
    made.append(made[0].again(tmp_path / "processes"))
    for each, options in zip(made, ((), IN_PROCESSES), strict=True):
        done = each.ingest("--skip_bad_images", *options, FAKE_OBJECT_BYTES="60000")
        assert "EXIF rotations in 1 image of those embedded now" in done.stderr
    one, other = (each.failed() for each in made)
    assert one == other and len(one) == 4
    made[1].assert_same(made[0])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_leaves_no_process_and_the_same_command_continues(
    undisturbed, fresh, storage, servers, how
):
    storage.rules = [Rule(DOWNLOAD, "hold", after=12)]
    env = {"storage": storage, "FAKE_CHECKPOINT_S": "0.05"}
    process = fresh.start(*IN_PROCESSES, **env, popen={"start_new_session": True})
    wait_for(lambda: len(fresh.done()) >= 4)
    pids = feeders_of(process.pid)
    os.killpg(process.pid, how)  # as a terminal does
    assert ended(process).exit_code == {signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    wait_for(lambda: not any(map(is_running, pids)))
    assert pids
    storage.rules = []
    before = fresh.done()
    fresh.assert_done_is_done()
    storage.asked.clear()
    fresh.ingest(*IN_PROCESSES, **env)
    assert len(storage.requests(DOWNLOAD)) == TRAIN + VAL - len(before)
    fresh.assert_same(undisturbed)


def test_images_in_the_models_keep_their_memory_when_their_feeder_ends(
    undisturbed, fresh, storage, monkeypatch
):
    """The next feeder has other memory."""
    killed, start = [], FakeEmbedder.start
    decoded, views = [], feeders.views
    monkeypatch.setattr(feeders, "views", lambda *image: decoded.append(1) or views(*image))
    storage.rules = [Rule(DOWNLOAD, "hold", after=8)]

    def kill_first(self, images, clip_inputs):
        if not killed:
            killed.extend(feeders_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)
            wait_for(lambda: set(feeders_of(os.getpid())) - set(killed))
            before = len(decoded)
            storage.release()
            wait_for(lambda: len(decoded) > before)  # other images, by the other feeder
        return start(self, images, clip_inputs)

    monkeypatch.setattr(FakeEmbedder, "start", kill_first)
    done = fresh.ingest(*IN_PROCESSES, storage=storage)
    assert "was ended by SIGKILL" in done.stderr
    fresh.assert_same(undisturbed)


def assert_only_the_odd_image_fails(content, how, make_world, tmp_path):
    """In a run with one odd image, and feeders that crash or hang at it."""
    (tmp_path / "sitecustomize.py").write_text(ODD_DECODER)
    made = make_world({**pictures(8, 2), "train/t0003b.jpg": content})
    done = made.ingest("--skip_bad_images", *IN_PROCESSES, PYTHONPATH=str(tmp_path))
    assert f"decoded train/t0003b.jpg {how}; the image is tried once more." in done.stderr
    assert made.failed() == {"train/t0003b.jpg": f"the process that decoded it {how}, 2 times"}
    assert len(made.done()) == 10
    made.assert_done_is_done()


def test_an_image_that_crashes_the_decoder_fails_alone_and_is_named(make_world, tmp_path):
    assert_only_the_odd_image_fails(b"crash", "was ended by SIGSEGV", make_world, tmp_path)


class Deadline(float):
    """A deadline that is over when `is_over` says so of the seconds, and not before."""

    def __new__(cls, is_over):
        return super().__new__(cls, 120)

    def __init__(self, is_over):
        self.is_over = is_over

    def __lt__(self, seconds):
        return self.is_over(seconds)


@pytest.fixture
def deadline(monkeypatch):
    def change(is_over):
        monkeypatch.setattr(threads, "DEADLINE_S", Deadline(is_over))
        monkeypatch.setattr(threads, "CHECK_S", 0.1)

    return change


def test_an_image_at_which_a_feeder_hangs_fails_alone_and_is_named(make_world, tmp_path, deadline):
    """The process runs on, and would tell of that every second."""
    hangs = tmp_path / "hangs"

    def is_over(seconds):
        over = seconds > 2 and hangs.exists()
        if over:
            hangs.unlink()
        return over

    deadline(is_over)
    assert_only_the_odd_image_fails(b"hang", "took more than 120 s", make_world, tmp_path)


def test_a_feeder_that_is_stopped_is_replaced(undisturbed, fresh, tmp_path, deadline):
    (tmp_path / "sitecustomize.py").write_text(STOPPED_AT_FIRST)
    deadline(lambda seconds: any(map(is_stopped, feeders_of(os.getpid()))))
    done = fresh.ingest(*IN_PROCESSES, PYTHONPATH=str(tmp_path))
    assert "A process that decodes images did not answer for more than" in done.stderr
    fresh.assert_same(undisturbed)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(DOWNLOAD, "403", after=5), r"Error: Reading gs://\S+: access is denied"),
        (Rule(THUMBNAIL, "lost"), r"attempt 2 of 8(.|\n)*Error: Writing gs://\S+/thumbnails/"),
    ],
)
def test_storage_that_fails_ends_the_run_with_the_sentence_of_the_feeder(
    fresh, storage, servers, rule, said
):
    storage.rules = [rule]
    done = fresh.run(*IN_PROCESSES, storage=storage)
    assert done.exit_code == 1
    assert re.search(said, done.stderr), done.stderr


def test_feeders_that_cannot_start_end_the_run(fresh, emulator_url, servers, monkeypatch):
    monkeypatch.setattr(feeders, "PROGRAM", "raise SystemExit(3)")
    done = fresh.run(*IN_PROCESSES)
    assert done.exit_code == 1
    assert "Error: A process that decodes images ended with exit code 3: run" in done.stderr


def test_feeders_that_are_always_killed_end_the_run(fresh, emulator_url, servers, monkeypatch):
    monkeypatch.setattr(feeders, "PROGRAM", "import os; os.kill(os.getpid(), 9)")
    done = fresh.run(*IN_PROCESSES)
    assert done.exit_code == 1
    assert done.stderr.count("was ended by SIGKILL; it is replaced.") == feeders.IDLE_ENDS
    assert "Error: A process that decodes images was ended by SIGKILL, as others" in done.stderr


@pytest.mark.parametrize(("pixels", "pages"), [(100_000, 3), (40 * 30, 0)])
def test_a_gpu_is_fed_by_processes_within_little_memory(
    undisturbed, fresh, monkeypatch, pixels, pages
):
    """The feeder has room for a single image, or for none: then threads decode all of them."""
    sizes, plain = [], feeders.new_memory
    monkeypatch.setattr(feeders, "new_memory", lambda size: sizes.append(size) or plain(size))
    monkeypatch.setattr(FakeEmbedder, "device", "cuda:0")
    monkeypatch.setattr(FakeEmbedder, "waiting_pixels", pixels)
    monkeypatch.setattr("engine.batches.QUIET_S", 0.0)
    fresh.ingest("--decode_workers", "1")
    assert sizes == [(1 + pages) * PAGE]
    fresh.assert_same(undisturbed)


@given(st.lists(st.integers(0, 7 * PAGE), max_size=12), st.randoms(use_true_random=False))
def test_images_never_overlap_and_each_gets_its_place(amounts, moments):
    """In any order of releases; what is larger than all places is left to another process."""

    async def run():
        memory = np.zeros(5 * PAGE, np.uint8)
        area = Area(memory)

        async def hold(number, amount):
            if amount > 5 * PAGE:
                with pytest.raises(NoRoom):
                    await area.hold(amount).__aenter__()
                return
            async with area.hold(amount) as place:
                assert len(place) == amount and not place.any()
                place[:] = number
                for _ in range(moments.randrange(5)):
                    await asyncio.sleep(0)
                assert (place == number).all()
                place[:] = 0

        holders = (hold(*pair) for pair in enumerate(amounts, 1))
        await asyncio.wait_for(asyncio.gather(*holders), 30)
        async with area.hold(5 * PAGE):
            pass

    asyncio.run(run())
