"""Labels of images that the dataset does not have."""

from labels.images import split_unknown


def test_split_unknown():
    groups = {("a", "P"): ["x", "y"], ("b", "P"): ["z"]}
    assert split_unknown(groups, {"x", "y", "z", "w"}) == (groups, [])
    assert split_unknown(groups, {"x"}) == ({("a", "P"): ["x"]}, ["y", "z"])
