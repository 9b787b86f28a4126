"""What changes behind an ingest's back: the bucket, the name on the server, the disk."""

import json
import os
import shutil
import signal
import uuid

import pytest

from dataset.arrays import DIMENSIONS, array_path
from tests.harness import Index, ask, ended, pictures, start
from tests.stand_in import Rule, StandIn

LAST_LIST = "val_identifiers.json"
AT_LAST_LIST = Rule(rf"GET .*{LAST_LIST}", "503")  # when all images are embedded


@pytest.fixture
def made(make_world):
    return make_world(pictures(4, 2))


def rename(made):
    made.rename("train/t0001.jpg", "train/another.jpg")


def replace(made):
    made.put("train/t0001.jpg")


CHANGES = [
    (rename, ["1 renamed: train/another.jpg"]),
    (replace, ["1 replaced: train/t0001.jpg"]),
]


def once(pattern, change):
    """A rule that changes something just before a request is forwarded, once."""
    return Rule(pattern, lambda asked: change(), times=1)


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_bucket_that_changed_while_the_server_listed_it(made, change, said):
    with StandIn(made.server, once("create_dataset", lambda: change(made))) as server:
        done = made.run(server=server)
        again = made.run(server=server)
    assert done.exit_code == again.exit_code == 1
    assert f"{made.name} is registered, but the images in the bucket changed" in done.error
    assert all(f"\n  {line}" in done.error for line in said)
    assert again.error == done.error


def test_a_kill_after_the_registration_skips_no_comparison(made):
    """The third listing of a split is that of the second comparison."""
    rule = Rule("GET /storage/.*prefix=val", "kill-before", after=2)
    with (
        StandIn(made.server, once("create_dataset", lambda: replace(made))) as server,
        StandIn(made.storage.url, rule) as storage,
    ):
        storage.victim = made.start(storage=storage, server=server)
        assert ended(storage.victim).exit_code == -signal.SIGKILL
        assert made.registered()
        again = made.run(server=server)
    assert again.exit_code == 1
    assert "is registered" in again.error and "replaced: train/t0001.jpg" in again.error


def test_thumbnails_deleted_between_two_runs_are_uploaded_again(undisturbed, fresh):
    fresh.stop_at(AT_LAST_LIST)
    contents = fresh.storage.contents(fresh.index)
    for name in [name for name in contents if name.startswith("thumbnails/")][:3]:
        fresh.storage.delete(fresh.index, name)
    done = fresh.ingest()
    assert ": 3 thumbnails. These images are embedded again." in done.stderr
    fresh.assert_same(undisturbed)


# The name on the server, and --restart


def take_name(made):
    paths = {f"{split}_path": f"gs://{made.images}/{split}/" for split in ("train", "val")}
    payload = {"dataset": made.name, "index_id": str(uuid.uuid4()), **paths}
    ask(f"{made.server}/api/create_dataset_v2", "POST", json.dumps(payload).encode(), "text/json")


def test_the_loser_of_two_ingests_of_one_name_can_clean_up(made):
    with StandIn(made.server, once("create_dataset", lambda: take_name(made))) as server:
        assert made.run(server=server).exit_code == 1
    index_id = made.index_id()
    made.run().failed(
        f"The dataset {made.name} is already there",
        f"indexes/{index_id}/, aux_labels/{index_id}/ and thumbnails/{index_id}/",
    )
    made.run("--restart").failed(f"The earlier run in {made.work} was deleted, here and in")
    assert made.storage.contents(made.index) == {}
    assert not (made.work / "state.sqlite").exists()


@pytest.mark.parametrize("suffix", ["", "-2"])
def test_restart_does_not_delete_a_registered_index(made, suffix):
    """Though the earlier run ended before it recorded the registration; under any name."""
    made.ingest()
    made.set_options(registered=None, servers=None)
    uploaded = made.storage.contents(made.index)
    again = made.changed(name=made.name + suffix).run("--restart")
    if suffix:
        assert again.exit_code == 0, again.stderr
    else:
        assert again.exit_code == 1
        assert "the same command without --restart finishes it" in again.error
        made.ingest()
    assert uploaded.keys() <= made.storage.contents(made.index).keys()


def test_restart_for_a_taken_name_keeps_the_run_of_another_name(made):
    made.stop_at(AT_LAST_LIST)
    made.set_options(dataset="another")
    uploaded = made.storage.contents(made.index)
    assert uploaded
    take_name(made)
    made.run("--restart").failed("is already there")
    assert made.storage.contents(made.index) == uploaded
    assert (made.work / "state.sqlite").exists()


# The disk


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def test_a_flipped_bit_in_an_array_is_found_and_computed_again(undisturbed, fresh):
    fresh.stop_at(AT_LAST_LIST)
    for number, (name, dimension) in enumerate(DIMENSIONS.items()):
        flip(array_path(fresh.work, name), (2 + number) * dimension * 4 + 5)
    done = fresh.ingest()
    assert f"The vectors of 3 images in {fresh.work} are damaged" in done.stderr
    assert "Embedded 3 images in" in done.stderr
    fresh.assert_same(undisturbed)


def test_a_flipped_bit_in_the_zeros_of_a_failed_image_is_found(made):
    made.put(**{"train/t0001.jpg": b"not an image"})
    made.stop_at(AT_LAST_LIST, "--skip_bad_images")
    flip(array_path(made.work, "clip"), DIMENSIONS["clip"] * 4 + 5)
    done = made.ingest("--skip_bad_images")
    assert f"The vectors of 1 image in {made.work} are damaged" in done.stderr
    clip = Index(made.objects()).arrays["clip"]
    assert clip.any(axis=1).tolist() == [True, False, True, True, True, True]


def test_arrays_that_are_gone_are_made_again_where_every_image_failed(make_world):
    made = make_world(dict.fromkeys(["train/a.jpg", "val/b.jpg"], b"not an image"))
    assert made.run().exit_code == 1
    shutil.rmtree(made.work / "index")
    done = made.ingest("--skip_bad_images")
    assert "2 images (1 training, 1 validation), 2 failed, 0 embedded now" in done.stdout


def test_a_bit_that_flips_before_the_upload_is_found(undisturbed, fresh):
    """The last thumbnail is uploaded after the vectors of others are on the disk."""

    def damage():
        flip(array_path(fresh.work, "clip"), 0)

    with StandIn(fresh.storage.url, once("v0005.jpg", damage)) as storage:
        done = fresh.ingest(storage=storage, FAKE_WINDOW="1", FAKE_CHECKPOINT_S="0.01")
    assert "The vectors of 1 image in" in done.stderr
    fresh.assert_same(undisturbed)


IN_PLACE = {
    "a FIFO": os.mkfifo,
    "a directory": os.mkdir,
    "a symbolic link": lambda path: os.symlink("/dev/null", path),
}
FILES = (
    *("lock", "state.sqlite", "index/labels.json", "index/labels.json.tmp"),
    "index/local/clip/embeddings.npy",
)


@pytest.mark.parametrize(("name", "kind"), [*zip(FILES, [*IN_PLACE, *IN_PLACE], strict=False)])
def test_what_is_not_a_regular_file_is_said_to_be_that(made, name, kind):
    path = made.work / name
    path.parent.mkdir(parents=True)
    (made.work / "lock").touch()
    path.unlink(missing_ok=True)
    IN_PLACE[kind](path)
    made.run().failed(f"{path} is {kind}, not a regular file: remove it")


@pytest.mark.parametrize(
    ("options", "words"), [([], "is registered."), (["--dry_run"], "Every check passed.")]
)
def test_a_summary_that_cannot_be_printed_is_said_after_everything_is_done(made, options, words):
    command = ["sh", "-c", '"$@" > /dev/full', "sh", *made.command(*options)]
    done = ended(start(command, dict(os.environ))).failed()
    assert done.error.endswith(
        f"{words}\nOnly the summary cannot be printed (No space left on device).\n"
    )
    assert (made.registered() is None) == bool(options)
