"""Runs that go on after a full disk, damage, other options: nothing is lost, nothing is mixed."""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess

import pytest

from dataset import arrays, lists
from dataset.state import State
from tests.commands.test_stops import DOWNLOAD, SMALL_STEPS
from tests.harness import TRAIN, VAL, ended, pictures, wait_for
from tests.stand_in import Rule, StandIn


def test_vectors_are_on_the_disk_before_a_row_is_marked(fresh, monkeypatch):
    events = []

    def noted(owner, name, events_of):
        function = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args: events.extend(events_of(*args)) or function(*args)
        )

    noted(arrays.Arrays, "write", lambda self, row, *_: [("write", row)])
    noted(arrays.Arrays, "sync", lambda self: [("sync",)])
    noted(State, "record", lambda self, outcomes: [("record", o.row) for o in outcomes])
    fresh.ingest(FAKE_WINDOW="4", FAKE_CHECKPOINT_S="0.02")
    for row in range(TRAIN + VAL):
        written, recorded = events.index(("write", row)), events.index(("record", row))
        assert ("sync",) in events[written:recorded]


# A disk that fills up


@pytest.fixture
def small_disk(fresh):
    """A file system of its own for the work directory; returns a function that sets its size."""
    fresh.work.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(fresh.work)]
    can_mount = os.geteuid() == 0 and shutil.which("mount") is not None
    if not can_mount or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a tmpfs: run the tests as root to test full disks")

    def resize(kilobytes):
        command = ["mount", "-o", f"remount,size={kilobytes}k", str(fresh.work)]
        subprocess.run(command, check=True)

    yield resize
    subprocess.run(["umount", "--lazy", str(fresh.work)], check=True)


@pytest.mark.parametrize("when", ["at first", "in the middle"])
def test_disk_that_is_full_is_one_sentence(undisturbed, fresh, storage, small_disk, when):
    ballast = fresh.work / "ballast"
    if when == "at first":
        small_disk(60)
        stopped = ended(fresh.start(storage=storage))
        assert not storage.requests(DOWNLOAD)
        small_disk(8000)
    else:
        storage.rules = [Rule(DOWNLOAD, "hold", after=12)]
        process = fresh.start(storage=storage, **SMALL_STEPS)
        wait_for(lambda: storage.counts["hold"])
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        storage.release()
        stopped = ended(process)
    assert stopped.exit_code == 1
    assert re.search(r"full|No space|GB are free", stopped.error), stopped.stderr
    ballast.unlink(missing_ok=True)
    fresh.ingest()
    fresh.assert_same(undisturbed)


def full(*_):
    raise OSError(28, "No space left on device")


def full_sqlite(self, outcomes):
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (os, "pwrite", full),
        (os, "pwrite", lambda file, data, offset: os.write(file, data[:100])),
        (State, "record", full_sqlite),
        (lists, "write_atomically", full),
    ],
)
def test_every_write_that_fails_is_one_sentence(
    undisturbed, fresh, monkeypatch, owner, name, replacement
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        stopped = fresh.run()
    assert stopped.exit_code == 1
    said = re.search(r"Writing to \S+ failed \((.*)\): free space", stopped.error)
    assert said and said[1] in ("No space left on device", "database or disk is full")
    fresh.ingest()
    fresh.assert_same(undisturbed)


# State that is damaged or does not fit


def test_damaged_state_is_one_sentence_and_uploads_nothing(make_world):
    made = make_world(pictures(2, 1))
    made.stop_at(Rule(DOWNLOAD, "404"))
    (made.work / "state.sqlite").write_bytes(b"not a database " * 1000)
    made.run().failed(f"The state in {made.work} is damaged")
    assert made.storage.contents(made.index) == {}


@pytest.fixture(scope="module")
def stopped(undisturbed, tmp_path_factory):
    """An ingest that lost access half-way; tests change nothing of it."""
    made = undisturbed.again(tmp_path_factory.mktemp("stopped") / "made")
    made.stop_at(Rule(DOWNLOAD, "403", after=10), FAKE_WINDOW="2")
    assert 0 < len(made.done()) < TRAIN + VAL
    return made


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train_path", "gs://{images}/val"),
        ("val_path", "gs://{images}/other"),
        ("dataset", "another-name"),
        ("bucket", "{images}"),
        ("resnet_weights", "{file}"),
        ("clip_weights", "{file}"),
        ("backend", "original"),
        ("precision", "bfloat16"),
    ],
)
def test_another_ingest_in_the_directory_is_refused(stopped, emulator, tmp_path, option, value):
    (tmp_path / "file").write_bytes(b"other weights")
    value = value.format(images=stopped.images, file=tmp_path / "file")
    arguments = stopped.arguments("--allow_empty_val")
    if option in (places := ["dataset", "train_path", "val_path"]):
        arguments[places.index(option)] = value
    else:
        arguments += [f"--{option}", value]
    if option == "train_path":  # the other way round, so that the splits do not overlap
        arguments[2] = f"gs://{stopped.images}/train"
    before = stopped.statuses(), stopped.left_behind()
    stopped.invoke(arguments).failed(
        f"holds an ingest with another {option} (", "--restart", "--work_dir"
    )
    assert (stopped.statuses(), stopped.left_behind()) == before


def test_failed_images_that_were_replaced_are_taken(make_world):
    made = make_world({**pictures(4, 2), "train/bad.jpg": b"not an image"})
    assert made.run().exit_code == 1
    assert list(made.failed()) == ["train/bad.jpg"]
    made.put("train/bad.jpg")
    assert "were replaced" not in made.run("--dry_run").stderr
    with StandIn(made.storage.url) as storage:
        made.ingest(storage=storage)
        assert len(storage.requests(DOWNLOAD)) == 1
    assert not (made.work / "failed.json").exists()


def test_restart_deletes_what_the_earlier_run_uploaded(undisturbed, fresh):
    fresh.stop_at(Rule(DOWNLOAD, "403", after=10), FAKE_WINDOW="2")
    earlier, thumbnails = fresh.index_id(), len(fresh.left_behind())
    broken_off = fresh.stop_at(Rule("DELETE ", "400", after=2), "--restart")
    assert "Deleting gs://" in broken_off.error
    assert 0 < len(fresh.left_behind()) < thumbnails
    fresh.ingest()  # an interrupted --restart goes on without the flag
    assert fresh.index_id() != earlier
    fresh.assert_same(undisturbed)


def test_restart_where_the_bucket_keeps_what_the_earlier_run_uploaded(fresh):
    """A retention policy or holds: the earlier index is left there, and the ingest begins again."""
    fresh.stop_at(Rule(DOWNLOAD, "403", after=10), FAKE_WINDOW="2")
    earlier = fresh.index_id()
    with StandIn(fresh.storage.url, Rule("DELETE ", "403")) as storage:
        done = fresh.ingest("--restart", storage=storage)
    assert "of the earlier index in" in done.stderr and "cannot be deleted" in done.stderr
    assert fresh.options()["index_id"] != earlier


def test_two_ingests_in_one_directory(undisturbed, fresh, storage):
    storage.rules = [Rule(DOWNLOAD, "hold")]
    first = fresh.start(storage=storage)
    try:
        wait_for(lambda: storage.counts["hold"])
        fresh.run().failed(f"Another ingest is running in {fresh.work}")
    finally:
        first.kill()
        first.communicate()
    fresh.ingest()  # the lock of a dead process is no lock
    fresh.assert_same(undisturbed)
