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
from common.network.retries import BASE_S, CAP_IN_BASES, RETRY_AFTER_CAP_S, Retries, retry_after_s
from dataset import lists
from dataset.state.changes import Comparison
from dataset.state.rows import TRAIN, VAL, Outcome, State
from dataset.state.schema import DONE, FAILED, PENDING
from engine.decode import open_image, prepare
from engine.stages import Budget
from gcs import ListedObject
from storage.gzipped import unzipped, unzipped_size

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
        listing = State.create(self.directory / "listing.sqlite")
        for split, letter in ((VAL, "v"), (TRAIN, "t")):
            objects = [ListedObject(f"{letter}/{i}.jpg", 10, i, 1) for i in range(ROWS // 2)]
            listing.add(split, objects)
        listing.number_rows()
        listing.set_options({"index_id": INDEX_ID})
        self.state = listing.move(self.directory / "state.sqlite")
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
        other.execute("UPDATE rows SET status = 1, imagenet_class = 5 WHERE row = ?", (row,))
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
        state = State.create(Path(directory, "state.sqlite"))
        for split, names in ((VAL, val), (TRAIN, train)):
            state.add(split, [ListedObject(f"{name}.jpg", 1, 1, 1) for name in names])
        state.number_rows()
        expected = [*sorted(f"{n}.jpg" for n in train), *sorted(f"{n}.jpg" for n in val)]
        assert list(state.objects()) == expected
        rows = [(identifier(name), row) for row, name in enumerate(expected)]
        found = [*state.identifiers(TRAIN), *state.identifiers(VAL)]
        assert found == rows
        state.close()


@given(
    st.lists(st.tuples(NAMES, st.integers(1, 3)), max_size=12, unique_by=lambda o: o[0]), st.data()
)
@settings(max_examples=30, deadline=None)
def test_changes_are_those_of_two_dicts(old, data):
    """Objects that appeared, vanished, changed or have the same bytes again, in any mixture."""
    new = [(name, g) for name, g in old if data.draw(st.booleans())]
    new = [(name, g + data.draw(st.integers(0, 1))) for name, g in new] + [("\0 another", 1)]
    same_bytes = {name for name, _ in old if data.draw(st.booleans())}
    failed = {name for name, _ in old if data.draw(st.booleans())}
    with tempfile.TemporaryDirectory() as directory:
        states = []
        for file, objects in (("old", old), ("new", new)):
            state = State.create(Path(directory, file))
            state.add(
                TRAIN,
                [
                    ListedObject(f"{name}.jpg", 1, 0 if name in same_bytes else g, g)
                    for name, g in objects
                ],
            )
            state.number_rows()
            states.append(state)
        before, listing = states
        rows = {name: row for row, name in enumerate(before.objects())}
        before.record(
            Outcome(rows[f"{name}.jpg"], None, "bad")
            if name in failed
            else Outcome(rows[f"{name}.jpg"], 1, None)
            for name, _ in old
        )
        was, now = dict(old), dict(new)
        changed = {n for n in was if n in now and was[n] != now[n]} - same_bytes
        expected = {
            "appeared": set(now) - set(was),
            "vanished": set(was) - set(now),
            "changed": changed - failed,
        }
        with Comparison(before.path, listing.path) as compared:
            found = compared.changes(done_only=True)
        assert {k: set(v) for k, v in found._asdict().items()} == {
            k: {f"{n}.jpg" for n in v} for k, v in expected.items()
        }
        assert before.take_replaced(listing.path) == len(changed & failed)
        assert before.counts().failed == len(failed - changed)
        for state in states:
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
