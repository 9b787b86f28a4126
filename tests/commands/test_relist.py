"""Images that appear, vanish or change while an ingest is interrupted: --relist and --as_listed."""

import contextlib
import json
import shutil
import signal

import numpy as np
import pytest

from dataset.state.rows import State
from tests.harness import ended, picture, pictures
from tests.stand_in import Rule, StandIn

DOWNLOAD, COPY = r"GET /storage/.*alt=media", r"POST /batch/"
LAST_LIST = "val_identifiers.json"


@pytest.fixture
def stopped(make_world):
    """Six training and two validation images; the first four are done, in an hour and a half."""
    made = make_world(pictures(6, 2))
    made.stop_at(Rule(DOWNLOAD, "403", after=4), FAKE_WINDOW="1")
    assert made.done() == [f"train/t000{number}.jpg" for number in range(4)]
    with opened(made) as state:
        assert 0 < state.embedding_s < 60
        state.add_embedding_time(5400 - state.embedding_s)
    return made


@contextlib.contextmanager
def opened(made):
    state = State.open_checked(made.work / "state.sqlite")
    try:
        yield state
    finally:
        state.close()


def vanish(made, *names):
    for name in names:
        made.storage.delete(made.images, name)


def put(made, name, seed):
    made.storage.put(made.images, name, picture(seed))


def rename(made, name, new):
    made.storage.put(made.images, new, made.storage.get(made.images, name))
    vanish(made, name)


def change_everything(made):
    """One image vanishes, one changes, two appear, one is moved and one is renamed."""
    vanish(made, "train/t0000.jpg")
    put(made, "train/t0001.jpg", 99)
    put(made, "train/new.jpg", 98)
    put(made, "val/new-too.jpg", 97)
    rename(made, "train/t0002.jpg", "train/deep/t0002.jpg")
    rename(made, "train/t0003.jpg", "train/renamed.jpg")


def assert_as_if_new(made, tmp_path):
    """What is there is what a new ingest of today's images makes."""
    other = made.again(tmp_path / "other")
    other.ingest()
    made.assert_same(other)


def test_the_message_has_what_changed_and_each_way_on_with_numbers(stopped):
    vanish(stopped, "train/t0000.jpg", "train/t0005.jpg")
    put(stopped, "train/t0001.jpg", 99)
    put(stopped, "train/new.jpg", 98)
    before = stopped.statuses(), stopped.left_behind()
    done = stopped.run()
    assert done.exit_code == 1
    assert done.stderr.partition("Error: ")[2] == (
        f"""The images in the bucket are not those that the ingest in {stopped.work} listed.
  1 appeared: train/new.jpg
  2 vanished: train/t0000.jpg, train/t0005.jpg
  1 changed: train/t0001.jpg
Undo these changes and run the same command again, or add one of these:
  --relist: take today's list of 7 images; 2 keep their vectors and thumbnails, 5 are computed, \
and the vectors of 2 images (45 min 0 s of computing) are deleted.
  --as_listed --skip_bad_images: finish the list of 8 images; 3 that vanished or changed become \
failed rows, and the vectors of 2 images (45 min 0 s of computing) are deleted; 3 are still to \
compute. The server lists the bucket itself: move the 1 that appeared out of these directories \
before the registration.
  --restart: compute all 7 images of today's list; this deletes the vectors of 4 images (90 min \
0 s of computing) here, and what was uploaded for them.
Another --work_dir begins anew and leaves this one as it is.
"""
    )
    assert (stopped.statuses(), stopped.left_behind()) == before
    relisting = stopped.run("--relist", "--dry_run")
    assert relisting.stdout.startswith(
        "Would take today's list: 2 keep their vectors and thumbnails, 5 are computed, and the "
        "vectors of 2 images (45 min 0 s of computing) are deleted.\n"
    )
    keeping = stopped.run("--as_listed", "--dry_run")
    assert keeping.stdout.startswith("Would finish the list of 8 images; 3 that vanished or ch")
    restarting = stopped.run("--restart", "--dry_run")
    assert restarting.stdout.startswith(
        "Would start over: this deletes the vectors of 4 images (90 min 0 s of computing) here, "
        "and what was uploaded for them.\n"
    )
    assert (stopped.statuses(), stopped.left_behind()) == before


def test_whatever_offers_to_delete_says_what_that_cost(stopped):
    done = stopped.run("--backend", "original")
    assert (
        "--restart, which deletes the vectors of 4 images (90 min 0 s of computing) here, and "
        in (done.stderr)
    )
    done = stopped.ingest("--restart")
    assert "Deleted the vectors of 4 images (90 min 0 s of computing), with 4 objects in" in (
        done.stderr
    )


def test_the_ways_on_exclude_each_other(stopped):
    done = stopped.run("--relist", "--restart")
    assert done.exit_code == 2
    assert "--relist, --as_listed and --restart exclude each other." in done.stderr


def test_relist_computes_only_what_is_new(stopped, tmp_path):
    change_everything(stopped)
    with StandIn(stopped.storage.url) as storage:
        proxied = {"storage": storage}
        done = stopped.run("--relist", **proxied)
        fetched = {asked.path for asked in storage.requests(DOWNLOAD)}
    assert done.exit_code == 0, done.stderr
    assert "Took today's list of 9 images: 2 keep their vectors and thumbnails" in done.stderr
    assert "9 images (6 training, 3 validation), 0 failed, 7 embedded now" in done.stdout
    assert len(fetched) == 7
    assert not any(name in target for target in fetched for name in ("t0002", "renamed"))
    assert_as_if_new(stopped, tmp_path)
    with opened(stopped) as state:
        assert state.embedding_s > 5400 and state.reused() == 0
    again = stopped.ingest("--relist")
    assert "This ingest is finished" in again.stdout
    assert f"use another name with --reuse {stopped.name}." in again.stderr
    assert {path.name for path in stopped.work.iterdir()} <= {
        *("lock", "state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "index", "aux"),
        "report.json",
    }


def test_relist_without_changes_continues(stopped):
    done = stopped.ingest("--relist")
    assert "4 of 8 images are done." in done.stderr and "Took today's list" not in done.stderr


def test_relist_does_not_copy_a_thumbnail_over_that_of_another_image(stopped, tmp_path):
    """Two images exchange their names: until all is copied, the old list needs both thumbnails."""
    one, two = (f"train/t000{number}.jpg" for number in range(2))
    rename(stopped, one, "train/between.jpg")
    rename(stopped, two, one)
    rename(stopped, "train/between.jpg", two)
    with StandIn(stopped.storage.url) as storage:
        proxied = {"storage": storage}
        done = stopped.run("--relist", **proxied)
        assert not storage.requests(COPY)
    assert done.exit_code == 0, done.stderr
    assert_as_if_new(stopped, tmp_path)


def test_broken_files_that_were_deleted_are_left_out(make_world):
    objects = {**pictures(3, 1), "train/bad.jpg": b"no image", "train/worse.jpg": b""}
    made = make_world(objects)
    done = made.run()
    assert done.exit_code == 1
    assert "(after removing any, with --relist, which leaves them out and keeps what is " in (
        done.stderr
    )
    vanish(made, "train/bad.jpg", "train/worse.jpg")
    done = made.ingest("--relist")
    assert "4 images (3 training, 1 validation), 0 failed, 0 embedded now" in done.stdout
    assert not (made.work / "failed.json").exists()


def test_damaged_vectors_are_not_kept(stopped):
    with open(stopped.work / "index/local/clip/embeddings.npy", "r+b") as file:
        file.seek(2 * 512 * 4)
        file.write(b"\1\2\3")
    vanish(stopped, "train/t0000.jpg")
    done = stopped.ingest("--relist")
    assert "2 keep their vectors" in done.stderr and "5 embedded now" in done.stdout


def test_relist_needs_space_for_arrays_beside_those_that_are_there(stopped, monkeypatch):
    """120 kB for eight images, of which 115 kB are there: 100 kB are enough to continue."""
    usage = shutil.disk_usage(stopped.work)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    put(stopped, "train/new.jpg", 98)
    done = stopped.run("--relist")
    assert done.exit_code == 1 and f" kB more in {stopped.work}" in done.stderr
    assert len(stopped.done()) == 4
    vanish(stopped, "train/new.jpg")
    stopped.ingest("--relist")


def test_kills_within_relist_lose_nothing(stopped, tmp_path):
    """Killed while rows are copied, before the renames, and within them; each kill after another.

    The first rename takes the new list. After that the next run goes on, whatever its options.
    """
    change_everything(stopped)
    copying = {"FAKE_CHUNK_ROWS": "1", "FAKE_CHECKPOINT_S": "0.01"}
    kills = [copying, *({"FAKE_KILL": f"rename {number}"} for number in (1, 2, 2))]
    with StandIn(stopped.storage.url) as storage:
        proxied = {"storage": storage}
        for kill in kills:
            storage.rules = [Rule(COPY, "kill-after")] if kill == copying else []
            storage.victim = stopped.start("--relist", **{**proxied, **kill})
            assert ended(storage.victim).exit_code == -signal.SIGKILL
            if (stopped.work / "relisting").exists():
                stopped.assert_done_is_done()
                assert len(stopped.done()) == 4
        names = {path.name for path in stopped.work.iterdir()}
        assert names == {"lock", "report.json", "index", "relisted"}
        storage.asked.clear()
        stopped.ingest(**proxied)
        assert len(storage.requests(DOWNLOAD)) == 7
    assert_as_if_new(stopped, tmp_path)


def test_relist_after_a_bucket_that_changed_before_the_registration(make_world):
    made = make_world(pictures(4, 2))
    changes = [lambda: put(made, "train/new.jpg", 98)]
    with StandIn(
        made.storage.url,
        lambda asked: changes.pop()() if LAST_LIST in asked.path and changes else None,
    ) as front:
        done = made.run(storage=front)
    assert done.exit_code == 1
    assert "changed since they were listed; nothing was registered.\n  1 appeared: train/new" in (
        done.stderr
    )
    assert "  --relist: take today's list of 7 images; 6 keep their vectors and thumbnails, 1 " in (
        done.stderr
    )
    done = made.ingest("--relist")
    assert "1 embedded now" in done.stdout


def test_a_registered_index_is_not_relisted(make_world):
    """The earlier run may have ended between the registration and the record of it."""
    made = make_world(pictures(2, 1))
    made.ingest()
    with opened(made) as state:
        state._db.execute("DELETE FROM options WHERE name IN ('registered', 'servers')")
        state.set_options({})
    uploaded = made.storage.contents(made.index)
    put(made, "train/new.jpg", 98)
    for option in ("--relist", "--as_listed", "--dry_run"):
        done = made.run(option)
        assert done.exit_code == 1
        assert f"{made.name} is registered with the index in {made.work}, and the" in done.stderr
        assert f"with --reuse {made.work} and another --work_dir" in done.stderr
    assert made.storage.contents(made.index) == uploaded


# --as_listed


def test_as_listed_makes_failed_rows_of_what_vanished_or_changed(stopped):
    vanish(stopped, "train/t0000.jpg", "val/v0001.png")
    put(stopped, "train/t0001.jpg", 99)
    put(stopped, "train/t0005.jpg", 98)
    reasons = {
        "train/t0000.jpg": "it vanished from the bucket after it was listed",
        "train/t0001.jpg": "it was replaced in the bucket after it was listed",
        "train/t0005.jpg": "it was replaced in the bucket after it was listed",
        "val/v0001.png": "it vanished from the bucket after it was listed",
    }
    done = stopped.run("--as_listed")
    assert done.exit_code == 1
    assert "4 of 8 images cannot be embedded; nothing was registered." in done.stderr
    failed = json.loads((stopped.work / "failed.json").read_text())
    assert {entry["object"]: entry["reason"] for entry in failed} == reasons
    done = stopped.ingest("--as_listed", "--skip_bad_images")
    # The server lists the bucket itself: it has what is still there.
    assert stopped.registered() == (stopped.index_id(), 5, 1)
    assert all(stopped.statuses()[name] == 2 for name in reasons)
    array = stopped.storage.get(
        stopped.index, f"indexes/{stopped.index_id()}/local/clip/embeddings.npy"
    )
    lengths = np.linalg.norm(np.frombuffer(array, "<f4").reshape(-1, 512), axis=1)
    np.testing.assert_allclose(lengths, [0, 0, 1, 1, 1, 0, 1, 0], atol=1e-5)
    for name, known in {
        "identifiers": ["t0001", "t0002", "t0003", "t0004", "t0005"],
        "val_identifiers": ["v0000"],
    }.items():
        listed = stopped.storage.get(stopped.index, f"indexes/{stopped.index_id()}/{name}.json")
        assert list(json.loads(listed)) == known
    thumbnails = {name for name in stopped.left_behind() if name.startswith("thumbnails")}
    assert thumbnails == {f"thumbnails/ID/{n}.jpg" for n in ("t0002", "t0003", "t0004", "v0000")}
    finished = stopped.run("--as_listed", "--skip_bad_images")
    assert finished.exit_code == 0
    assert "with 5 training and 1 validation images, of which 2 failed (index" in finished.stdout


def test_as_listed_takes_back_what_is_as_it_was(stopped):
    kept = stopped.storage.get(stopped.images, "train/t0000.jpg")
    vanish(stopped, "train/t0000.jpg")
    assert stopped.run("--as_listed").exit_code == 1
    stopped.storage.put(stopped.images, "train/t0000.jpg", kept)
    stopped.ingest("--as_listed", "--skip_bad_images")
    assert len(stopped.done()) == 8


def test_as_listed_is_not_registered_where_the_server_would_find_other_images(stopped):
    put(stopped, "train/new.jpg", 98)
    done = stopped.run("--as_listed")
    assert done.exit_code == 1
    assert "1 image appeared since the images were listed. Remove them before" in done.stderr
    assert done.stderr.endswith(
        """
Error: The server lists the bucket itself: it would show 1 image that the index does not have, so \
nothing was registered.
  1 appeared: train/new.jpg
Move what appeared out of these directories and run the same command again, or write --relist \
instead of --as_listed: 8 keep their vectors and thumbnails, 1 are computed.
"""
    )
    assert len(stopped.done()) == 8
    assert stopped.registered() is None
    vanish(stopped, "train/new.jpg")
    done = stopped.ingest("--as_listed")
    assert "0 embedded now" in done.stdout


def test_what_vanishes_during_a_run_as_listed_is_taken_up_by_the_next(make_world):
    made = make_world(pictures(3, 2))
    changes = [lambda: vanish(made, "train/t0001.jpg")]
    options = "--as_listed", "--skip_bad_images"
    with StandIn(
        made.storage.url,
        lambda asked: changes.pop()() if LAST_LIST in asked.path and changes else None,
    ) as front:
        done = made.run(*options, storage=front)
    assert done.exit_code == 1
    assert "\nRun the same command again: what is computed stays, and it makes failed rows" in (
        done.stderr
    )
    done = made.ingest(*options)
    assert made.registered()[1:] == (2, 2)
