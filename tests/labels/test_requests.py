"""Labels and boxes in requests of bounded size."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forager.payloads import Box, Label, label_body, multi_body
from labels.requests import (
    MAX_BODY_BYTES,
    MAX_LABELS,
    MIN_SAVED_REQUESTS,
    BoxRequest,
    LabelRequest,
    MixedRequest,
    chunk,
    make_requests,
)


def encoded_bytes(image):
    return len(json.dumps(image))


@given(
    st.lists(st.text(max_size=20), max_size=60),
    st.integers(130, 400),
    st.sampled_from("AB"),
)
def test_chunks_are_whole_and_small_enough(images, limit, generation):
    empty = len(label_body(generation, [], "u", "é", "m"))
    parts = list(chunk(images, empty, encoded_bytes, limit))
    assert [image for part in parts for image in part] == images
    for part, following in zip(parts, [*parts[1:], []], strict=False):
        size = len(label_body(generation, part, "u", "é", "m"))
        assert part
        assert size <= limit or len(part) == 1
        if following:  # no request more than needed
            assert len(label_body(generation, [*part, following[0]], "u", "é", "m")) > limit - 2


def test_chunks_stay_below_the_limits_of_the_server():
    images = [f"image-{number:09d}-é" for number in range(100_000)]
    empty = len(label_body("A", [], "u" * 300, "é" * 300, "\U0001f600" * 300))
    parts = list(chunk(images, empty, encoded_bytes))
    sizes = [len(label_body("A", part, "u" * 300, "é" * 300, "\U0001f600" * 300)) for part in parts]
    assert sum(map(len, parts)) == 100_000
    assert max(sizes) <= MAX_BODY_BYTES < 1_048_576
    assert len(parts) == 3


def test_boxes_stay_below_the_limits_of_the_server():
    boxes = [
        Box(f"image-{number:09d}-é", "é" * 300, "POSITIVE", 1 / 3, 2.5, number + 1.0, 1e300)
        for number in range(2_000)
    ]
    requests = make_requests({("cat", "POSITIVE"): ["a"]}, boxes, "u" * 300)
    assert isinstance(requests[0], LabelRequest)
    assert [box for request in requests[1:] for box in request.boxes] == boxes
    sizes = [len(multi_body("d" * 50, request.boxes, "u" * 300)) for request in requests[1:]]
    assert max(sizes) <= MAX_BODY_BYTES
    assert sum(sizes) > (len(sizes) - 1) * MAX_BODY_BYTES * 0.99


def test_requests_have_a_limited_number_of_labels():
    images = [str(number) for number in range(2 * MAX_LABELS + 1)]
    requests = make_requests({("cat", "POSITIVE"): images}, [], "u")
    assert [request.size() for request in requests] == [MAX_LABELS, MAX_LABELS, 1]


def test_small_groups_share_requests():
    """The last part of a large group is small too."""
    images = [f"image-{number:06d}-é" for number in range(50_000)]
    groups = {("large", "POSITIVE"): images}
    groups |= {(f"c{number:03}", "é"): images[:90] for number in range(300)}
    own = make_requests(groups, [], "u" * 300)
    assert len(own) == 302
    requests = make_requests(groups, [], "u" * 300, mixed=True)
    assert requests[0] == own[0]
    assert sorted(label for request in requests for label in request.annotations()) == sorted(
        label for request in own for label in request.annotations()
    )
    sizes = [len(multi_body("d" * 50, request.labels, "u" * 300)) for request in requests[1:]]
    assert len(sizes) == 3
    assert max(sizes) <= MAX_BODY_BYTES
    assert requests[1].labels[0].category == "large"
    assert [request.kind for request in requests] == ["labels"] * 4
    assert len({request.key() for request in requests}) == 4


def test_few_small_groups_share_no_request():
    groups = {(f"c{number}", "m"): ["a"] for number in range(MIN_SAVED_REQUESTS)}
    assert len(make_requests(groups, [], "u", mixed=True)) == MIN_SAVED_REQUESTS
    groups["more", "m"] = ["a"]
    assert len(make_requests(groups, [], "u", mixed=True)) == 1


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (LabelRequest("cat", "POSITIVE", ["a", "b"]), "2 x 'cat' (POSITIVE), a to b"),
        (LabelRequest("\x1b", "m", ["c\u202e"]), r"1 x '\\x1b' (m), c\u202e"),
        (
            MixedRequest([Label("a", "x", "m"), Label("b", "\x1b", "m")]),
            r"2 labels of 2 categories, 'x' to '\\x1b'",
        ),
        (BoxRequest([Box("a", "x", "m", 1, 2, 3, 4)]), "1 box, a"),
        (BoxRequest([Box(i, "x", "m", 1, 2, 3, 4) for i in "abc"]), "3 boxes, a to c"),
    ],
)
def test_a_request_in_words(request_, text):
    assert str(request_) == text
