"""Notes on names that are probably misspelt."""

import pytest

from labels.images import KnownImages
from labels.similar import notes_on_categories, notes_on_names, show_notes, similar_image


@pytest.mark.parametrize(
    ("groups", "notes"),
    [
        ([("cat", "POSITIVE"), ("dog", "far away"), ("dog", "POSITIVE")], []),
        ([("cat", "m"), ("Cat", "m")], ["'Cat' and 'cat' are two categories."]),
        ([("a b", "m"), ("a  b", "m")], ["'a  b' and 'a b' are two categories."]),
        ([("cat\t", "m")], [r"The category 'cat\\t' begins or ends with white space."]),
    ],
)
def test_notes_on_names(groups, notes):
    found = notes_on_names(groups)
    assert len(found) == len(notes)
    assert all(line.startswith(start) for line, start in zip(found, notes, strict=True))


def test_notes_on_categories():
    groups = [("Cat", "m"), ("dog", "m"), ("Dog", "m")]
    assert notes_on_categories(groups, ["cat", "dog", "Dog", "x"]) == [
        "'Cat' is not the category 'cat', which the server has."
    ]


def test_many_notes(capsys):
    show_notes([str(number) for number in range(12)])
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], len(lines)) == ("Note: 0", 11)
    assert lines[-1] == "Note: there are 2 more notes on names."


def test_similar_image():
    known = KnownImages({"a": 0}, {"Straße": 1})
    assert similar_image(["b", "STRASSE"], known) == (
        "The dataset has Straße, and the file STRASSE: the case of letters counts."
    )
    assert similar_image(["b"], known) == ""
