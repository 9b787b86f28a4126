"""The durable state: images in order, what is done, newer listings, one ingest at a time."""

import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.errors import DiskError
from dataset.images import DONE, FAILED, PENDING
from dataset.listing import Split
from dataset.state import Counts, Outcome, State
from dataset.work_directory import WorkDirectory
from gcs import ListedObject
from tests.dataset.states import images, listed, state_of, take


def test_a_row_keeps_what_was_listed(make_state):
    state = make_state([ListedObject("a.jpg", 2**40, 2**32 - 1, 2**62)])
    assert next(state.pending()).listed == ListedObject("a.jpg", 2**40, 2**32 - 1, 2**62)


def test_only_lower_case_image_suffixes_are_images(make_listing):
    images = ["a.jpg", "b.jpeg", "c.png", "d.e.jpg", ".jpg"]
    others = ["f.JPG", "g.Png", "h.txt", "i.JPG", "dir/", "README", "x.jpg.gz", ".hidden", "k.jpg/"]
    listing = make_listing(images + others)
    assert listing.counts().images == 5
    assert listing.skipped() == [
        (".JPG", 2, "f.JPG"),
        ("directory", 2, "dir/"),
        ("no extension", 2, "README"),
        (".Png", 1, "g.Png"),
        (".gz", 1, "x.jpg.gz"),
        (".txt", 1, "h.txt"),
    ]


def test_duplicates_over_both_splits(make_listing):
    listing = make_listing(["x/a.jpg", "y/a.png", "y/b.jpg", "c.jpg"], ["b.jpg", "C.jpg"])
    assert dict(listing.duplicates()) == {"a": ["x/a.jpg", "y/a.png"], "b": ["y/b.jpg", "b.jpg"]}


def test_all_duplicates_are_found_in_one_query(make_listing):
    """A query for each name would read all images for each: hours for a copied directory."""
    listing = make_listing([f"t/{n}.jpg" for n in range(50)], [f"v/{n}.jpg" for n in range(50)])
    queries = []
    listing._db.set_trace_callback(queries.append)
    assert len(dict(listing.duplicates())) == 50
    assert len(queries) == 1


def test_after_ctrl_c_a_statement_of_another_thread_does_no_harm(
    make_listing, tmp_path, monkeypatch
):
    """Closing the file while a thread takes a listing would crash the interpreter."""
    running, closed = threading.Event(), threading.Event()

    def held_checksum(*values):
        running.set()
        closed.wait()
        return 0

    listing = make_listing([f"{n}.jpg" for n in range(3)])
    State.create(tmp_path / "state.sqlite").close()
    monkeypatch.setattr("dataset.database.checksum", held_checksum)
    state = State(tmp_path / "state.sqlite")
    with ThreadPoolExecutor(1) as threads:
        taking = threads.submit(state.take, listing.path)
        running.wait()
        with monkeypatch.context() as interrupted:
            interrupted.setattr("common.process._received", signal.SIGINT)
            state.close()
        closed.set()
        taking.result()
    assert state.counts().images == 3
    state.close()


def test_record_and_counts(make_state):
    state = make_state(["a.jpg", "b.jpg", "c.jpg"], [listed("d.jpg", 5)])
    state.record([Outcome(3, 5, None), Outcome(1, None, "no image")])
    assert state.counts() == Counts(
        images=4, training=3, validation=1, size=35, done=1, failed=1, pending=2, reused=0
    )
    assert state.failed() == [("b.jpg", "no image")]
    assert [row.row for row in state.pending()] == [0, 2]
    assert list(state.identifiers(Split.VAL)) == [("d", 3)]
    assert list(state.imagenet_classes()) == [("d.jpg", 5)]
    assert state.has_pending()


def test_pending_goes_on_while_rows_are_recorded(make_state):
    state = make_state([f"{number:04}.jpg" for number in range(2500)])
    seen = []
    for row in state.pending():
        seen.append(row.row)
        state.record([Outcome(row.row, 0, None)] if row.row % 500 == 0 else [])
    assert seen == list(range(2500))
    assert not make_state().has_pending()


def done(state, *slots, source=None):
    state.record(Outcome(slot, slot, None, 100 + slot, 4, 3, source) for slot in slots)


def numbers(changes):
    return {kind: number for kind, (number, _) in changes.kinds.items()}


def test_the_same_bytes_keep_their_slot(make_state):
    """Moved to another directory or split, written again, or untouched; whatever became of them."""
    state = make_state(["a.jpg", "b.jpg", "bad.jpg", "pending.jpg"], ["v.jpg"])
    done(state, 0, 1)
    state.record([Outcome(2, None, "no image")])
    train = ["deep/a.jpg", listed("b.jpg", generation=2), "bad.jpg", "pending.jpg", "v.jpg"]
    changes = take(state, train)
    assert numbers(changes) == {"renamed": 2}  # a and v have other names now
    assert (changes.computed, changes.left_out, changes.lost, changes.new) == (2, 0, 0, 0)
    assert images(state) == {
        "deep/a.jpg": (0, DONE),
        "b.jpg": (1, DONE),
        "bad.jpg": (2, FAILED),
        "pending.jpg": (3, PENDING),
        "v.jpg": (4, PENDING),
    }
    assert state.rows([1])[0].listed.generation == 2
    assert list(state.objects()) == ["b.jpg", "bad.jpg", "deep/a.jpg", "pending.jpg", "v.jpg"]
    state.close()
    State.open_checked(state.path).close()


def test_what_appears_gets_a_free_slot_and_what_vanishes_is_left_out(make_state):
    state = make_state(["a.jpg", "b.jpg", "c.jpg"])
    done(state, 0)
    changes = take(state, ["c.jpg", listed("d.jpg", crc32c=1), listed("e.jpg", crc32c=2)])
    assert numbers(changes) == {"appeared": 2, "vanished": 2}
    assert changes.kinds["appeared"].examples == ["d.jpg", "e.jpg"] and changes.left_out == 0
    # Slot 0 is kept for a.jpg, which is done; that of b.jpg, which was not, is free.
    assert images(state) == {"c.jpg": (2, PENDING), "d.jpg": (1, PENDING), "e.jpg": (3, PENDING)}
    counts = state.counts()
    assert (counts.images, counts.size, counts.done, counts.pending) == (3, 30, 0, 3)
    changes = take(state, ["a.jpg", "c.jpg"])
    assert numbers(changes) == {"appeared": 1, "vanished": 2}
    assert images(state) == {"a.jpg": (0, DONE), "c.jpg": (2, PENDING)}


def test_other_bytes_under_the_same_name_are_computed_again(make_state):
    state = make_state(["a.jpg", "b.jpg"])
    done(state, 0, 1)
    changes = take(state, [listed("a.jpg", crc32c=5), "b.jpg"])
    assert numbers(changes) == {"replaced": 1}
    assert (changes.left_out, changes.lost) == (0, 1)  # b.jpg has the bytes that a.jpg had
    assert images(state) == {"a.jpg": (0, PENDING), "b.jpg": (1, DONE)}


def test_a_renamed_image_is_found_by_its_bytes(make_state):
    state = make_state([listed("a.jpg", crc32c=1), listed("b.jpg", crc32c=2)])
    done(state, 0, source="x/7")
    changes = take(state, [listed("b.jpg", crc32c=2), listed("new.jpg", crc32c=1)])
    assert numbers(changes) == {"renamed": 1} and changes.left_out == 0
    assert state.has_copies()
    (found,) = state.found()
    assert (found.row, found.object, found.origin, found.failed) == (0, "a.jpg", "x/7", False)
    done(state, images(state)["new.jpg"][0])
    assert not state.has_copies()


def test_what_most_is_left_out_of_is_counted(make_state, make_listing):
    state = make_state([listed(f"{n}.jpg", crc32c=n) for n in range(4)])
    done(state, 0, 1, 2)
    changes = state.changes(make_listing([listed("0.jpg", crc32c=0), "other.jpg"]).path)
    assert (changes.computed, changes.left_out, changes.new) == (3, 2, 1)
    assert len(images(state)) == 4  # nothing is taken yet


def test_move_takes_everything_along(tmp_path):
    state = state_of(tmp_path, ["a.jpg"], name="state.sqlite.new")
    (tmp_path / "state.sqlite-wal").write_bytes(b"of an older state")
    moved = state.move(tmp_path / "state.sqlite")
    assert list(moved.objects()) == ["a.jpg"]
    assert moved.directory == tmp_path
    moved.close()
    assert [path.name for path in tmp_path.iterdir()] == ["state.sqlite"]


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
    with pytest.raises(DiskError, match=r"cannot be written \(Not a directory\): choose another"):
        WorkDirectory(tmp_path / "file" / "work").__enter__()


def test_a_statement_that_takes_too_long_is_stopped(tmp_path):
    state = State.create(tmp_path / "state.sqlite")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT max(i) FROM n"
    with pytest.raises(sqlite3.OperationalError, match="interrupted"), state.limited_to(0.01):
        state._db.execute(endless).fetchone()
    with state.limited_to(60):
        assert state.skipped() == []
    state.close()
