"""Which labels and boxes are sent, in requests of bounded size, and which names look wrong."""

import json
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forager.generation import Box, Generation, Kind, LabelRequest
from labels.file.checks import Labels
from labels.plan import (
    MAX_BODY_BYTES,
    MAX_LABELS,
    MIN_SAVED_REQUESTS,
    Plan,
    chunk,
    inversion,
    known_images,
    make_requests,
    notes_on_names,
)

CAT = "cat", "POSITIVE"
LONG = ("é" * 300, "\U0001f600" * 300)
USER = "u" * 300


def box(image, **fields):
    return Box(image, "c", "P", 1, 2, 3, 4)._replace(**fields)


def labels(groups, boxes=()):
    return Labels(groups, list(boxes), {})


def sizes(requests, generation=Generation.B):
    return [len(generation.body("d" * 50, request, USER)) for request in requests]


@given(
    st.lists(st.text(max_size=20), max_size=60),
    st.integers(130, 400),
    st.sampled_from(Generation),
)
def test_chunks_are_whole_and_small_enough(images, limit, generation):
    def size(part):
        return len(generation.body("d", LabelRequest({("é", "m"): part}, []), "u"))

    with mock.patch("labels.plan.MAX_BODY_BYTES", limit):
        parts = list(chunk(images, size([]), lambda image: len(json.dumps(image))))
    assert [image for part in parts for image in part] == images
    for part, following in zip(parts, [*parts[1:], []], strict=False):
        assert part
        assert size(part) <= limit or len(part) == 1
        if following:  # no request more than needed
            assert size([*part, following[0]]) > limit - 2


@pytest.mark.parametrize("generation", Generation)
def test_requests_stay_below_the_limits_of_the_server(generation):
    images = [f"image-{number:09d}-é" for number in range(100_000)]
    requests = make_requests(labels({LONG: images}), USER)
    assert [image for request in requests for image in request.labels[LONG]] == images
    assert max(sizes(requests, generation)) <= MAX_BODY_BYTES < 1_048_576
    assert len(requests) == 3
    numbers = [str(number) for number in range(2 * MAX_LABELS + 1)]
    requests = make_requests(labels({CAT: numbers}), USER)
    assert [request.size for request in requests] == [MAX_LABELS, MAX_LABELS, 1]


def test_boxes_stay_below_the_limits_of_the_server():
    boxes = [
        Box(f"image-{number:09d}-é", LONG[0], "POSITIVE", 1 / 3, 2.5, number + 1.0, 1e300)
        for number in range(2_000)
    ]
    first, *requests = make_requests(labels({CAT: ["a"]}, boxes), USER)
    assert first.kind is Kind.LABELS
    assert [box for request in requests for box in request.boxes] == boxes
    assert max(sizes(requests)) <= MAX_BODY_BYTES
    assert sum(sizes(requests)) > (len(requests) - 1) * MAX_BODY_BYTES * 0.99


def test_small_groups_share_requests():
    """The last part of a large group is small too."""

    def one_by_one(requests):
        return sorted(
            (g, i) for request in requests for g, ids in request.labels.items() for i in ids
        )

    images = [f"image-{number:06d}-é" for number in range(50_000)]
    groups = {("large", "POSITIVE"): images}
    groups |= {(f"c{number:03}", "é"): images[:90] for number in range(300)}
    own = make_requests(labels(groups), USER)
    assert len(own) == 302
    requests = make_requests(labels(groups), USER, shared=True)
    assert requests[0] == own[0]
    assert one_by_one(requests) == one_by_one(own)
    assert len(requests) == 4
    assert max(sizes(requests)) <= MAX_BODY_BYTES
    assert next(iter(requests[1].labels))[0] == "large"
    assert {request.kind for request in requests} == {Kind.LABELS}
    digests = {Plan(requests=part).digest for part in (own, requests, requests[:1], [])}
    assert len(digests) == 4


def test_few_small_groups_share_no_request():
    groups = {(f"c{number}", "m"): ["a"] for number in range(MIN_SAVED_REQUESTS)}
    assert len(make_requests(labels(groups), "u", shared=True)) == MIN_SAVED_REQUESTS
    groups["more", "m"] = ["a"]
    assert len(make_requests(labels(groups), "u", shared=True)) == 1


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (LabelRequest({CAT: ["a", "b"]}, []), "2 labels 'cat' (POSITIVE), a to b"),
        (LabelRequest({("\x1b", "m"): ["c\u202e"]}, []), r"1 label '\\x1b' (m), c\u202e"),
        (
            LabelRequest({("x", "m"): ["a"], ("\x1b", "m"): ["b"]}, []),
            r"2 labels of 2 categories, 'x' to '\\x1b'",
        ),
        (LabelRequest({}, [box("a")]), "1 box, a"),
        (LabelRequest({}, [box("a"), box("b"), box("c")]), "3 boxes, a to c"),
    ],
)
def test_a_request_in_words(request_, text):
    assert str(request_) == text


@pytest.mark.parametrize("index_id", ["", "a/b", "..\n", "x" * 301])
def test_an_index_id_that_is_no_name(index_id, capsys):
    assert known_images("bucket", index_id) is None
    assert "the server names no valid index" in capsys.readouterr().err


def test_categories_that_are_images_of_the_dataset():
    groups = {("t/a", "POSITIVE"): ["cat"], ("b.v1", "POSITIVE"): ["cat", "dog"]}
    found = Labels(groups, [], {"cat": "cat", "dog": "dog"})
    said = inversion(found, labels({}), {"a", "c", "b.v1"})
    assert said.startswith('the file gives "cat" the label "t/a": it maps categories to images.')
    assert inversion(found, labels({}), {"a", "c"}) is None
    assert inversion(found, found, {"a", "c", "b.v1"}) is None
    named = Labels(groups, [], {"cat": "t/cat.jpg", "dog": "dog"})
    assert inversion(named, labels({}), {"a", "c", "b.v1"}) is None


def test_categories_that_are_image_files_where_the_index_is_not_known():
    groups = {("t/a.jpg", "POSITIVE"): ["cat"]}
    found = Labels(groups, [], {"cat": "cat"})
    assert inversion(found, found, None).startswith('the file gives "cat" the label "t/a.jpg"')
    assert inversion(Labels(groups, [], {"cat": "cat.png"}), found, None) is None


@pytest.mark.parametrize(
    ("categories", "notes"),
    [
        (["cat", "dog", "dog"], []),
        (["cat", "Cat"], ["'Cat' and 'cat' are two categories."]),
        (["a b", "a  b"], ["'a  b' and 'a b' are two categories."]),
        (["cat\t"], [r"The category 'cat\\t' begins or ends with white space."]),
    ],
)
def test_notes_on_names(categories, notes):
    assert notes_on_names(categories) == notes
