"""What holds for any input: of the state, the budgets, the lists, and of hostile bytes."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from common.errors import ImageError, TransientError
from common.files import disk_errors
from common.names import GsPath, identifier, parse_gs_path
from common.retries import BASE_S, CAP_IN_BASES, RETRY_AFTER_CAP_S, Retries, retry_after_s
from dataset import lists
from dataset.listing import Split
from dataset.state import DONE, FAILED, PENDING, Outcome, State
from engine.decode import open_image, prepare
from engine.stages import Budget
from gcs import ListedObject
from storage.async_client import unzipped, unzipped_size
from tests.dataset.states import state_of

ROWS = 12
INDEX_ID = "12345678-1234-4234-8234-123456789abc"
ANY_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates and control characters too
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


class Resuming(RuleBasedStateMachine):
    """Any order of recording, being killed, opening again and failing: against a plain dict."""

    rows = Bundle("rows")

    @initialize()
    def begin(self):
        self.directory = Path(tempfile.mkdtemp())
        half = range(ROWS // 2)
        self.state = state_of(
            self.directory,
            [ListedObject(f"t/{i}.jpg", 10, i, 1) for i in half],
            [ListedObject(f"v/{i}.jpg", 10, i, 1) for i in half],
        )
        self.state.set_options({"index_id": INDEX_ID})
        self.known = dict.fromkeys(range(ROWS), PENDING)
        self.classes = {}

    @rule(
        outcomes=st.dictionaries(
            st.integers(0, ROWS - 1), st.one_of(st.none(), st.integers(0, 999))
        )
    )
    def record(self, outcomes):
        """Rows that are pending are marked, as a run does."""
        chosen = {row: c for row, c in outcomes.items() if self.known[row] == PENDING}
        self.state.record(
            Outcome(row, c, "no image" if c is None else None) for row, c in chosen.items()
        )
        for row, c in chosen.items():
            self.known[row] = FAILED if c is None else DONE
            self.classes[row] = c

    @rule()
    def be_killed(self):
        """What a kill -9 leaves: the files as they are, without a close."""
        copy = Path(tempfile.mkdtemp())
        shutil.copytree(self.directory, copy, dirs_exist_ok=True)
        self.state.close()
        shutil.rmtree(self.directory)
        self.directory = copy
        self.state = State.open_checked(copy / "state.sqlite")

    @rule()
    def be_closed(self):
        self.state.close()
        self.state = State.open_checked(self.directory / "state.sqlite")

    @rule(row=st.integers(0, ROWS - 1))
    def be_killed_within_a_record(self, row):
        """A transaction that does not end leaves nothing behind."""
        other = sqlite3.connect(self.directory / "state.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE images SET status = 1, imagenet_class = 5 WHERE slot = ?", (row,))
        other.close()

    @precondition(lambda self: FAILED in self.known.values())
    @rule()
    def try_failed_again(self):
        failed = [row for row, status in self.known.items() if status == FAILED]
        assert self.state.retry_failed() == len(failed)
        self.known.update(dict.fromkeys(failed, PENDING))

    @invariant()
    def agrees(self):
        counts = self.state.counts()
        statuses = list(self.known.values())
        assert counts[0] == ROWS
        assert (counts.done, counts.failed) == (statuses.count(DONE), statuses.count(FAILED))
        pending = [row for row, status in self.known.items() if status == PENDING]
        assert [row.row for row in self.state.pending()] == pending
        assert self.state.has_pending() == bool(pending)
        assert len(self.state.failed()) == statuses.count(FAILED)
        done = [row for row, status in self.known.items() if status == DONE]
        assert [c for _, c in self.state.imagenet_classes()] == [self.classes[row] for row in done]
        assert list(self.state.objects()) == sorted(self.state.objects())
        assert self.state.index_id == INDEX_ID

    def teardown(self):
        self.state.close()
        shutil.rmtree(self.directory)


Resuming.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
test_resuming = Resuming.TestCase


@given(st.lists(NAMES, unique=True, max_size=20), st.lists(NAMES, unique=True, max_size=20))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_are_in_the_order_of_names(train, val):
    with tempfile.TemporaryDirectory() as directory:
        train, val = ([f"{name}.jpg" for name in names] for names in (train, val))
        state = state_of(Path(directory), train, val)
        expected = [*sorted(train), *sorted(val)]
        assert list(state.objects()) == expected
        rows = [(identifier(name), row) for row, name in enumerate(expected)]
        found = [*state.identifiers(Split.TRAIN), *state.identifiers(Split.VAL)]
        assert found == rows
        state.close()


@given(st.lists(st.tuples(st.integers(0, 150), st.booleans()), max_size=30))
@settings(deadline=None)
def test_budget_is_never_exceeded_and_never_leaks(holders):
    """Any amounts, in any order, some cancelled while they wait or hold: all get their turn."""

    async def run():
        budget, held, most = Budget(100), 0, 0

        async def hold(amount):
            nonlocal held, most
            async with budget.hold(amount):
                held += min(amount, 100)
                most = max(most, held)
                try:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                finally:
                    held -= min(amount, 100)

        tasks = []
        for amount, cancelled in holders:
            tasks.append(asyncio.create_task(hold(amount)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert most <= 100 and held == 0
        async with budget.hold(100):
            pass

    asyncio.run(run())


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.integers(0, 4))
def test_gs_paths_end_with_one_slash(directory, slashes):
    """Whatever parses is written back as it was, but for the slashes at its end."""
    try:
        path = parse_gs_path(f"gs://bucket/{directory}" + "/" * slashes)
    except ValueError as error:
        assert str(error).endswith(".") and str(error).isprintable()
        return
    assert isinstance(path, GsPath) and parse_gs_path(str(path)) == path
    assert path.prefix == (f"{directory.rstrip('/')}/" if directory.rstrip("/") else "")


@given(ANY_TEXT)
def test_errors_about_paths_are_one_printable_line(text):
    for candidate in (text, f"gs://{text}", f"gs://bucket/{text}"):
        try:
            parse_gs_path(candidate)
        except ValueError as error:
            assert str(error).isprintable()


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**9)), unique_by=lambda pair: pair[0]))
def test_lists_are_what_json_makes_of_them(pairs):
    names = [name for name, _ in pairs]
    assert b"".join(lists._json_list(names)) == json.dumps(names).encode()
    assert b"".join(lists._json_object(pairs)) == json.dumps(dict(pairs)).encode()


@given(st.integers(1, 50), st.one_of(st.none(), ANY_TEXT, st.integers().map(str)))
def test_waits_are_bounded_whatever_a_server_asks_for(attempt, retry_after):
    error = TransientError("busy", 503, retry_after)
    assert retry_after_s(error) >= 0
    assert 0 < Retries().wait_s(attempt, error) <= max(CAP_IN_BASES * BASE_S, RETRY_AFTER_CAP_S)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_an_image_or_a_reason(data, as_png):
    """Pillow's parsers, fed with anything: ImageError or an image, and nothing else."""
    data = (b"\x89PNG\r\n\x1a\n" if as_png else b"\xff\xd8\xff\xe0") + data
    with contextlib.suppress(ImageError):
        prepare(open_image(data, 1_000_000))


@given(st.binary(max_size=200))
def test_any_bytes_unzip_within_what_they_say(data):
    for candidate in (data, b"\x1f\x8b" + data, b"\x1f\x8b\x08\0\0\0\0\0\0\0" + data):
        size = unzipped_size(candidate)
        if size:
            with contextlib.suppress(ImageError):
                assert len(unzipped(candidate)) <= size


@given(st.sampled_from(["no such column: x", "UNIQUE constraint failed", "near x: syntax error"]))
def test_bugs_in_queries_keep_their_traceback(words):
    with pytest.raises(sqlite3.OperationalError), disk_errors(Path("work")):
        raise sqlite3.OperationalError(words)
