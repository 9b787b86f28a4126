import pytest
from hypothesis import given
from hypothesis import strategies as st

from labels.journal import Journal, JournalError
from labels.requests import LabelRequest

HEADER = {"dataset": "d", "user": "u"}
FIRST = LabelRequest("cat", "POSITIVE", ["a", "b"])
SECOND = LabelRequest("cat", "NEGATIVE", ["c"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.journal"


def test_what_was_sent_and_confirmed_is_known_again(path):
    with Journal(path, HEADER) as journal:
        journal.sent(FIRST)
        journal.confirm(FIRST, 2)
        journal.sent(SECOND)
    with Journal(path, HEADER) as journal:
        assert journal.created == {FIRST.key(): 2}
        assert journal.uncertain == {SECOND.key()}
        journal.refuse(SECOND)
    with Journal(path, HEADER) as journal:
        assert journal.uncertain == set()
        journal.remove()
    assert not path.exists()


def test_every_line_is_on_disk_before_the_call_returns(path):
    with Journal(path, HEADER) as journal:
        journal.sent(FIRST)
        assert path.read_text().splitlines()[-1].startswith(f'{{"request": "{FIRST.key()}", "event')


def test_a_journal_is_locked_while_in_use(path):
    with Journal(path, HEADER), pytest.raises(JournalError, match="Another"):
        Journal(path, HEADER)
    Journal(path, HEADER).__exit__()


def test_another_run_is_told_what_differs(path):
    with Journal(path, HEADER) as journal:
        journal.sent(FIRST)
    with pytest.raises(JournalError, match="user 'u', now 'v'. Repeat .* --restart"):
        Journal(path, HEADER | {"user": "v"})
    with Journal(path, HEADER | {"user": "v"}, restart=True) as journal:
        assert journal.created == {}


def test_a_journal_of_nothing_stored_is_no_obstacle(path):
    with Journal(path, HEADER) as journal:
        journal.sent(FIRST)
        journal.refuse(FIRST)
    with Journal(path, HEADER | {"user": "v"}) as journal:
        journal.sent(FIRST)
    with Journal(path, HEADER | {"user": "v"}) as journal:
        assert journal.uncertain == {FIRST.key()}


def test_requests_of_another_run_are_noticed(path):
    with Journal(path, HEADER) as journal:
        journal.sent(FIRST)
        journal.check_fits([FIRST, SECOND])
        with pytest.raises(JournalError, match="sent other images"):
            journal.check_fits([SECOND])


@pytest.mark.parametrize(
    "damage", ["not JSON\n", '{"dataset": "d"}\n', "[]\n", "{}\n{}\n", "\0\n", "\n", "[[[1]]]\n1\n"]
)
def test_a_damaged_journal_is_refused(path, damage):
    path.write_text(damage)
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, HEADER)


def test_a_disk_that_cannot_be_written(path, monkeypatch):
    with Journal(path, HEADER) as journal:

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(JournalError, match="No space left on device"):
            journal.sent(FIRST)


@given(cut=st.integers(0), junk=st.binary(max_size=5))
def test_a_crash_at_any_byte_loses_no_confirmation_before_it(tmp_path_factory, cut, junk):
    path = tmp_path_factory.mktemp("journal") / "x"
    sizes = []
    with Journal(path, HEADER) as journal:
        journal.sent(FIRST)
        sizes.append(path.stat().st_size)
        journal.confirm(FIRST, 2)
        sizes.append(path.stat().st_size)
        journal.sent(SECOND)
    cut %= path.stat().st_size + 1
    path.write_bytes(path.read_bytes()[:cut] + junk.replace(b"\n", b""))
    with Journal(path, HEADER) as journal:
        assert journal.created == ({FIRST.key(): 2} if cut >= sizes[1] else {})
        assert (FIRST.key() in journal.uncertain) == (sizes[0] <= cut < sizes[1])
