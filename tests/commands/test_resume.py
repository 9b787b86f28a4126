"""Stopping in every way and at every moment: the same command goes on, and nothing is lost."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest

from dataset import arrays, lists
from dataset.state import rows
from testing.photographs import picture
from tests.fault_proxy import FaultProxy, Rule
from tests.harness import (
    TRAIN,
    VAL,
    Emulated,
    dataset,
    ended,
    environment,
    pictures,
    run,
    run_here,
    start,
    wait_for,
)

DOWNLOAD, THUMBNAIL = r"GET /storage/.*alt=media", r"POST /upload/.*name=thumbnails"
FILE, CREATE = r"POST /upload/.*uploadType=multipart", r"POST /api/create_dataset_v2"
SMALL_STEPS = {"FAKE_WINDOW": "4", "FAKE_CHECKPOINT_S": "0.05"}
INTERRUPTED = "Interrupted: the same command continues where this one stopped.\n"


@pytest.fixture
def storage(emulator_url):
    with FaultProxy(emulator_url) as proxy:
        yield proxy


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_with_130_and_one_line(undisturbed, fresh, storage, servers, number):
    storage.rules = [Rule(DOWNLOAD, "hold", after=12)]
    process = start(fresh.command(), environment(storage.url, servers["B"], **SMALL_STEPS))
    wait_for(lambda: len(fresh.done()) >= 4)
    process.send_signal(number)
    stopped = ended(process)
    storage.rules = []
    assert stopped.returncode == 130
    assert stopped.stderr.count("Interrupted") == 1 and stopped.stderr.endswith(INTERRUPTED)
    before = fresh.done()
    fresh.assert_done_is_done()
    storage.seen.clear()
    done = run_here(fresh.command(), environment(storage.url, servers["B"]))
    assert f"{len(before)} of 24 images are done" in done.stderr
    for pattern in (DOWNLOAD, THUMBNAIL):
        assert len(storage.requests(pattern)) == TRAIN + VAL - len(before)
    fresh.assert_same(undisturbed, servers["B"])


@pytest.mark.parametrize(
    ("pattern", "after"),
    [(r"GET /storage/.*prefix=train", 0), (DOWNLOAD, 3), (FILE, 1)],
)
def test_interrupt_does_not_wait_for_a_network_that_hangs(
    undisturbed, fresh, emulator_url, servers, pattern, after
):
    rules = [Rule(pattern, "hold", after=after)]
    with FaultProxy(emulator_url, rules=rules) as storage:
        process = start(fresh.command(), environment(storage.url, servers["B"]))
        wait_for(lambda: storage.counts["hold"])
        process.send_signal(signal.SIGINT)
        stopped = ended(process)
    assert stopped.returncode == 130 and stopped.stderr.endswith(INTERRUPTED)
    done = run_here(fresh.command(), environment(emulator_url, servers["B"]))
    assert done.returncode == 0, done.stderr
    fresh.assert_same(undisturbed, servers["B"])


def test_second_interrupt_does_not_even_wait_for_the_record():
    code = """
import asyncio, ingest
async def run():
    try:
        print("up", flush=True)
        await asyncio.sleep(60)
    finally:
        print("recording", flush=True)
        await asyncio.sleep(60)
asyncio.run(ingest.until_interrupted(run()))
"""
    process = start([sys.executable, "-c", code], dict(os.environ))
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "recording\n"
    process.send_signal(signal.SIGINT)
    stopped = ended(process, timeout=40)  # the run itself would wait for a minute
    assert (stopped.returncode, stopped.stderr) == (130, INTERRUPTED)


KILLS = [
    ("storage", r"GET /storage/.*prefix=val", 0, "kill-before"),
    ("storage", DOWNLOAD, 12, "kill-before"),
    ("storage", THUMBNAIL, 0, "kill-after"),
    ("storage", THUMBNAIL, 23, "kill-after"),
    ("storage", FILE, 0, "kill-after"),
    ("storage", FILE, 6, "kill-before"),
    ("server", CREATE, 0, "kill-before"),
    ("server", CREATE, 0, "kill-after"),
]


@pytest.mark.parametrize(("where", "pattern", "after", "kind"), KILLS)
def test_kill_at_a_chosen_moment(
    undisturbed, fresh, emulator_url, servers, where, pattern, after, kind
):
    rules = {where: [Rule(pattern, kind, after=after)]}
    with (
        FaultProxy(emulator_url, rules=rules.get("storage", ())) as storage,
        FaultProxy(servers["B"], rules=rules.get("server", ())) as server,
    ):
        env = environment(storage.url, server.url, FAKE_CHECKPOINT_S="0.05")
        process = start(fresh.command(), env)
        storage.victim = server.victim = process
        assert ended(process).returncode == -signal.SIGKILL
        storage.rules, server.rules = [], []
        fresh.assert_done_is_done()
        done = run_here(fresh.command(), env)
    assert done.returncode == 0, done.stderr
    fresh.assert_same(undisturbed, servers["B"])


def test_kills_at_random_requests(undisturbed, fresh, storage, servers):
    moments = random.Random(0)
    env = environment(storage.url, servers["B"], **SMALL_STEPS)
    for _ in range(2):
        kind = moments.choice(["kill-before", "kill-after"])
        storage.rules = [Rule("", kind, after=moments.randrange(5, 25))]
        storage.victim = start(fresh.command(), env)
        assert ended(storage.victim).returncode == -signal.SIGKILL
        fresh.assert_done_is_done()
    storage.rules = []
    done = run_here(fresh.command(), env)
    assert done.returncode == 0, done.stderr
    fresh.assert_same(undisturbed, servers["B"])


def test_network_lost_for_good_ends_the_run_and_the_next_goes_on(
    undisturbed, fresh, storage, servers
):
    storage.rules.append(Rule(" /", "reset", after=30))
    env = environment(storage.url, servers["B"], FAKE_WINDOW="4")
    stopped = run_here(fresh.command(), env)
    assert stopped.returncode == 1
    assert re.search(r"Error: (Read|Writ)ing gs://\S+: .*reset by peer", stopped.stderr, re.I)
    assert fresh.done()
    storage.rules.clear()
    assert run_here(fresh.command(), env).returncode == 0
    fresh.assert_same(undisturbed, servers["B"])


def test_vectors_are_on_the_disk_before_a_row_is_marked(fresh, storage, servers, monkeypatch):
    events = []
    sync, record, write = arrays.Arrays.sync, rows.State.record, arrays.Arrays.write
    monkeypatch.setattr(
        arrays.Arrays, "write", lambda *a: events.append(("write", a[1])) or write(*a)
    )
    monkeypatch.setattr(arrays.Arrays, "sync", lambda self: events.append(("sync",)) or sync(self))
    monkeypatch.setattr(
        rows.State,
        "record",
        lambda self, rows: events.extend(("record", o.row) for o in rows) or record(self, rows),
    )
    env = environment(storage.url, servers["B"], FAKE_WINDOW="4", FAKE_CHECKPOINT_S="0.02")
    assert run_here(fresh.command(), env).returncode == 0
    for row in range(TRAIN + VAL):
        written, recorded = events.index(("write", row)), events.index(("record", row))
        assert ("sync",) in events[written:recorded]


# A disk that fills up


def test_arrays_that_do_not_fit_are_refused_at_once(fresh, storage, servers):
    env = environment(storage.url, servers["B"], FAKE_DISK_BYTES="150000")
    done = run(fresh.command(), env)
    assert done.returncode == 1
    assert re.search(r"Error: \S+/embeddings.npy needs 0.0 GB \(File too large\)", done.stderr)
    assert not storage.requests(DOWNLOAD)


def can_mount(directory):
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if os.geteuid() or shutil.which("mount") is None:
        return False
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(fresh):
    """A file system of its own for the work directory; returns a function that sets its size."""
    if not can_mount(fresh.work):
        pytest.skip("no right to mount a tmpfs: run the tests as root to test full disks")

    def resize(kilobytes):
        command = ["mount", "-o", f"remount,size={kilobytes}k", str(fresh.work)]
        subprocess.run(command, check=True)

    yield resize
    subprocess.run(["umount", "--lazy", str(fresh.work)], check=True)


def assert_stopped_by_full_disk(done):
    assert done.returncode == 1
    assert re.search(r"Error: .*(full|No space|GB are free)", done.stderr), done.stderr


def test_disk_that_is_too_small_is_one_sentence(undisturbed, fresh, storage, servers, small_disk):
    small_disk(60)
    env = environment(storage.url, servers["B"])
    assert_stopped_by_full_disk(run(fresh.command(), env))
    small_disk(8000)
    assert run_here(fresh.command(), env).returncode == 0
    fresh.assert_same(undisturbed, servers["B"])


def test_disk_that_fills_up_is_one_sentence(undisturbed, fresh, storage, servers, small_disk):
    storage.rules = [Rule(DOWNLOAD, "hold", after=12)]
    env = environment(storage.url, servers["B"], **SMALL_STEPS)
    process = start(fresh.command(), env)
    wait_for(lambda: storage.counts["hold"])
    ballast = fresh.work / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    storage.release()
    assert_stopped_by_full_disk(ended(process))
    ballast.unlink()
    assert run_here(fresh.command(), env).returncode == 0
    fresh.assert_same(undisturbed, servers["B"])


def full_pwrite(file, data, offset):
    raise OSError(28, "No space left on device")


def short_pwrite(file, data, offset):
    return os.write(file, data[:100])


def full_write(path, pieces):
    raise OSError(28, "No space left on device")


def full_sqlite(self, outcomes):
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (os, "pwrite", full_pwrite),
        (os, "pwrite", short_pwrite),
        (rows.State, "record", full_sqlite),
        (lists, "write_atomically", full_write),
    ],
)
def test_every_write_that_fails_is_one_sentence(
    undisturbed, fresh, storage, servers, monkeypatch, owner, name, replacement
):
    env = environment(storage.url, servers["B"])
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        stopped = run_here(fresh.command(), env)
    assert stopped.returncode == 1
    said = re.search(r"Error: Writing to \S+ failed \((.*)\): free space", stopped.stderr)
    assert said and said[1] in ("No space left on device", "database or disk is full")
    assert run_here(fresh.command(), env).returncode == 0
    fresh.assert_same(undisturbed, servers["B"])


def test_damaged_state_is_one_sentence(fresh, storage, servers):
    fresh.work.mkdir()
    (fresh.work / "lock").touch()
    (fresh.work / "state.sqlite").write_bytes(b"not a database " * 1000)
    done = run_here(fresh.command(), environment(storage.url, servers["B"]))
    assert done.returncode == 1
    assert f"Error: The state in {fresh.work} is damaged" in done.stderr


# State that does not fit


@pytest.fixture(scope="module")
def stopped(undisturbed, emulator_url, servers, tmp_path_factory):
    """An ingest that lost its access half-way; tests work on copies of its directory."""
    made = undisturbed.again(tmp_path_factory.mktemp("stopped") / "made")
    with FaultProxy(emulator_url, rules=[Rule(DOWNLOAD, "403", after=10)]) as storage:
        env = environment(storage.url, servers["B"], FAKE_WINDOW="2")
        assert run_here(made.command(), env).returncode == 1
    assert 0 < len(made.done()) < TRAIN + VAL
    return made


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped.directory, tmp_path / "copied")
    return stopped._replace(directory=tmp_path / "copied")


@pytest.mark.parametrize(
    ("position", "option", "value"),
    [
        (1, "train_path", "gs://{images}/val"),
        (2, "val_path", "gs://{images}/other"),
        (0, "dataset", "another-name"),
        (None, "bucket", "{images}"),
        (None, "resnet_weights", "{file}"),
        (None, "clip_weights", "{file}"),
        (None, "backend", "original"),
        (None, "precision", "bfloat16"),
    ],
)
def test_another_ingest_in_the_directory_is_refused(
    copied, emulator_url, servers, tmp_path, position, option, value
):
    (tmp_path / "file").write_bytes(b"other weights")
    value = value.format(images=copied.images, file=tmp_path / "file")
    command = copied.command("--allow_empty_val")
    if position is None:
        command += [f"--{option}", value]
    else:
        command[2 + position] = value
    if option == "train_path":  # the other way round, so that the splits do not overlap
        command[4] = f"gs://{copied.images}/train"
    before = copied.statuses(), copied.left_behind()
    done = run_here(command, environment(emulator_url, servers["B"]))
    assert done.returncode == 1
    assert f"holds an ingest with another {option} (" in done.stderr
    assert "--restart" in done.stderr and "--work_dir" in done.stderr
    assert (copied.statuses(), copied.left_behind()) == before


@pytest.mark.parametrize("what", ["appeared", "vanished", "changed"])
def test_other_objects_than_before_are_refused(emulator_url, servers, tmp_path, what):
    made = dataset(Emulated(emulator_url), tmp_path / "made", pictures(6, 2))
    with FaultProxy(emulator_url, rules=[Rule(DOWNLOAD, "403", after=4)]) as storage:
        env = environment(storage.url, servers["B"], FAKE_WINDOW="1")
        assert run_here(made.command(), env).returncode == 1
    assert made.done()
    if what == "vanished":
        made.storage.delete(made.images, "train/t0003.jpg")
    elif what == "appeared":
        made.storage.put(made.images, "train/new.jpg", picture(3))
    else:
        made.storage.put(made.images, "train/t0000.jpg", picture(99))
    env = environment(emulator_url, servers["B"])
    done = run_here(made.command(), env)
    assert done.returncode == 1
    name = {"appeared": "new", "vanished": "t0003", "changed": "t0000"}[what]
    assert f"listed.\n  1 {what}: train/{name}.jpg\n" in done.stderr
    assert "--restart" in done.stderr and "--work_dir" in done.stderr
    assert run_here(made.command("--restart"), env).returncode == 0
    assert made.registered(servers["B"])[1:] == (
        6 + {"appeared": 1, "vanished": -1}.get(what, 0),
        2,
    )


def test_failed_images_that_were_replaced_are_taken(emulator_url, servers, tmp_path):
    objects = {**pictures(4, 2), "train/bad.jpg": b"not an image"}
    made = dataset(Emulated(emulator_url), tmp_path / "made", objects)
    with FaultProxy(emulator_url) as storage:
        env = environment(storage.url, servers["B"])
        assert run_here(made.command(), env).returncode == 1
        failed = json.loads((made.work / "failed.json").read_text())
        assert [entry["object"] for entry in failed] == ["train/bad.jpg"]
        made.storage.put(made.images, "train/bad.jpg", picture(5))
        assert "were replaced" not in run_here(made.command("--dry_run"), env).stderr
        storage.seen.clear()
        done = run_here(made.command(), env)
        assert done.returncode == 0, done.stderr
        assert "6 of 7 images are done. Replaced since then: 1 other image." in done.stderr
        assert len(storage.requests(DOWNLOAD)) == 1
    assert not (made.work / "failed.json").exists()


def test_replaced_images_of_another_bucket_are_not_taken(emulator_url, servers, tmp_path):
    """The check of another command must not write into the state."""
    objects = {**pictures(2, 1), "train/bad.jpg": b"not an image"}
    made = dataset(Emulated(emulator_url), tmp_path / "made", objects)
    other = dataset(made.storage, tmp_path / "other", {**objects, "train/bad.jpg": picture(9)})
    env = environment(emulator_url, servers["B"])
    assert run_here(made.command(), env).returncode == 1
    assert run_here(made._replace(images=other.images).command(), env).returncode == 1
    done = run_here(made.command(), env)
    assert "1 of 4 images cannot be embedded" in done.stderr, done.stderr


def test_restart_deletes_what_the_earlier_run_uploaded(undisturbed, copied, emulator_url, servers):
    copied = copied.again(copied.directory / "own")  # its own bucket: others use the first
    with FaultProxy(emulator_url, rules=[Rule(DOWNLOAD, "403", after=10)]) as storage:
        env = environment(storage.url, servers["B"], FAKE_WINDOW="2")
        run_here(copied.command(), env)
        earlier, thumbnails = copied.index_id(), len(copied.left_behind())
        storage.rules = [Rule("DELETE ", "400", after=2)]
        broken_off = run_here(copied.command("--restart"), env)
        assert broken_off.returncode == 1 and "Deleting gs://" in broken_off.stderr
        assert 0 < len(copied.left_behind()) < thumbnails
        storage.rules = []
        done = run_here(copied.command(), env)  # an interrupted --restart goes on without the flag
        assert done.returncode == 0, done.stderr
    assert copied.index_id() != earlier
    copied.assert_same(undisturbed, servers["B"])


def test_restart_where_the_bucket_keeps_what_the_earlier_run_uploaded(
    copied, emulator_url, servers
):
    """A retention policy or holds: the earlier index is left there, and the ingest begins again."""
    copied = copied.again(copied.directory / "held")
    with FaultProxy(emulator_url, rules=[Rule(DOWNLOAD, "403", after=10)]) as storage:
        env = environment(storage.url, servers["B"], FAKE_WINDOW="2")
        run_here(copied.command(), env)
        earlier = copied.index_id()
        storage.rules = [Rule("DELETE ", "403")]
        done = run_here(copied.command("--restart"), env)
    assert done.returncode == 0, done.stderr
    assert "of the earlier index in" in done.stderr and "cannot be deleted" in done.stderr
    assert copied.index_id() != earlier


def test_two_ingests_in_one_directory(undisturbed, fresh, storage, emulator_url, servers):
    storage.rules = [Rule(DOWNLOAD, "hold")]
    first = start(fresh.command(), environment(storage.url, servers["B"]))
    try:
        wait_for(lambda: storage.counts["hold"])
        second = run_here(fresh.command(), environment(emulator_url, servers["B"]))
        assert second.returncode == 1
        assert f"Error: Another ingest is running in {fresh.work}" in second.stderr
    finally:
        first.kill()
        first.communicate()
    done = run_here(fresh.command(), environment(emulator_url, servers["B"]))
    assert done.returncode == 0, done.stderr  # the lock of a dead process is no lock
    fresh.assert_same(undisturbed, servers["B"])
