"""Which rows of other indexes hold what pending rows need."""

import pytest

from dataset.matches import Matched, Matches
from dataset.quality import Quality
from dataset.state import Found, Outcome
from tests.dataset.states import listed

QUALITY = Quality(brightness=1.5, contrast=2.0, sharpness=3.0, colourfulness=0.5)


@pytest.fixture
def make_state(make_state):
    """Makes a state of training images, given as name and content."""
    return lambda *objects: make_state([listed(f"{name}.jpg", *c) for name, c in objects])


@pytest.fixture
def matches(tmp_path):
    made = Matches(tmp_path / "reuse.sqlite")
    yield made
    made.close()
    assert not (tmp_path / "reuse.sqlite").exists()


def row(name, content, *, failed=False):
    """An image of a source, in row 0."""
    known = {"imagenet_class": None, "width": None, "height": None, "vectors_crc32c": 5}
    if not failed:
        known = dict(imagenet_class=7, width=640, height=480, vectors_crc32c=2**32 - 1)
        known["quality"] = QUALITY if name != "x" else None
    size, crc32c = content
    return Found(row=0, object=f"{name}.jpg", size=size, crc32c=crc32c, failed=failed, **known)


def rows(*found):
    return [image._replace(row=number) for number, image in enumerate(found)]


A, B, C, D = (10, 1), (10, 2), (11, 1), (12, 4)  # size and crc32c


def found(matches):
    return [(m.slot, m.source, m.image.row) for m in matches]


def test_a_row_of_the_same_name_is_preferred_to_the_same_bytes_elsewhere(make_state, matches):
    state = make_state(("a", A), ("b", A), ("other", A))
    matches.add(rows(row("x", A), row("b", A), row("a", A)), usable=True)
    tally = matches.match(state.path)
    assert found(matches) == [(2, 0, 0), (1, 0, 1), (0, 0, 2)]
    assert (tally.reused, tally.size) == ({0: 3}, 30)
    first = next(iter(matches))
    assert (first.image.object, first.slot, first.identifier) == ("x.jpg", 2, "other")
    assert (first.image.imagenet_class, first.image.width, first.image.height) == (7, 640, 480)
    assert first.image.vectors_crc32c == 2**32 - 1
    assert [match.image.quality for match in matches] == [None, QUALITY, QUALITY]


def test_sources_are_searched_in_order(make_state, matches):
    state = make_state(("a", A), ("b", B))
    matches.add(rows(row("x", A)), usable=True)
    matches.add(rows(row("a", A), row("b", B)), usable=True)
    assert matches.match(state.path).reused == {0: 1, 1: 1}
    assert found(matches) == [(0, 0, 0), (1, 1, 1)]


def test_every_row_that_is_not_reused_has_a_reason(make_state, matches):
    state = make_state(("bad", A), ("changed", B), ("heavy", C), ("new", D), ("same", (13, 5)))
    matches.add(rows(row("bad", A, failed=True), row("changed", D[:1] + (9,))), usable=True)
    matches.add(rows(row("heavy", C), row("new2", A)), usable=False)
    matches.add(rows(row("same", (13, 5))), usable=True)
    tally = matches.match(state.path)
    left = dict.fromkeys(["new", "failed there", "computed differently", "changed"], 1)
    assert tally == Matched(reused={2: 1}, size=13, left=left)


def test_only_pending_rows_are_matched(make_state, matches):
    state = make_state(("a", A), ("b", B))
    state.record([Outcome(0, 1, None, 2)])
    matches.add(rows(row("a", A), row("b", B)), usable=True)
    assert matches.match(state.path).reused == {0: 1}
    assert found(matches) == [(1, 0, 1)]
    state.record([Outcome(1, 1, None, 2)])
    assert matches.match(state.path) == Matched(reused={}, size=0, left={})
    assert found(matches) == []


def test_many_images_of_the_same_bytes_take_no_longer(make_state, matches):
    """With a search through all of them for each row, this would take ten minutes."""
    names = [f"{number:06}" for number in range(20_000)]
    state = make_state(*((name, A) for name in names), ("other", A))
    matches.add(rows(*(row(name, A) for name in names)), usable=True)
    assert matches.match(state.path).reused == {0: 20_001}
    assert found(matches)[:3] == [(0, 0, 0), (20_000, 0, 0), (1, 0, 1)]
