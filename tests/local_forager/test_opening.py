"""`export` of work directories and indexes in the bucket, its subsets, and what it refuses."""

import fcntl
import json
import shutil
import sqlite3
from contextlib import closing

import pytest

from local_forager.commands.export import export_set
from tests.harness import invoked
from tests.local_forager.page_server import COPY, FAILED, NAMES

NO_INDEX = "0" * 8 + "-0000" * 3 + "-" + "0" * 12


def export(*arguments):
    """`python -m local_forager export` in this process."""
    return invoked(export_set, [str(one) for one in arguments])


def names(done):
    return done.succeeded().stdout.split()


@pytest.fixture
def dataset(server):
    """Arguments for the dataset "d" of the local Forager."""
    return "d", "--data_dir", server.data_dir, "--bucket", server.index


@pytest.fixture
def birds(undisturbed, tmp_path, monkeypatch):
    """A copy of the work directory of a finished ingest: ./birds."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(undisturbed.work, "birds")
    return tmp_path / "birds"


def test_a_work_directory_is_the_index_that_was_uploaded(undisturbed, birds):
    of_index = "--index_id", undisturbed.index_id(), "--bucket", undisturbed.index
    for options in ((), ("--format", "csv"), ("--set", "typical", "--count", 7)):
        found = export("./birds", *options).succeeded().stdout
        named = export("birds", *options)
        assert found == named.stdout
        assert "no dataset named birds here: reading the work directory" in named.stderr
        assert found == export(*of_index, *options).stdout
    rows = export("./birds", "--format", "csv", "--split", "val").stdout.splitlines()[1:]
    assert len(rows) == 6 and all(",40,30," in row for row in rows)
    assert not (birds / "state.sqlite-wal").exists()


def test_a_second_subset_adds_to_the_first(birds):
    first = names(export("./birds", "--set", "diverse", "--count", 5))
    both = names(export("./birds", "--set", "diverse", "--count", 9))
    assert both[:5] == first
    stem = first[1].rpartition("/")[2].rpartition(".")[0]
    lines = [first[0], "", f"{stem}\r", first[2].rpartition("/")[2], *first[3:]]
    (birds.parent / "first.txt").write_text("\n".join(lines))
    like = "--set", "diverse", "--like", "first.txt", "--count"
    assert names(export("./birds", *like, 4)) == both[5:]
    done = export("./birds", *like, 1_000)
    assert set(names(done)) | set(first) == set(names(export("./birds")))
    assert "Only 19 of 1,000 were left to choose from" in done.stderr


@pytest.mark.parametrize("kind", ["diverse", "typical"])
def test_subset_of_a_dataset(server, dataset, kind):
    asked = *dataset, "--set", kind, "--count", 100, "--by", "imagenet"
    found = names(export(*asked))
    assert len(found) == len(set(found)) == 78
    assert not {NAMES[FAILED], "" if NAMES[2] in found else NAMES[COPY]} & set(found)
    assert len(names(export(*asked, "--unlabelled"))) == 73
    assert set(names(export(*asked, "--split", "val"))) <= set(NAMES[60:])
    bird = "--category", "bird"
    assert set(names(export(*asked, *bird))) == {*NAMES[:3], NAMES[60]} & set(found)
    assert names(export(*asked, *bird, "--mode", "NEGATIVE")) == [NAMES[3]]
    labels = json.loads(export(*asked, *bird, "--format", "labels").succeeded().stdout)
    assert list(labels) == found and labels[found[0]] == [{"category": "bird"}]


def test_other_sets_take_the_filters_too(dataset):
    leaks = *dataset, "--set", "leaks", "--by", "imagenet"
    assert names(export(*leaks, "--split", "val")) == [NAMES[COPY]]
    assert names(export(*dataset, "--category", "sky", "--mode", "far away")) == [
        NAMES[1], NAMES[7],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "diverse"], "--set diverse needs --count"),
        (["--set", "diverse", "--count", "0"], "0 is not in the range"),
        (["--set", "typical", "--count", "-3"], "-3 is not in the range"),
        (["--count", "5"], "--count goes with --set diverse or --set typical or --like_image."),
        (["--mode", "far away"], "--mode goes with --category."),
        (["--set", "leaks", "--like", "some.txt"], "--like goes with"),
        (["--out", "no/x.txt"], "--out no/x.txt: there is no such directory"),
        (["--out", "/dev/full"], "/dev/full cannot be written (No space left on device): name"),
        (["--category", "sky"], "label sky in mode POSITIVE; its modes are: far away."),
        (["--index_id", "../../etc"], "'../../etc' is no index id: 8-4-4-4-12 hexadecimal digits"),
        (["--index_id", NO_INDEX], "Name a dataset or a work directory, or give --index_id"),
        (["--format", "labels"], "needs a category"),
        (["--threshold", "1"], "--threshold goes with --set dark or"),
        (["--distance", "0.1"], "--distance goes with --set near_duplicates or"),
        *((["--set", "leaks", "--distance", d], "'--distance': ") for d in ("2.5", "nan", "x")),
        (["--like", "https://u:secret@h/x"], "'--like': https://... is an address, not a path"),
        (["--set", "failed", "--keep", "one"], "--keep goes with --set exact_duplicates or"),
        (
            ["--set", "typical", "--count", "5", "--like_image", __file__],
            "--like_image does not go with --set",
        ),
        (
            ["--category", "cat"],
            "no image has the label cat in mode POSITIVE; the categories are: bi",
        ),
        (["--set", "diverse", "--count", "5", "--like", "nothing.txt"], "does not exist"),
        (["--set", "diverse", "--count", "5", "--like", "empty.txt"], "empty.txt names no image"),
        (
            ["--set", "diverse", "--count", "5", "--like", "latin.txt"],
            "latin.txt is not UTF-8 text",
        ),
        (
            ["--set", "diverse", "--count", "5", "--like", "some.txt"],
            r"12 lines name no image: n0\x1b, n1, n2 and 9 more. Write one name a line",
        ),
    ],
)
def test_what_export_refuses(dataset, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("empty.txt", b"\n \n"),
        ("latin.txt", b"caf\xe9"),
        ("some.txt", b"t00\nn0\x1b\n" + b"".join(b"n%d\n" % n for n in range(1, 12))),
    ):
        (tmp_path / name).write_bytes(content)
    done = export(*dataset, *options)
    assert done.exit_code in (1, 2) and not done.stdout
    assert message.lower() in done.error.lower() and done.error.count("\n") == 1


def test_an_ingest_that_is_running(birds):
    with (birds / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        export("./birds").failed("An ingest is running in birds: wait until it has ended.")
    export("./birds").succeeded()


def unregister(birds):
    with closing(sqlite3.connect(birds / "state.sqlite")) as db, db:
        db.execute("DELETE FROM options WHERE name = 'registered'")


DAMAGE = {
    "do not match their checksum": unregister,
    "birds has no state.sqlite: name the directory of a finished ingest": shutil.rmtree,
    "birds has no state.sqlite": lambda birds: (birds / "state.sqlite").unlink(),
    "or its state.sqlite is damaged": lambda birds: (birds / "state.sqlite").write_bytes(b"x" * 99),
    "has 4 bytes": lambda birds: (birds / "index/local/clip/embeddings.npy").write_bytes(b"1234"),
    "labels.json of the index cannot be read": lambda birds: (birds / "index/labels.json").unlink(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_work_directory_that_cannot_be_used(birds, message):
    DAMAGE[message](birds)
    done = export("./birds").failed(message)
    assert done.error.count("\n") == 1


def test_an_ingest_that_is_not_finished(make_world):
    world = make_world({"train/a.jpg": b"no image", "val/b.jpg": b"no image"})
    world.run().failed("nothing was registered")
    export(world.work).failed("is not finished: run it again, then export.")


@pytest.mark.parametrize("option", ["--unlabelled", "--category=x", "--set=contradictions"])
def test_a_work_directory_has_no_labels(birds, option):
    export("./birds", option).failed("Only a dataset of the local Forager has labels: name one, or")


def test_names_and_indexes_that_do_not_exist(server, dataset, emulator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export("birdz", *dataset[1:]).failed("There is no dataset named birdz in", "It has: d")
    export("birdz").failed("A work directory such as ./birds, or --index_id, can be exported too")
    export("gs://b/birds").failed("gs://b/birds is an address: name a dataset")
    (tmp_path / "forager.sqlite3").write_bytes(b"damaged" * 100)
    damaged = "forager.sqlite3 cannot be used (file is not a database): check your rights"
    export("birds", "--data_dir", ".").failed(damaged)
    missing = "--index_id", NO_INDEX, *dataset[3:]
    export(*missing).failed("There is no complete index in gs://", f"/indexes/{NO_INDEX}/")
