"""The journal of what was sent, also after crashes and damage."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import IngestError
from labels.journal import SENT, STORED, WAITING, Journal
from labels.requests import LabelRequest
from tests.damage import damaged_in_some_way

HEADER = {"dataset": "d", "user": "u"}
REQUESTS = [
    LabelRequest("cat", "POSITIVE", ["a", "b"]),
    LabelRequest("cat", "NEGATIVE", ["c"]),
    LabelRequest("dog", "NEGATIVE", ["c", "d", "e"]),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.journal"


def states(journal):
    return [entry.state for entry in journal.entries]


def make(path, requests=REQUESTS, belongs_to=HEADER, steps="ss"):
    """A journal whose first request is stored and whose second is sent, unless told otherwise.

    In `steps`, s stands for the next event of the sequence: sent, stored, sent, stored ...
    """
    with Journal(path, belongs_to) as journal:
        journal.begin(requests)
        for number, step in enumerate(steps):
            if step == "r":
                journal.refused(number // 2)
            elif number % 2:
                journal.stored(number // 2, requests[number // 2].size())
            else:
                journal.sent(number // 2)


def reopen(path, requests=REQUESTS, belongs_to=HEADER, **options):
    with Journal(path, belongs_to) as journal:
        journal.begin(requests, **options)
    return journal


def test_what_was_sent_and_stored_is_known_again(path):
    make(path, steps="sss")
    journal = reopen(path)
    assert states(journal) == [STORED, SENT, WAITING]
    assert [entry.created for entry in journal.entries] == [2, 0, 0]
    assert not journal.finished
    assert not journal.damaged
    with Journal(path, HEADER) as journal:
        journal.begin(REQUESTS)
        journal.refused(1)
    assert states(reopen(path)) == [STORED, WAITING, WAITING]


def test_a_finished_run_is_known_again(path):
    with Journal(path, HEADER) as journal:
        journal.begin(REQUESTS)
        for number in range(3):
            journal.sent(number)
            journal.stored(number, 1)
        journal.finish()
    with Journal(path, HEADER) as journal:
        assert journal.finished
        assert journal.possibly_stored() == {"labels": 6}
    assert '"finished"' in path.read_text().splitlines()[-1]
    with Journal(path, HEADER | {"user": "v"}) as journal:
        assert not journal.finished
        assert journal.other_finished
        journal.begin(REQUESTS)
        assert states(journal) == [WAITING] * 3


def test_no_request_at_all(path):
    with Journal(path, HEADER) as journal:
        journal.begin([])
        journal.finish()
    with Journal(path, HEADER) as journal:
        assert journal.finished


def test_every_line_is_on_disk_before_the_first_request(path):
    with Journal(path, HEADER) as journal:
        journal.begin(REQUESTS)
        assert not path.exists()
        journal.sent(0)
        lines = path.read_text().splitlines()
        assert len(lines) == 5
        assert '"sent"' in lines[1]
        assert len({len(line) for line in lines[1:4]}) == 1


def test_a_run_that_sends_nothing_leaves_nothing(path):
    reopen(path)
    assert list(path.parent.iterdir()) == []


def test_a_journal_is_locked_while_in_use(path):
    with Journal(path, HEADER) as journal:
        with pytest.raises(IngestError, match="Another"):
            Journal(path, HEADER)
        journal.begin(REQUESTS)
        journal.sent(0)
        with pytest.raises(IngestError, match="Another"):
            Journal(path, HEADER)
        journal.begin(REQUESTS, start_over=True)
        journal.sent(0)
        with pytest.raises(IngestError, match="Another"):
            Journal(path, HEADER)
    reopen(path)
    assert list(path.parent.iterdir()) == [path]


def test_another_run_is_told_what_differs(path):
    make(path, steps="sss")
    with pytest.raises(IngestError) as caught:
        reopen(path, belongs_to=HEADER | {"user": "v"})
    assert "user 'u', now 'v'. That run stored, or may have stored, 3 labels." in str(caught.value)
    assert "--restart" in str(caught.value)
    journal = reopen(path, belongs_to=HEADER | {"user": "v"}, start_over=True)
    assert states(journal) == [WAITING] * 3


def test_a_journal_of_nothing_stored_is_no_obstacle(path):
    make(path, steps="sr")
    assert states(reopen(path, belongs_to=HEADER | {"user": "v"})) == [WAITING] * 3


def test_requests_of_another_run_are_noticed(path):
    make(path, steps="s")
    with pytest.raises(IngestError, match="sent other requests"):
        reopen(path, REQUESTS[:2])


NOT_A_JOURNAL = ["", "not JSON\n", "{}\n{}\n", "\0\n", "\n", "[[[1]]]\n1\n", '{"format": "1"}\n']


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
    with pytest.raises(IngestError, match="where the journal should be: move it away"):
        Journal(path, HEADER)


def test_a_directory_that_is_not_there(path):
    with pytest.raises(IngestError, match="--work_dir"):
        Journal(path / "x", HEADER)


def test_a_disk_that_cannot_be_written(path, monkeypatch):
    with Journal(path, HEADER) as journal:
        journal.begin(REQUESTS)

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(IngestError, match="No space left on device"):
            journal.sent(0)


@given(st.integers(0, 6), st.integers(0))
def test_damage_never_turns_what_was_sent_into_nothing_sent(tmp_path_factory, steps, seed):
    """Nor what was stored into anything but stored or uncertain; and the file is repaired."""
    path = tmp_path_factory.mktemp("journal") / "x"
    make(path, steps="s" * steps)
    if not steps:
        return
    true = states(reopen(path))
    path.write_bytes(damaged_in_some_way(path.read_bytes(), random.Random(seed)))
    journal = reopen(path)
    for before, after in zip(true, states(journal), strict=True):
        assert after in (before, SENT)
    with Journal(path, HEADER) as again:
        again.begin(REQUESTS)
        again.stored(0, 2)
    repaired = reopen(path)
    assert not repaired.damaged
    assert states(repaired) == [STORED, *states(journal)[1:]]


@given(st.integers(0, 6), st.integers(0))
def test_a_crash_while_a_line_is_replaced(tmp_path_factory, steps, seed):
    """Half of the new line is on the disk: then the request is uncertain, the others are not."""
    path = tmp_path_factory.mktemp("journal") / "x"
    make(path, steps="s" * max(1, steps))
    before = path.read_bytes()
    true = states(reopen(path))
    with Journal(path, HEADER) as journal:
        journal.begin(REQUESTS)
        journal.sent(2)
    after = path.read_bytes()
    cut = seed % len(before)
    path.write_bytes(after[:cut] + before[cut:])
    journal = reopen(path)
    assert states(journal)[:2] == true[:2]
    assert states(journal)[2] in (true[2], SENT)
