"""Feeding by processes: the results of threads, and what becomes of processes that end."""

import asyncio
import gzip
import io
import json
import os
import re
import signal
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from engine import feeders, threads
from engine.feeder import PAGE, Area, SharedMemory
from engine.stages import NoRoom
from testing.embedders import FakeEmbedder
from testing.photographs import picture
from tests.fault_proxy import FaultProxy, Rule
from tests.harness import (
    TRAIN,
    VAL,
    Emulated,
    dataset,
    ended,
    environment,
    feeders_of,
    is_running,
    is_stopped,
    pictures,
    run_here,
    start,
    wait_for,
)

DOWNLOAD, THUMBNAIL = r"GET /storage/.*alt=media", r"POST /upload/.*name=thumbnails"
IN_PROCESSES = "--decode_in", "processes", "--decode_workers", "1"
# Of a feeder: an image of these bytes ends it, or stops it, while it is decoded.
ODD_DECODER = """
import ctypes, os, signal, time
from PIL import Image
plain = Image.open
def open(file, *args, **options):
    if file.getvalue() == b"crash":
        ctypes.string_at(0)
    if file.getvalue() == b"stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)  # until all threads have stopped
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


@pytest.fixture
def storage(emulator_url):
    with FaultProxy(emulator_url) as proxy:
        yield proxy


def test_results_are_those_of_threads_and_each_image_is_fetched_once(
    undisturbed, fresh, storage, servers
):
    command = fresh.command("--decode_in", "processes", "--decode_workers", "2")
    done = run_here(command, environment(storage.url, servers["B"]))
    assert done.returncode == 0, done.stderr
    fresh.assert_same(undisturbed, servers["B"])
    for pattern in (DOWNLOAD, THUMBNAIL):
        counts = Counter(seen.target for seen in storage.requests(pattern))
        assert (len(counts), set(counts.values())) == (TRAIN + VAL, {1})
    report = json.loads((fresh.work / "report.json").read_text())
    stages = {stage["name"]: stage["images"] for stage in report["stages"]}
    assert stages == dict.fromkeys(("fetch", "decode", "models", "thumbnails"), TRAIN + VAL)


def test_a_trial_in_processes(fresh, storage):
    options = ["--trial", "4", "--decode_in", "processes", "--decode_workers", "2"]
    done = run_here(fresh.command(*options), environment(storage.url, ""))
    assert done.returncode == 0, done.stderr
    assert storage.requests(THUMBNAIL) == []
    report = json.loads((fresh.work / "trial.json").read_text())
    assert report["trial"]["forecast"]["thumbnail_bytes"] > 0


def turned():
    """A photograph whose EXIF data ask to turn it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(io.BytesIO(picture(4))).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_odd_and_bad_images_are_as_in_threads(emulator_url, servers, tmp_path):
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
    env = environment(emulator_url, servers["B"], FAKE_OBJECT_BYTES="60000")
    made = [dataset(Emulated(emulator_url), tmp_path / "threads", objects)]
    made.append(made[0].again(tmp_path / "processes"))
    for each, options in zip(made, ((), IN_PROCESSES), strict=True):
        done = run_here(each.command("--skip_bad_images", *options), env)
        assert done.returncode == 0, done.stderr
        assert "EXIF rotations in 1 image of those embedded now" in done.stderr
    one, other = (json.loads((each.work / "failed.json").read_text()) for each in made)
    assert one == other and len(one) == 4
    made[1].assert_same(made[0], servers["B"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_leaves_no_process_and_the_same_command_continues(
    undisturbed, fresh, storage, servers, how
):
    storage.rules = [Rule(DOWNLOAD, "hold", after=12)]
    env = environment(storage.url, servers["B"], FAKE_CHECKPOINT_S="0.05")
    process = start(fresh.command(*IN_PROCESSES), env, start_new_session=True)
    wait_for(lambda: len(fresh.done()) >= 4)
    pids = feeders_of(process.pid)
    os.killpg(process.pid, how)  # as a terminal does
    assert ended(process).returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    wait_for(lambda: not any(map(is_running, pids)))
    assert pids
    storage.rules = []
    before = fresh.done()
    fresh.assert_done_is_done()
    storage.seen.clear()
    done = run_here(fresh.command(*IN_PROCESSES), env)
    assert done.returncode == 0, done.stderr
    assert len(storage.requests(DOWNLOAD)) == TRAIN + VAL - len(before)
    fresh.assert_same(undisturbed, servers["B"])


def test_a_killed_feeder_is_replaced(undisturbed, fresh, storage, servers):
    storage.rules = [Rule(DOWNLOAD, "hold", after=12)]
    env = environment(storage.url, servers["B"])
    process = start(fresh.command(*IN_PROCESSES), env)
    wait_for(lambda: storage.counts["hold"])
    (feeder,) = feeders_of(process.pid)
    os.kill(feeder, signal.SIGKILL)
    storage.release()
    done = ended(process)
    assert done.returncode == 0, done.stderr
    # Whether it was at an image just then is chance.
    said = re.findall(r"was ended by SIGKILL; (it is replaced|the image is tried)", done.stderr)
    assert len(said) == 1, done.stderr
    fresh.assert_same(undisturbed, servers["B"])


def test_images_in_the_models_keep_their_memory_when_their_feeder_ends(
    undisturbed, fresh, emulator_url, servers, monkeypatch
):
    """The next feeder of that memory starts when these images are released."""
    killed, start = [], FakeEmbedder.start

    def kill_first(self, images, clip_inputs):
        if not killed:
            killed.extend(feeders_of(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(3)  # in which another feeder would decode other images
        return start(self, images, clip_inputs)

    monkeypatch.setattr(FakeEmbedder, "start", kill_first)
    done = run_here(fresh.command(*IN_PROCESSES), environment(emulator_url, servers["B"]))
    assert done.returncode == 0, done.stderr
    assert "was ended by SIGKILL" in done.stderr
    fresh.assert_same(undisturbed, servers["B"])


def with_odd_image(content, emulator_url, tmp_path):
    """A dataset with one odd image, and feeders that it crashes or stops."""
    (tmp_path / "sitecustomize.py").write_text(ODD_DECODER)
    objects = {**pictures(8, 2), "train/t0003b.jpg": content}
    return dataset(Emulated(emulator_url), tmp_path / "made", objects)


def assert_only_the_odd_image_failed(made, done, how):
    assert done.returncode == 0, done.stderr
    assert f"decoded train/t0003b.jpg {how}; the image is tried once more." in done.stderr
    (failed,) = json.loads((made.work / "failed.json").read_text())
    reason = f"the process that decoded it {how}, 2 times"
    assert failed == {"object": "train/t0003b.jpg", "reason": reason}
    assert len(made.done()) == 10
    made.assert_done_is_done()


def test_an_image_that_crashes_the_decoder_fails_alone_and_is_named(
    emulator_url, servers, tmp_path
):
    made = with_odd_image(b"crash", emulator_url, tmp_path)
    env = environment(emulator_url, servers["B"], PYTHONPATH=str(tmp_path))
    done = run_here(made.command("--skip_bad_images", *IN_PROCESSES), env)
    assert_only_the_odd_image_failed(made, done, "was ended by SIGSEGV")


class OverWhenStopped(float):
    """A deadline that is over when the feeder is stopped, and not before."""

    def __lt__(self, seconds):
        return any(map(is_stopped, feeders_of(os.getpid())))


@pytest.fixture
def stopped_feeders_are_overdue(monkeypatch):
    monkeypatch.setattr(threads, "DEADLINE_S", OverWhenStopped(120))
    monkeypatch.setattr(threads, "CHECK_S", 0.1)


def test_an_image_at_which_a_feeder_hangs_fails_alone_and_is_named(
    emulator_url, servers, tmp_path, stopped_feeders_are_overdue
):
    made = with_odd_image(b"stop", emulator_url, tmp_path)
    env = environment(emulator_url, servers["B"], PYTHONPATH=str(tmp_path))
    done = run_here(made.command("--skip_bad_images", *IN_PROCESSES), env)
    assert_only_the_odd_image_failed(made, done, "took more than 120 s")


def test_a_feeder_that_is_stopped_is_replaced(
    undisturbed, fresh, emulator_url, servers, tmp_path, stopped_feeders_are_overdue
):
    (tmp_path / "sitecustomize.py").write_text(STOPPED_AT_FIRST)
    env = environment(emulator_url, servers["B"], PYTHONPATH=str(tmp_path))
    done = run_here(fresh.command(*IN_PROCESSES), env)
    assert done.returncode == 0, done.stderr
    assert "A process that decodes images did not answer for more than" in done.stderr
    fresh.assert_same(undisturbed, servers["B"])


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
    done = run_here(fresh.command(*IN_PROCESSES), environment(storage.url, servers["B"]))
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr


def test_feeders_that_cannot_start_end_the_run(fresh, emulator_url, servers, monkeypatch):
    monkeypatch.setattr(feeders, "PROGRAM", "raise SystemExit(3)")
    done = run_here(fresh.command(*IN_PROCESSES), environment(emulator_url, servers["B"]))
    assert done.returncode == 1
    assert "Error: A process that decodes images ended with exit code 3: run" in done.stderr


def test_feeders_that_are_always_killed_end_the_run(fresh, emulator_url, servers, monkeypatch):
    monkeypatch.setattr(feeders, "PROGRAM", "import os; os.kill(os.getpid(), 9)")
    done = run_here(fresh.command(*IN_PROCESSES), environment(emulator_url, servers["B"]))
    assert done.returncode == 1
    assert done.stderr.count("was ended by SIGKILL; it is replaced.") == feeders.IDLE_ENDS
    assert "Error: A process that decodes images was ended by SIGKILL, as others" in done.stderr


@pytest.mark.parametrize(("pixels", "pages"), [(100_000, 3), (40 * 30, 0)])
def test_a_gpu_is_fed_by_processes_within_little_memory(
    undisturbed, fresh, emulator_url, servers, monkeypatch, pixels, pages
):
    """The feeder has room for a single image, or for none: then threads decode all of them."""
    sizes, create = [], SharedMemory.create
    monkeypatch.setattr(SharedMemory, "create", lambda size: sizes.append(size) or create(size))
    monkeypatch.setattr(FakeEmbedder, "device", "cuda:0")
    monkeypatch.setattr(FakeEmbedder, "waiting_pixels", pixels)
    monkeypatch.setattr("engine.batches.QUIET_S", 0.0)
    env = environment(emulator_url, servers["B"])
    done = run_here(fresh.command("--decode_workers", "1"), env)
    assert done.returncode == 0, done.stderr
    assert sizes == [pages * PAGE]
    fresh.assert_same(undisturbed, servers["B"])


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
