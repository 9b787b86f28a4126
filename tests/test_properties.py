"""What holds for any input: of the state, the budgets, the lists, and of hostile bytes."""

import asyncio
import contextlib
import json
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ImageError, TransientError
from common.files import disk_errors
from common.names import GsPath, identifier, parse_gs_path
from common.retries import BASE_S, CAP_IN_BASES, RETRY_AFTER_CAP_S, Retries, retry_after_s
from dataset import lists
from dataset.listing import Split
from engine.decode import open_image, prepare
from engine.stages import Budget
from storage.async_client import unzipped, unzipped_size
from tests.dataset.states import state_of

ANY_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates and control characters too
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


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


@given(ANY_TEXT, st.integers(0, 4))
def test_gs_paths_end_with_one_slash(directory, slashes):
    """Whatever parses is written back as it was, but for the slashes at its end."""
    try:
        path = parse_gs_path(f"gs://bucket/{directory}" + "/" * slashes)
    except ValueError as error:
        assert str(error).endswith(".") and str(error).isprintable()
        return
    assert isinstance(path, GsPath) and parse_gs_path(str(path)) == path
    assert path.prefix == (f"{directory.rstrip('/')}/" if directory.rstrip("/") else "")


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**9)), unique_by=lambda pair: pair[0]))
def test_lists_are_what_json_makes_of_them(pairs):
    names = [name for name, _ in pairs]
    items = (f"{json.dumps(name)}: {number}" for name, number in pairs)
    assert b"".join(lists._json("[]", map(json.dumps, names))) == json.dumps(names).encode()
    assert b"".join(lists._json("{}", items)) == json.dumps(dict(pairs)).encode()


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
