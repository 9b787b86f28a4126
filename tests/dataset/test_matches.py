"""Which rows of other indexes hold what pending rows need."""

import pytest

from dataset.state.matches import Matches
from dataset.state.rows import TRAIN, Outcome, State
from gcs import ListedObject


@pytest.fixture
def make_state(tmp_path):
    states = []

    def make(*objects):
        state = State.create(tmp_path / "state.sqlite")
        states.append(state)
        state.add(TRAIN, [ListedObject(f"{name}.jpg", *content, 1) for name, content in objects])
        state.number_rows()
        return state

    yield make
    for state in states:
        state.close()


@pytest.fixture
def matches(tmp_path):
    made = Matches(tmp_path / "reuse.sqlite")
    yield made
    made.close()
    assert not (tmp_path / "reuse.sqlite").exists()


def row(name, content, *, failed=False):
    if failed:
        return (f"{name}.jpg", *content, None, None, None, 5, "bad")
    return (f"{name}.jpg", *content, 7, 640, 480, 2**32 - 1, None)


A, B, C, D = (10, 1), (10, 2), (11, 1), (12, 4)  # size and crc32c


def found(matches):
    return [(m.row, m.source, m.source_row) for m in matches]


def test_a_row_of_the_same_name_is_preferred_to_the_same_bytes_elsewhere(make_state, matches):
    state = make_state(("a", A), ("b", A), ("other", A))
    matches.add([row("x", A), row("b", A), row("a", A)], usable=True)
    tally = matches.match(state.path)
    assert found(matches) == [(2, 0, 0), (1, 0, 1), (0, 0, 2)]
    assert (tally.reused, tally.size) == ({0: 3}, 30)
    first = next(iter(matches))
    assert first[2:5] == ("x.jpg", 2, "other") and first[5:9] == (7, 640, 480, 2**32 - 1)


def test_sources_are_searched_in_order(make_state, matches):
    state = make_state(("a", A), ("b", B))
    matches.add([row("x", A)], usable=True)
    matches.add([row("a", A), row("b", B)], usable=True)
    assert matches.match(state.path).reused == {0: 1, 1: 1}
    assert found(matches) == [(0, 0, 0), (1, 1, 1)]


def test_every_row_that_is_not_reused_has_a_reason(make_state, matches):
    state = make_state(("bad", A), ("changed", B), ("heavy", C), ("new", D), ("same", (13, 5)))
    matches.add([row("bad", A, failed=True), row("changed", D[:1] + (9,))], usable=True)
    matches.add([row("heavy", C), row("new2", A)], usable=False)
    matches.add([row("same", (13, 5))], usable=True)
    tally = matches.match(state.path)
    assert tally == ({2: 1}, 13, 1, 1, 1, 1)  # new, changed, failed, computed otherwise


def test_only_pending_rows_are_matched(make_state, matches):
    state = make_state(("a", A), ("b", B))
    state.record([Outcome(0, 1, None, 2)])
    matches.add([row("a", A), row("b", B)], usable=True)
    assert matches.match(state.path).reused == {0: 1}
    assert found(matches) == [(1, 0, 1)]
    state.record([Outcome(1, 1, None, 2)])
    assert matches.match(state.path) == ({}, 0, 0, 0, 0, 0)
    assert found(matches) == []


def test_many_images_of_the_same_bytes_take_no_longer(make_state, matches):
    """With a search through all of them for each row, this would take an hour."""
    names = [f"{number:06}" for number in range(50_000)]
    state = make_state(*((name, A) for name in names), ("other", A))
    matches.add([row(name, A) for name in names], usable=True)
    assert matches.match(state.path).reused == {0: 50_001}
    assert found(matches)[:3] == [(0, 0, 0), (50_000, 0, 0), (1, 0, 1)]
