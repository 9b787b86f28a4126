"""A bucket that lives: images appear, vanish, change and move during a run; and what needs a word.

What changes between two runs is in test_stops.py.
"""

import itertools
import signal

import pytest

from testing.photographs import picture
from tests.commands.test_changes import once
from tests.commands.test_stops import CHANGES, DOWNLOAD
from tests.harness import ended, pictures
from tests.stand_in import Rule, StandIn

COPY = r"POST /batch/"
LAST_LIST = "val_identifiers.json"


@pytest.fixture
def stopped(make_world):
    """Eight training and two validation images, of which the first six are done."""
    made = make_world(pictures(8, 2))
    made.stop_at(Rule(DOWNLOAD, "403", after=6), FAKE_WINDOW="1")
    assert made.done() == [f"train/t000{number}.jpg" for number in range(6)]
    return made


def assert_as_if_new(made, tmp_path):
    """What is there is what a new ingest of today's images makes."""
    other = made.again(tmp_path / "other")
    other.ingest()
    made.assert_same(other)


def test_the_changes_are_said_in_one_line_and_only_what_is_new_is_computed(stopped, tmp_path):
    CHANGES["everything"](stopped)
    line = (
        "Since the last run: 2 images appeared, 1 vanished, 2 were renamed, 1 was replaced. "
        "1 computed image is computed again.\n"
    )
    assert stopped.ingest("--dry_run").stdout.startswith(line)
    assert len(stopped.done()) == 6
    done = stopped.ingest()
    assert line in done.stderr and "Copied vectors and thumbnails of 1 image in" in done.stderr
    assert "11 images (8 training, 3 validation), 0 failed, 7 embedded now" in done.stdout
    assert_as_if_new(stopped, tmp_path)
    assert stopped.report()["counts"]["reused"] == 0
    assert {path.name for path in stopped.work.iterdir()} <= {
        *("lock", "state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "index", "aux"),
        "report.json",
    }


def test_thumbnails_that_the_bucket_keeps_are_named_and_harm_nothing(stopped):
    """A retention policy: the thumbnail of an image that vanished cannot be deleted."""
    stopped.delete("train/t0001.jpg")
    with StandIn(stopped.storage.url, Rule("DELETE .*/o/thumbnails", "403")) as storage:
        done = stopped.ingest(storage=storage)
    assert "1 thumbnail of images that are not listed cannot be deleted from gs://" in done.stderr
    assert stopped.registered()


WHEN = LAST_LIST, r"t0003.jpg\?alt=media"  # the registration is near; images are downloaded


@pytest.mark.parametrize(
    ("change", "when"),
    [*zip(CHANGES, itertools.cycle(WHEN), strict=False), *(("everything", when) for when in WHEN)],
)
def test_a_bucket_that_changes_during_the_run_is_listed_again(make_world, tmp_path, change, when):
    made = make_world(pictures(6, 2))
    with StandIn(made.storage.url, once(when, lambda: CHANGES[change](made))) as storage:
        done = made.ingest(storage=storage)
    assert "Since the images were listed: " in done.stderr
    assert_as_if_new(made, tmp_path)


@pytest.mark.parametrize("options", [["--skip_bad_images"], ["--decode_in", "processes"]])
def test_an_image_that_is_replaced_before_its_download_is_fetched_again(
    make_world, tmp_path, options
):
    made = make_world(pictures(6, 2))
    replace = once(r"t0003.jpg\?alt=media", lambda: CHANGES["one is replaced"](made))
    with StandIn(made.storage.url, replace) as storage:
        done = made.ingest(*options, storage=storage)
    assert "1 image changed in the bucket since the listing" in done.stderr
    assert "\n  train/t0003.jpg: it was replaced after it was listed\n" in done.stderr
    assert_as_if_new(made, tmp_path)


def test_a_bucket_that_never_holds_still_is_given_up_in_words(make_world, tmp_path):
    made, numbers = make_world(pictures(3, 1)), itertools.count(100)

    def rule(asked):
        if LAST_LIST in asked.path:
            made.put(f"train/{next(numbers)}.jpg")

    with StandIn(made.storage.url, rule) as storage:
        done = made.run(storage=storage)
    assert done.exit_code == 1
    assert done.stderr.count("Since the images were listed: ") == 5
    message = done.stderr[done.stderr.index("Error: ") :]
    assert message.startswith("Error: The bucket changed in each of 5 rounds, so nothing was reg")
    assert "\nAll that is computed is kept. Run the same command again when gs://" in message
    assert made.registered() is None
    assert "0 embedded now" not in made.ingest().stdout
    assert_as_if_new(made, tmp_path)


def test_most_of_what_is_computed_is_not_left_out_without_a_word(stopped, tmp_path):
    """Someone moves the directory: when that is done, all is found under the new names."""
    names = [name for name in stopped.statuses() if name.startswith("train/")]
    contents = {name: stopped.storage.get(stopped.images, name) for name in names}
    stopped.delete(*names)
    stopped.put("train/other.jpg")
    before = stopped.statuses(), stopped.left_behind()
    for options in ([], ["--dry_run"]):
        stopped.run(*options).failed(
            "6 of 6 computed images would be left out", "add --accept_changes."
        )
    assert (stopped.statuses(), stopped.left_behind()) == before
    accepted = stopped.run("--accept_changes", "--dry_run")
    assert accepted.stdout.startswith("Since the last run: 1 image appeared, 8 vanished.")
    for name, content in contents.items():
        stopped.storage.put(stopped.images, name.replace("/t", "/moved/image-"), content)
    assert "5 embedded now" in stopped.ingest().stdout  # those that were pending, and the new one
    assert_as_if_new(stopped, tmp_path)


def test_most_of_what_is_computed_is_left_out_where_that_is_accepted(stopped, tmp_path):
    stopped.delete(*(f"train/t000{number}.jpg" for number in range(1, 8)))
    stopped.ingest("--accept_changes")
    assert_as_if_new(stopped, tmp_path)


def test_what_vanishes_and_comes_back_is_not_computed_again(stopped, tmp_path):
    """Until the index is whole, the vectors of images that are not listed are kept."""
    content = stopped.storage.get(stopped.images, "train/t0001.jpg")
    stopped.delete("train/t0001.jpg")
    stopped.stop_at(Rule(DOWNLOAD, "403"))
    assert len(stopped.done()) == 5
    stopped.storage.put(stopped.images, "val/back.jpg", content)
    assert "4 embedded now" in stopped.ingest().stdout
    assert_as_if_new(stopped, tmp_path)


def test_broken_files_that_were_deleted_are_left_out(make_world):
    made = make_world({**pictures(3, 1), "train/bad.jpg": b"no image", "train/worse.jpg": b""})
    assert made.run().exit_code == 1
    made.delete("train/bad.jpg", "train/worse.jpg")
    done = made.ingest()
    assert "4 images (3 training, 1 validation), 0 failed, 0 embedded now" in done.stdout
    assert not (made.work / "failed.json").exists()


def test_damaged_vectors_are_not_kept(stopped, tmp_path):
    with open(stopped.work / "index/local/clip/embeddings.npy", "r+b") as file:
        file.seek(2 * 512 * 4)
        file.write(b"\1\2\3")
    stopped.rename("train/t0002.jpg", "train/renamed.jpg")
    assert "as their vectors are damaged there: 1." in stopped.ingest().stderr
    assert_as_if_new(stopped, tmp_path)


def test_kills_within_a_reconciliation_lose_nothing(stopped, tmp_path):
    """Killed while images are copied, and at renamings of files; each kill after another."""
    CHANGES["everything"](stopped)
    with StandIn(stopped.storage.url, Rule(COPY, "kill-after")) as storage:
        storage.victim = stopped.start(storage=storage, FAKE_CHECKPOINT_S="0.01")
        assert ended(storage.victim).exit_code == -signal.SIGKILL
        stopped.assert_done_is_done()
        storage.rules = []
        for number in itertools.count(2, 4):  # the first is that of the report
            process = stopped.start(storage=storage, FAKE_KILL=f"replace {number}")
            if (done := ended(process)).exit_code == 0:
                break
            assert done.exit_code == -signal.SIGKILL
            stopped.assert_done_is_done()
        assert number >= 6
        assert len(storage.requests(DOWNLOAD)) == 7
    assert_as_if_new(stopped, tmp_path)


def test_a_registered_index_does_not_change(make_world):
    """The earlier run may have ended between the registration and the record of it."""
    made = make_world(pictures(2, 1))
    made.ingest()
    made.set_options(registered=None, servers=None)
    uploaded = made.left_behind()
    made.storage.put(made.images, "train/new.jpg", picture(98))
    for options in ([], ["--dry_run"]):
        made.run(*options).failed(
            f"{made.name} is registered with the index in {made.work}, and the",
            f"with --reuse {made.work} and another --work_dir",
        )
    assert made.left_behind() == uploaded
