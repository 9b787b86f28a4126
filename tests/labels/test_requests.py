"""Labels and boxes in requests of bounded size."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forager.payloads import Box, box_body, label_body
from labels.requests import MAX_BODY_BYTES, BoxRequest, LabelRequest, chunk, make_requests


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
    sizes = [len(box_body("d" * 50, request.boxes, "u" * 300)) for request in requests[1:]]
    assert max(sizes) <= MAX_BODY_BYTES
    assert sum(sizes) > (len(sizes) - 1) * MAX_BODY_BYTES * 0.99


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (LabelRequest("cat", "POSITIVE", ["a", "b"]), "2 x 'cat' (POSITIVE), a to b"),
        (LabelRequest("\x1b", "m", ["c\u202e"]), r"1 x '\\x1b' (m), c\u202e"),
        (BoxRequest([Box("a", "x", "m", 1, 2, 3, 4)]), "1 box, a"),
        (BoxRequest([Box(i, "x", "m", 1, 2, 3, 4) for i in "abc"]), "3 boxes, a to c"),
    ],
)
def test_a_request_in_words(request_, text):
    assert str(request_) == text
