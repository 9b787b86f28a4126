"""The journal of what was sent, also after crashes and damage."""

import os
import random
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import IngestError
from forager.generation import Kind, LabelRequest
from labels.journal import Journal, State, is_of_another_file
from labels.plan import Plan
from tests.damage import damaged_in_some_way

WAITING, SENT, STORED = State
OWNER = {"dataset": "d", "user": "u"}
PLAN = Plan(
    requests=[
        LabelRequest({("cat", "POSITIVE"): ["a", "b"]}, []),
        LabelRequest({("cat", "NEGATIVE"): ["c"]}, []),
        LabelRequest({("dog", "NEGATIVE"): ["c", "d", "e"]}, []),
    ]
)
STEPS = [(number, state) for number in range(3) for state in (SENT, STORED)]
LINES = """{"line": 0, "format": 2, "run": "8e", "dataset": "d", "requests": 2, "check": "f1"}
{"line":        1, "request": "a", "kind": "labels", "labels": 1, "state": "stored"    }
{"line":        2, "request": "b", "kind": "labels", "labels": 1, "state": "sent"      }
{"line":        3, "state": "unfinished"}
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.journal"


def test_a_named_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    assert not is_of_another_file(path, path.with_name("labels.json"), "digest")
    with pytest.raises(IngestError, match="is a FIFO"):
        Journal(path, OWNER)


def states(journal):
    return [entry.state for entry in journal.entries]


def make(path, steps):
    """A journal after so many steps: requests are recorded as sent, then stored, in turn."""
    with Journal(path, OWNER) as journal:
        journal.begin(PLAN)
        for number, state in STEPS[:steps]:
            created = PLAN.requests[number].size if state is STORED else 0
            journal.record(number, state, created)


def reopen(path, plan=PLAN, owner=OWNER, start_over=False):
    with Journal(path, owner, start_over) as journal:
        journal.begin(plan)
    return journal


def test_what_was_sent_and_stored_is_known_again(path):
    make(path, 3)
    journal = reopen(path)
    assert states(journal) == [STORED, SENT, WAITING]
    assert [entry.created for entry in journal.entries] == [2, 0, 0]
    assert not journal.finished
    assert not journal.damaged
    with Journal(path, OWNER) as journal:
        journal.begin(PLAN)
        journal.record(1, WAITING)
    assert states(reopen(path)) == [STORED, WAITING, WAITING]


def test_a_finished_run_is_known_again(path):
    make(path, 6)
    with Journal(path, OWNER) as journal:
        assert journal.finished
        assert not journal.differences()
        assert journal.has(PLAN)
        assert journal.sizes(SENT, STORED) == {Kind.LABELS: 6}
    with Journal(path, OWNER | {"user": "v"}) as journal:
        assert journal.finished
        assert journal.differences() == {"user": ("u", "v")}
        journal.begin(PLAN)
        assert states(journal) == [WAITING] * 3


def test_every_request_is_on_disk_before_the_first_is_sent(path):
    with Journal(path, OWNER) as journal:
        journal.begin(PLAN)
        assert list(path.parent.iterdir()) == []  # a run that sends nothing leaves nothing
        journal.record(0, SENT)
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            query = "SELECT kind, labels, state FROM requests ORDER BY number"
            assert db.execute(query).fetchall() == [
                ("labels", 2, "sent"),
                ("labels", 1, "waiting"),
                ("labels", 3, "waiting"),
            ]
        db.close()


def test_a_journal_is_locked_while_in_use(path):
    def refused():
        with pytest.raises(IngestError, match="Another"):
            Journal(path, OWNER)

    with Journal(path, OWNER) as journal, Journal(path, OWNER) as other:
        journal.begin(PLAN)
        other.begin(PLAN)
        journal.record(0, SENT)
        refused()
        with pytest.raises(IngestError, match="Another"):
            other.record(0, SENT)
    with Journal(path, OWNER, start_over=True) as journal:
        refused()
        journal.begin(PLAN)
        journal.record(0, SENT)
        refused()
    reopen(path)
    assert list(path.parent.iterdir()) == [path]


def test_another_run_is_told_what_differs(path):
    make(path, 3)
    words = "something else: other requests, because of --skip_unknown.*may have stored, 3 labels"
    with pytest.raises(IngestError, match=words):
        reopen(path, Plan(requests=PLAN.requests[:2]))


def test_a_journal_of_nothing_stored_is_no_obstacle(path):
    make(path, 1)
    with Journal(path, OWNER) as journal:
        journal.begin(PLAN)
        journal.record(0, WAITING)
    assert states(reopen(path, owner=OWNER | {"user": "v"})) == [WAITING] * 3


def test_a_journal_of_an_earlier_version_is_refused(path):
    path.write_text(LINES)
    with pytest.raises(IngestError, match="earlier version.*add --restart"):
        Journal(path, OWNER)
    with Journal(path, OWNER, start_over=True) as journal:
        assert journal.damaged
        assert path.read_text() == LINES
        journal.begin(PLAN)
        assert states(journal) == [WAITING] * 3


NOT_A_JOURNAL = ["", "not JSON\n", "{}\n{}\n", "\0\n", "SQLite format 3\0" + "\0" * 5000]


@pytest.mark.parametrize("content", NOT_A_JOURNAL)
def test_what_is_no_journal_makes_everything_uncertain(path, content):
    path.write_text(content)
    journal = reopen(path)
    assert journal.damaged
    assert states(journal) == [SENT] * 3
    assert path.read_text() == content


@pytest.mark.parametrize("make_special", [os.mkfifo, os.mkdir, lambda path: os.symlink("y", path)])
def test_what_is_no_regular_file(path, make_special):
    make_special(path)
    with pytest.raises(IngestError, match="not a regular file"):
        Journal(path, OWNER)


def test_a_directory_that_is_not_there(path):
    with pytest.raises(IngestError, match="--work_dir"):
        make(path / "x", 1)


def test_a_disk_that_cannot_be_written(path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    with Journal(path, OWNER) as journal:
        journal.begin(PLAN)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(IngestError, match="No space left on device"):
                journal.record(0, SENT)
        assert not path.exists()
        journal.record(0, SENT)
        journal._db.execute("PRAGMA query_only=1")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(IngestError, match="No space left on device"):
                journal.record(0, STORED, 2)
        journal.record(0, STORED, 2)  # in a new file
    assert states(reopen(path)) == [STORED, WAITING, WAITING]


@given(st.integers(1, 6), st.integers(0))
def test_damage_never_turns_what_was_sent_into_nothing_sent(tmp_path_factory, steps, seed):
    """Nor what was stored into anything but stored or uncertain; and the file is repaired."""
    path = tmp_path_factory.mktemp("journal") / "x"
    make(path, steps)
    true = states(reopen(path))
    path.write_bytes(damaged_in_some_way(path.read_bytes(), random.Random(seed)))
    journal = reopen(path)
    for before, after in zip(true, states(journal), strict=True):
        assert after in (before, SENT)
    with Journal(path, OWNER) as again:
        again.begin(PLAN)
        again.record(0, STORED, 2)
    repaired = reopen(path)
    assert not repaired.damaged
    assert states(repaired) == [STORED, *states(journal)[1:]]


def test_a_damaged_row_makes_its_request_uncertain_and_no_other(path):
    make(path, 5)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE requests SET state = 'waiting' WHERE number = 1")
        db.execute("DELETE FROM requests WHERE number = 2")
    db.close()
    journal = reopen(path)
    assert journal.damaged
    assert states(journal) == [STORED, SENT, SENT]


KILLED = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")
db.execute("BEGIN")
db.execute("UPDATE requests SET state = 'waiting', checksum = 0")
db.execute("CREATE TABLE much AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
           " WHERE i < 100) SELECT i, randomblob(1000) FROM n")  # so that all goes to the disk
os._exit(9)
"""


def test_a_crash_while_a_row_is_written(path):
    """Half of the change is on the disk: the file is as before."""
    make(path, 3)
    subprocess.run([sys.executable, "-c", KILLED, path])
    assert path.with_name("x.journal-journal").stat().st_size > 0
    journal = reopen(path)
    assert not journal.damaged
    assert states(journal) == [STORED, SENT, WAITING]


def test_what_sqlite_left_beside_a_journal_does_not_change_another(path):
    make(path, 3)
    subprocess.run([sys.executable, "-c", KILLED, path])
    path.unlink()
    make(path, 1)
    assert states(reopen(path)) == [SENT, WAITING, WAITING]
