"""The durable state: rows in order, what is done, one ingest at a time."""

import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import DiskError
from dataset.state.changes import Changes, Comparison, Numbers
from dataset.state.rows import TRAIN, VAL, Counts, Outcome, State
from dataset.state.schema import REPLACED, VANISHED
from dataset.work_directory import WorkDirectory
from gcs import ListedObject

INDEX_ID = "12345678-1234-4234-8234-123456789abc"
ROOT = Path(__file__).parents[2]


def listed(name, size=10, generation=1):
    return ListedObject(name, size, 2**32 - 1, generation)


@pytest.fixture
def make_state(tmp_path):
    states = []

    def make(train=(), val=(), name="state.sqlite"):
        state = State.create(tmp_path / name)
        states.append(state)
        for split, objects in ((TRAIN, train), (VAL, val)):
            state.add(split, [listed(o) if isinstance(o, str) else o for o in objects])
        state.number_rows()
        return state

    yield make
    for state in states:
        state.close()


def test_rows_are_training_then_validation_each_sorted_by_name(make_state):
    train = [
        "b.jpg",
        "a.jpg",
        "a/z.jpg",
        "B.jpg",
        "é.jpg",
        "a-.jpg",
        "\uffee.jpg",
        "😀.jpg",
        "ü.png",
    ]
    random.Random(1).shuffle(train)
    state = make_state(train, ["0.jpg", "-.jpg"])
    assert list(state.objects()) == [*sorted(train), "-.jpg", "0.jpg"]
    assert list(state.identifiers(VAL)) == [("-", 9), ("0", 10)]
    assert [row.row for row in state.pending()] == list(range(11))


def test_a_row_keeps_what_was_listed(make_state):
    state = make_state([ListedObject("a.jpg", 2**40, 2**32 - 1, 2**62)])
    assert next(state.pending()).listed == ListedObject("a.jpg", 2**40, 2**32 - 1, 2**62)


def test_only_lower_case_image_suffixes_become_rows(make_state):
    images = ["a.jpg", "b.jpeg", "c.png", "d.e.jpg", ".jpg"]
    others = ["f.JPG", "g.Png", "h.txt", "i.JPG", "dir/", "README", "x.jpg.gz", ".hidden", "k.jpg/"]
    state = make_state(images + others)
    assert state.counts().images == 5
    assert state.skipped() == [
        (".JPG", 2, "f.JPG"),
        ("directory", 2, "dir/"),
        ("no extension", 2, "README"),
        (".Png", 1, "g.Png"),
        (".gz", 1, "x.jpg.gz"),
        (".txt", 1, "h.txt"),
    ]


def test_duplicates_over_both_splits(make_state):
    state = make_state(["x/a.jpg", "y/a.png", "y/b.jpg", "c.jpg"], ["b.jpg", "C.jpg"])
    assert dict(state.duplicates()) == {"a": ["x/a.jpg", "y/a.png"], "b": ["y/b.jpg", "b.jpg"]}


def test_all_duplicates_are_found_in_one_query(make_state):
    """A query for each name would read all rows for each: hours for a copied directory."""
    state = make_state([f"t/{n}.jpg" for n in range(50)], [f"v/{n}.jpg" for n in range(50)])
    queries = []
    state._db.set_trace_callback(queries.append)
    assert len(dict(state.duplicates())) == 50
    assert len(queries) == 1


def test_close_stops_a_statement_of_another_thread(tmp_path, monkeypatch):
    """After Ctrl-C a thread may be numbering a million rows."""
    running = threading.Event()

    def slow_checksum(*values):
        running.set()
        time.sleep(0.001)
        return 0

    monkeypatch.setattr("dataset.state.state_file.row_checksum", slow_checksum)
    state = State.create(tmp_path / "listing.sqlite")
    state.add(TRAIN, [listed(f"{n}.jpg") for n in range(20_000)])
    with ThreadPoolExecutor(1) as threads:
        numbering = threads.submit(state.number_rows)
        assert running.wait(60)
        state.close()
        with pytest.raises(sqlite3.Error):
            numbering.result()


def test_lengths_are_counted_in_characters(make_state):
    fits, too_long = "é" * 300 + ".jpg", "é" * 301 + ".jpg"
    deep, too_deep = "d/" * 297 + "ab.jpg", "d/" * 297 + "abc.jpg"
    state = make_state([fits, too_long, deep, too_deep])
    assert (len(deep), len(too_deep)) == (600, 601)
    assert state.longer_than(300, 600) == sorted([too_long, too_deep])


def test_record_and_counts(make_state):
    state = make_state(["a.jpg", "b.jpg", "c.jpg"], [listed("d.jpg", 5)])
    state.record([Outcome(3, 5, None), Outcome(1, None, "no image")])
    assert state.counts() == Counts(4, 35, 1, 1)
    assert state.counts(VAL) == Counts(1, 5, 1, 0)
    assert state.failed() == [("b.jpg", "no image")]
    assert [row.row for row in state.pending()] == [0, 2]
    assert list(state.imagenet_classes()) == [("d.jpg", 5)]
    assert state.has_pending()


def test_pending_goes_on_while_rows_are_recorded(make_state):
    state = make_state([f"{number:04}.jpg" for number in range(2500)])
    seen = []
    for row in state.pending():
        seen.append(row.row)
        state.record([Outcome(row.row, 0, None)] if row.row % 500 == 0 else [])
    assert seen == list(range(2500))
    assert not State.has_pending(make_state(name="empty.sqlite"))


def test_failed_rows_can_be_tried_again(make_state):
    state = make_state(["a.jpg", "b.jpg"])
    state.record([Outcome(0, 1, None), Outcome(1, None, "bad")])
    assert state.retry_failed() == 1
    assert [row.row for row in state.pending()] == [1]
    assert state.failed() == []


def test_an_outcome_survives_the_process(make_state, tmp_path):
    make_state(["a.jpg", "b.jpg"])
    code = (
        "import os, sys; from pathlib import Path; from dataset.state.rows import Outcome, State\n"
        "state = State(Path(sys.argv[1])); state.set_options({'index_id': sys.argv[2]})\n"
        "state.record([Outcome(1, 42, None)]); os._exit(9)"
    )
    path = str(tmp_path / "state.sqlite")
    assert subprocess.run([sys.executable, "-c", code, path, INDEX_ID], cwd=ROOT).returncode == 9
    state = State(tmp_path / "state.sqlite")
    assert (state.index_id, list(state.imagenet_classes())) == (INDEX_ID, [("b.jpg", 42)])
    state.close()


def test_changes_since_the_listing(make_state):
    """A new generation of the same bytes is no change, nor are new bytes where nothing is done."""
    old = make_state(["same.jpg", "gone.jpg", "new.jpg", "pending.jpg", "moved.jpg"])
    old.record(Outcome(row, 1, None) for row in (2, 4))
    newer = [listed("same.jpg", 10, 2), listed("new.jpg", 11, 2), listed("pending.jpg", 11, 2)]
    new = make_state([*newer, "more.jpg"], ["moved.jpg"], "l.sqlite")
    moved = Changes(["more.jpg", "moved.jpg"], ["gone.jpg", "moved.jpg"], ["new.jpg"])
    with Comparison(old.path, new.path) as compared:
        assert compared.changes(done_only=True) == moved
        assert compared.changes() == moved._replace(changed=["new.jpg", "pending.jpg"])
    with Comparison(old.path, old.path) as compared:
        assert not compared.changes()


def test_a_list_that_is_kept_gives_up_what_vanished_or_changed(make_state):
    old = make_state(["a.jpg", "bad.jpg", "gone.jpg", "new.jpg"], ["back.jpg"])
    old.record([Outcome(0, 1, None), Outcome(1, None, "bad"), Outcome(2, 2, None)])
    changed = [listed(f"{name}.jpg", 11, 2) for name in ("bad", "new")]
    new = make_state(["a.jpg", *changed], ["back.jpg"], "l.sqlite")
    with Comparison(old.path, new.path) as compared:
        unlisted = compared.unlisted()
        assert unlisted == [(1, REPLACED), (2, VANISHED), (3, REPLACED)]
        assert compared.changes(as_listed=True) == Changes([], ["gone.jpg"], ["new.jpg"])
        assert compared.numbers() == Numbers(2, 1, 3, 1, 1)
    old.record(Outcome(row, None, reason) for row, reason in [*unlisted, (4, VANISHED)])
    assert (old.present(TRAIN), old.present(VAL)) == (3, 0)
    with Comparison(old.path, new.path) as compared:
        assert compared.changes(as_listed=True) == Changes(["back.jpg"], [], [])
    old.retry_given_up()
    assert [row.row for row in old.pending()] == [1, 2, 3, 4]


def test_rows_that_a_newer_listing_keeps(make_state):
    """The same bytes under the same identifier, or under one that no row that is done has."""
    old = make_state(
        [listed("a.jpg", 1), listed("b.jpg", 2), listed("c.jpg", 3), listed("d.jpg", 4)],
        [listed("e.jpg", 5), listed("f.jpg", 1)],
    )
    old.record(
        Outcome(row, row, None, 10 + row, source="x/7" if row == 1 else None) for row in range(5)
    )
    new = make_state(
        [
            listed("a.jpg", 1, 2),
            listed("deep/b.png", 2),
            listed("c.jpg", 4),  # has the bytes of d.jpg, and the thumbnail of c.jpg is there
            listed("f.jpg", 1),  # was pending
            listed("g.jpg", 5),
            listed("h.jpg", 9),
        ],
        name="l.sqlite",
    )
    with Comparison(old.path, new.path) as compared:
        found = [(m.source_row, m.row, m.identifier, m.origin) for m in compared.unchanged()]
        assert found == [
            (0, 0, "a", None),
            (0, 3, "f", None),
            (1, 2, "b", "x/7"),
            (4, 4, "g", None),
        ]
        assert compared.numbers()[:2] == (4, 2)


def test_a_replaced_object_is_taken_only_where_its_row_is_not_done(make_state, tmp_path):
    old = make_state(["done.jpg", "failed.jpg", "pending.jpg", "same.jpg", "still.jpg"])
    old.record([Outcome(0, 1, None), Outcome(1, None, "bad"), Outcome(3, 4, None, 5)])
    old.record([Outcome(4, None, "bad", 6)])
    replaced = [listed(f"{name}.jpg", 99, 2) for name in ("done", "failed", "pending")]
    new = make_state([*replaced, listed("same.jpg", 10, 2), "still.jpg"], name="listing.sqlite")
    assert old.take_replaced(new.path) == 2
    assert [row.listed for row in old.pending()] == replaced[1:]
    with Comparison(old.path, new.path) as compared:
        assert compared.changes(done_only=True) == Changes([], [], ["done.jpg"])
    assert old.failed() == [("still.jpg", "bad")]
    assert list(old.vector_checksums()) == [(0, None), (3, 5), (4, 6)]
    assert old.rows([3])[0].listed.generation == 2
    old.close()
    State.open_checked(tmp_path / "state.sqlite").close()


def test_move_takes_everything_along(make_state, tmp_path):
    state = make_state(["a.jpg"], name="listing.sqlite")
    (tmp_path / "state.sqlite-wal").write_bytes(b"of an older state")
    moved = state.move(tmp_path / "state.sqlite")
    assert list(moved.objects()) == ["a.jpg"]
    assert moved.directory == tmp_path
    moved.close()
    assert [path.name for path in tmp_path.iterdir()] == ["state.sqlite"]


def test_second_ingest_in_a_work_directory_is_refused(tmp_path):
    with WorkDirectory(tmp_path / "work"), pytest.raises(DiskError) as refused:
        WorkDirectory(tmp_path / "work").__enter__()
    assert refused.value.message == (
        f"Another ingest is running in {tmp_path / 'work'}: wait for it, end it, or choose another "
        "directory with --work_dir."
    )
    with WorkDirectory(tmp_path / "work") as work:
        assert work.state() is None


def test_the_lock_goes_with_its_process(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from dataset.work_directory import WorkDirectory\n"
        "work = WorkDirectory(Path(sys.argv[1])); work.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == 9
    with WorkDirectory(tmp_path):
        pass


def test_a_directory_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DiskError) as refused:
        WorkDirectory(tmp_path).__enter__()
    assert refused.value.message == (
        f"The directory {tmp_path} has files that are not of an ingest: choose another with "
        "--work_dir."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "work"
    with pytest.raises(DiskError) as refused:
        WorkDirectory(path).__enter__()
    assert refused.value.message == (
        f"The work directory {path} cannot be written (Not a directory): choose another with "
        "--work_dir."
    )


def test_an_unused_work_directory_leaves_nothing_behind(tmp_path):
    with WorkDirectory(tmp_path / "work") as work:
        work.new_listing()
    assert list(tmp_path.iterdir()) == []


def test_a_used_work_directory_stays(tmp_path):
    with WorkDirectory(tmp_path / "work") as work:
        work.adopt(work.new_listing())
    assert (tmp_path / "work" / "state.sqlite").exists()


def test_a_statement_that_takes_too_long_is_stopped(tmp_path):
    state = State.create(tmp_path / "state.sqlite")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT max(i) FROM n"
    with pytest.raises(sqlite3.OperationalError, match="interrupted"), state.limited_to(0.01):
        state._db.execute(endless).fetchone()
    with state.limited_to(60):
        assert state.skipped() == []
    state.close()
