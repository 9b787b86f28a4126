"""Labels and boxes of images that the dataset does not have, and boxes outside their images."""

import pytest

from forager.generation import Box
from labels.file.checks import Labels
from labels.images import KnownImages, check_boxes, known_images, split_unknown


def box(image, **fields):
    return Box(image, "c", "P", 1, 2, 3, 4)._replace(**fields)


def test_split_unknown():
    groups = {("a", "P"): ["x", "y"], ("b", "P"): ["z"]}
    labels = Labels(groups, [box("x"), box("v")], {})
    assert split_unknown(labels, KnownImages({"x": 0, "y": 1, "z": 2}, {"w": 3, "v": 4})) == (
        labels,
        [],
    )
    known, unknown = split_unknown(labels, KnownImages({"x": 0}, {}))
    assert known == Labels({("a", "P"): ["x"]}, [box("x")], {})
    assert unknown == ["v", "y", "z"]


@pytest.mark.parametrize(
    ("fields", "problems"),
    [({}, 0), ({"x2": 100}, 0), ({"x2": 100.4}, 0), ({"x2": 101}, 1), ({"y2": 51, "x2": 900}, 1)],
)
def test_boxes_outside_their_images(fields, problems):
    found = check_boxes([box("a", **fields), box("b", x2=1e9)], {"a": (100, 50)})
    assert len(found) == problems
    assert all("on a is not inside the image of 100 x 50 pixels." in line for line in found)


@pytest.mark.parametrize("index_id", ["", "a/b", "..\n", "x" * 301])
def test_an_index_id_that_is_no_name(index_id, capsys):
    assert known_images("bucket", index_id) is None
    assert "the server names no valid index" in capsys.readouterr().err
