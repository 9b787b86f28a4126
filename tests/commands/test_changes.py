"""What changes behind an ingest's back: the bucket, the name on the server, the disk."""

import json
import os
import shutil
import signal
import uuid

import numpy as np
import pytest

from dataset.arrays import DIMENSIONS, DTYPE, array_path
from dataset.state.rows import State
from dataset.state.state_file import remove_state
from tests.harness import (
    Emulated,
    ask,
    dataset,
    ended,
    environment,
    picture,
    pictures,
    run,
)
from tests.stand_in import Rule, StandIn

DOWNLOAD, THUMBNAIL = r"GET /storage/.*alt=media", r"POST /upload/.*name=thumbnails"
LAST_LIST = "val_identifiers.json"


@pytest.fixture
def storage(emulator_url):
    return Emulated(emulator_url)


@pytest.fixture
def made(storage, tmp_path):
    return dataset(storage, tmp_path / "made", pictures(4, 2))


def rename(made):
    made.storage.delete(made.images, "train/t0001.jpg")
    made.storage.put(made.images, "train/another.jpg", picture(7))


def replace(made):
    made.storage.put(made.images, "train/t0001.jpg", picture(7))


def remove(made):
    made.storage.delete(made.images, "train/t0001.jpg")


def add(made):
    made.storage.put(made.images, "val/another.jpg", picture(7))


CHANGES = [
    (rename, ["1 appeared: train/another.jpg", "1 vanished: train/t0001.jpg"]),
    (replace, ["1 changed: train/t0001.jpg"]),
    (remove, ["1 vanished: train/t0001.jpg"]),
    (add, ["1 appeared: val/another.jpg"]),
]


def once(pattern, change):
    """A rule that changes something just before a request is forwarded, once."""
    todo = [change]

    def rule(asked):
        if pattern in asked.path and todo:
            todo.pop()()

    return rule


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_bucket_that_changed_before_the_dataset_is_registered(
    made, emulator_url, servers, change, said
):
    with StandIn(emulator_url, once(LAST_LIST, lambda: change(made))) as front:
        done = made.run(storage=front)
    assert done.exit_code == 1
    assert "The images in the bucket changed since they were listed; nothing was" in done.stderr
    assert all(f"\n  {line}" in done.stderr for line in said) and "--restart" in done.stderr
    with pytest.raises(OSError, match="404"):
        made.registered()


@pytest.mark.parametrize(("change", "said"), CHANGES[:2])
def test_a_bucket_that_changed_while_the_server_listed_it(
    made, emulator_url, servers, change, said
):
    with StandIn(servers["B"], once("create_dataset", lambda: change(made))) as server:
        done = made.run(server=server)
        again = made.run(server=server)
    assert done.exit_code == 1
    assert f"{made.name} is registered, but the images in the bucket changed" in done.stderr
    assert all(f"\n  {line}" in done.stderr for line in said)
    assert again.exit_code == 1 and again.stderr.endswith(done.stderr[done.stderr.index("Error") :])


def test_a_kill_after_the_registration_skips_no_comparison(made, emulator_url, servers):
    """The third listing of a split is that of the second comparison."""
    rules = [Rule("GET /storage/.*prefix=val", "kill-before", after=2)]
    with (
        StandIn(servers["B"], once("create_dataset", lambda: replace(made))) as server,
        StandIn(emulator_url, *rules) as storage,
    ):
        process = made.start(storage=storage, server=server)
        storage.victim = process
        assert ended(process).exit_code == -signal.SIGKILL
        assert made.registered()
        again = made.run(server=server)
    assert again.exit_code == 1
    assert "is registered" in again.stderr and "changed: train/t0001.jpg" in again.stderr


def test_the_same_bytes_written_again_are_the_same_image(undisturbed, fresh, emulator_url, servers):
    """A copy that is repeated while an ingest is interrupted gives new generations only."""
    with StandIn(emulator_url) as proxy:
        proxy.rules = [Rule(THUMBNAIL, "503", after=10)]
        assert fresh.run(storage=proxy).exit_code == 1
    assert 0 < len(fresh.done()) < 24
    for name in list(fresh.storage.contents(fresh.images)):
        fresh.storage.put(fresh.images, name, fresh.storage.get(fresh.images, name))
    done = fresh.run()
    assert done.exit_code == 0, done.stderr
    fresh.assert_same(undisturbed)


@pytest.mark.parametrize(
    "options", [[], ["--skip_bad_images"], ["--decode_in", "processes", "--decode_workers", "1"]]
)
def test_an_image_replaced_after_it_was_listed_is_taken_up_by_a_second_run(
    made, emulator_url, servers, options
):
    with StandIn(emulator_url, once("t0001.jpg?alt=media", lambda: replace(made))) as front:
        done = made.run(*options, storage=front)
        fetched = [asked for asked in front.asked if "t0001.jpg?alt=media" in asked.path]
    assert done.exit_code == 1 and len(fetched) == 1
    assert "Error: 1 image changed in the bucket since they were listed; nothing was" in done.stderr
    assert "\n  train/t0001.jpg: it was replaced after it was listed\n" in done.stderr
    assert made.statuses()["train/t0001.jpg"] == 0 and len(made.done()) == 5
    assert not (made.work / "failed.json").exists()
    done = made.run(*options)
    assert done.exit_code == 0, done.stderr
    assert "Replaced since then: 1 other image." in done.stderr
    assert len(made.done()) == 6


def test_thumbnails_deleted_between_two_runs_are_uploaded_again(
    undisturbed, fresh, emulator_url, servers
):
    with StandIn(emulator_url) as proxy:
        proxy.rules = [Rule(rf"GET .*{LAST_LIST}", "503")]
        assert fresh.run(storage=proxy).exit_code == 1
    thumbnails = [n for n in fresh.storage.contents(fresh.index) if n.startswith("thumbnails/")]
    for name in thumbnails[:3]:
        fresh.storage.delete(fresh.index, name)
    done = fresh.run()
    assert done.exit_code == 0, done.stderr
    assert ": 3 thumbnails. These images are embedded again." in done.stderr
    fresh.assert_same(undisturbed)


def test_the_loser_of_two_ingests_of_one_name_can_clean_up(made, emulator_url, servers, tmp_path):
    with StandIn(servers["B"], once("create_dataset", lambda: take_name(made, servers))) as server:
        lost = made.run(server=server)
    assert lost.exit_code == 1
    index_id = made.index_id()
    again = made.run()
    assert again.exit_code == 1
    assert f"The dataset {made.name} is already there" in again.stderr
    assert f"indexes/{index_id}/, aux_labels/{index_id}/ and thumbnails/{index_id}/" in again.stderr
    cleaned = made.run("--restart")
    assert cleaned.exit_code == 1
    assert f"The earlier run in {made.work} was deleted, here and in" in cleaned.stderr
    assert made.storage.contents(made.index) == {}
    assert not (made.work / "state.sqlite").exists()


def test_restart_does_not_delete_a_registered_index(made, emulator_url, servers):
    """The earlier run may have ended between the registration and the record of it."""
    uploaded = registered_without_record(made, emulator_url, servers)
    again = made.run("--restart")
    assert again.exit_code == 1
    assert "the same command without --restart finishes it" in again.stderr
    assert made.storage.contents(made.index) == uploaded
    finished = made.run()
    assert finished.exit_code == 0, finished.stderr


def test_restart_under_another_name_does_not_delete_a_registered_index(made, emulator_url, servers):
    uploaded = registered_without_record(made, emulator_url, servers)
    other = made._replace(name=f"{made.name}-2")
    done = other.run("--restart")
    assert done.exit_code == 0, done.stderr
    assert uploaded.items() <= made.storage.contents(made.index).items()


def registered_without_record(made, emulator_url, servers):
    """Ingest, and take the record of the registration out of the state; returns the objects."""
    done = made.run()
    assert done.exit_code == 0, done.stderr
    state = State(made.work / "state.sqlite")
    state._db.execute("DELETE FROM options WHERE name IN ('registered', 'servers')")
    state.set_options({})
    state.close()
    return made.storage.contents(made.index)


def test_restart_for_a_taken_name_keeps_the_run_of_another_name(made, emulator_url, servers):
    with StandIn(emulator_url) as proxy:
        proxy.rules = [Rule(rf"GET .*{LAST_LIST}", "503")]
        assert made.run(storage=proxy).exit_code == 1
    state = State(made.work / "state.sqlite")
    state.set_options({"dataset": "another"})
    state.close()
    uploaded = made.storage.contents(made.index)
    assert uploaded
    take_name(made, servers)
    done = made.run("--restart")
    assert done.exit_code == 1 and "is already there" in done.stderr
    assert made.storage.contents(made.index) == uploaded
    assert (made.work / "state.sqlite").exists()


def take_name(made, servers):
    paths = {f"{split}_path": f"gs://{made.images}/{split}/" for split in ("train", "val")}
    payload = {"dataset": made.name, "index_id": str(uuid.uuid4()), **paths}
    ask(f"{servers['B']}/api/create_dataset_v2", "POST", json.dumps(payload).encode(), "text/json")


def test_a_flipped_bit_in_an_array_is_found_and_computed_again(
    undisturbed, fresh, emulator_url, servers
):
    with StandIn(emulator_url) as proxy:
        proxy.rules = [Rule(rf"GET .*{LAST_LIST}", "503")]
        assert fresh.run(storage=proxy).exit_code == 1
    for number, (name, dimension) in enumerate(DIMENSIONS.items()):
        flip(array_path(fresh.work, name), (2 + number) * dimension * 4 + 5)
    done = fresh.run()
    assert done.exit_code == 0, done.stderr
    assert f"The vectors of 3 images in {fresh.work} are damaged" in done.stderr
    assert "21 of 24 images are done" in done.stderr
    fresh.assert_same(undisturbed)


def test_a_flipped_bit_in_the_zeros_of_a_failed_image_is_found(made, emulator_url, servers):
    made.storage.put(made.images, "train/t0001.jpg", b"not an image")
    with StandIn(emulator_url) as proxy:
        proxy.rules = [Rule(rf"GET .*{LAST_LIST}", "503")]
        env = {"storage": proxy}
        assert made.run("--skip_bad_images", **env).exit_code == 1
    flip(array_path(made.work, "clip"), DIMENSIONS["clip"] * 4 + 5)
    done = made.run("--skip_bad_images")
    assert done.exit_code == 0, done.stderr
    assert f"The vectors of 1 image in {made.work} are damaged" in done.stderr
    clip = made.storage.get(made.index, f"indexes/{made.index_id()}/local/clip/embeddings.npy")
    rows = np.frombuffer(clip, DTYPE).reshape(-1, DIMENSIONS["clip"])
    assert rows.any(axis=1).tolist() == [True, False, True, True, True, True]


def test_arrays_that_are_gone_are_made_again_where_every_image_failed(
    storage, tmp_path, emulator_url, servers
):
    bad = dict.fromkeys(["train/a.jpg", "val/b.jpg"], b"not an image")
    made, env = dataset(storage, tmp_path / "made", bad), environment(emulator_url, servers["B"])
    assert made.run(**env).exit_code == 1
    shutil.rmtree(made.work / "index")
    done = made.run("--skip_bad_images", **env)
    assert done.exit_code == 0, done.stderr
    assert "2 images (1 training, 1 validation), 2 failed, 0 embedded now" in done.stdout


def test_a_bit_that_flips_before_the_upload_is_found(undisturbed, fresh, emulator_url, servers):
    """The last thumbnail is uploaded after the vectors of others are on the disk."""

    def damage():
        flip(array_path(fresh.work, "clip"), 0)

    with StandIn(emulator_url, once("v0005.jpg", damage)) as front:
        small = {"FAKE_WINDOW": "1", "FAKE_CHECKPOINT_S": "0.01"}
        done = fresh.run(storage=front, **small)
    assert done.exit_code == 1
    assert "The vectors of 1 image in" in done.stderr and "Nothing was registered." in done.stderr
    done = fresh.run()
    assert done.exit_code == 0, done.stderr
    fresh.assert_same(undisturbed)


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def in_place_of(name):
    return [
        (name, os.mkfifo, "a FIFO"),
        (name, os.mkdir, "a directory"),
        (name, lambda path: os.symlink("/dev/null", path), "a symbolic link"),
    ]


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        *in_place_of("lock"),
        *in_place_of("state.sqlite"),
        *in_place_of("index/labels.json"),
        *in_place_of("index/labels.json.tmp"),
        *in_place_of("index/local/clip/embeddings.npy"),
    ],
)
def test_what_is_not_a_regular_file_is_said_to_be_that(
    made, emulator_url, servers, name, make, kind
):
    path = made.work / name
    path.parent.mkdir(parents=True)
    (made.work / "lock").touch()
    path.unlink(missing_ok=True)
    make(path)
    done = made.run()
    assert done.exit_code == 1
    assert f"{path} is {kind}, not a regular file: remove it" in done.stderr


def test_a_summary_that_cannot_be_printed_is_said_after_everything_is_done(
    made, emulator_url, servers
):
    command = ["sh", "-c", '"$@" > /dev/full', "sh", *made.command()]
    done = run(command, environment(emulator_url, servers["B"]))
    assert done.exit_code == 1
    assert done.stderr.endswith(
        f"Error: {made.name} is registered. Only the summary could not be printed (No space left "
        "on device).\n"
    )
    assert made.registered()[1:] == (4, 2)
    again = run(command, environment(emulator_url, servers["B"]))
    assert again.exit_code == 1 and again.stderr == done.stderr[done.stderr.index("Error") :]


def test_a_dry_run_that_cannot_be_printed_is_one_sentence(made, emulator_url, servers):
    command = ["sh", "-c", '"$@" > /dev/full', "sh", *made.command("--dry_run")]
    done = run(command, environment(emulator_url, servers["B"]))
    assert done.exit_code == 1
    assert done.stderr.endswith(
        "Error: Every check passed. Only the summary could not be printed (No space left on "
        "device).\n"
    )


def test_a_state_without_index_id_uploads_nothing(made, emulator_url, servers):
    with StandIn(emulator_url) as proxy:
        proxy.rules = [Rule(DOWNLOAD, "404")]
        made.run(storage=proxy)
    state = State(made.work / "state.sqlite")
    state._db.execute("DELETE FROM options WHERE name = 'index_id'")
    state.close()
    done = made.run()
    assert done.exit_code == 1 and "its options do not match their checksum" in done.stderr
    assert made.storage.contents(made.index) == {}


def test_a_state_of_other_tables_is_one_sentence(made, emulator_url, servers):
    made.work.mkdir(parents=True)
    state = State(made.work / "state.sqlite")
    state._db.execute("CREATE TABLE options (name TEXT, value TEXT)")
    state.close()
    done = made.run()
    assert done.exit_code == 1
    assert (
        f"The state in {made.work} is damaged (its tables are not those of an ingest" in done.stderr
    )
    remove_state(made.work / "state.sqlite")
    shutil.rmtree(made.work)
