"""Questions about what a server has, to servers that answer them otherwise than expected."""

import asyncio
from urllib.parse import parse_qsl, urlsplit

import pytest

from forager import stored
from forager.client import Forager
from forager.stored import CannotTell, Stored
from tests.forager.script import DJANGO_404, Script

CAT = "cat", "POSITIVE"
COUNTS = "get_category_counts_v2/d"


@pytest.mark.parametrize(
    ("answers", "counts"),
    [
        ({f"GET {COUNTS}": [(200, {"cat": {"POSITIVE": 3}, "dog": {}})]}, {CAT: 3}),
        (
            {
                f"GET {COUNTS}": [(405, {"detail": "not allowed"})],
                f"POST {COUNTS}": [(200, {"numLabeled": {"cat": {"POSITIVE": 3}}})],
            },
            {CAT: 3},
        ),
        ({f"GET {COUNTS}": [DJANGO_404]}, None),
        ({f"GET {COUNTS}": [(200, [])]}, None),
        ({f"GET {COUNTS}": [(200, {"numLabeled": 5})]}, None),
        ({f"GET {COUNTS}": [(200, {"cat": 5, "dog": {"POSITIVE": "6"}})]}, {}),
    ],
)
def test_category_counts(answers, counts):
    assert ask(Script(answers), stored.category_counts, "d", ["cat"]) == counts


QUERY, RESULTS = "POST query_images_v2/d", "GET get_results_v2/d"
ROWS = {f"i{row:02}": row for row in range(30)}


def ask(script, question, *args):
    """The answer to a question about the server of this script."""

    async def run():
        with script:
            async with Forager(script.url) as client:
                return await question(client.connection, *args)

    return asyncio.run(run())


def pages(numbers, paths):
    """Answers that show these images, numbered like this."""

    def answer(asked):
        query = dict(parse_qsl(urlsplit(asked.path).query))
        offset, num = int(query["offset"]), int(query["num"])
        part = slice(offset, offset + num)
        return 200, {"identifiers": numbers[part], "paths": paths[part]}

    size = (200, {"id": "r", "num_results": len(paths)})
    return {QUERY: [size], RESULTS: [answer]}


PATHS = [f"https://host/b/d é/{image}.jpg" for image in ROWS]


def test_numbers_follow_the_rows():
    script = Script(pages(list(range(7, 37)), PATHS))
    rows = {image: row + 5 for image, row in ROWS.items()}
    ids = ask(script, stored.server_ids, "d", "i", rows, {})
    assert [ids.of(image) for image in ROWS] == list(range(7, 37))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "it answers POST api/query_images_v2/d with HTTP 404"),
        ({QUERY: [(500, "x")]}, "failed to answer POST api/query_images_v2/d, in 2 attempts"),
        ({QUERY: [(200, [])]}, "it answers POST api/query_images_v2/d with something else"),
        (pages([], PATHS[1:]), "the train images of the server are not those of the index"),
        ({**pages([], PATHS), RESULTS: [(500, "x")]}, "api/get_results_v2/d, in 2 attempts"),
        ({**pages([], PATHS), RESULTS: [(200, {})]}, "GET api/get_results_v2 with something"),
        (pages(list(range(30)), PATHS[::-1]), "in another order than the index"),
        (pages([*range(20), *range(21, 31)], PATHS), "does not number the train images one"),
    ],
)
def test_numbers_that_the_server_does_not_tell(answers, words):
    with pytest.raises(CannotTell) as caught:
        ask(Script(answers), stored.server_ids, "d", "i", ROWS, {})
    assert words in str(caught.value)


@pytest.mark.parametrize("rows", [{"a": 0, "b": 2}, {"a": 0, "b": "1"}, {"a": 1, "b": 1}])
def test_rows_that_are_not_consecutive(rows):
    script = Script(pages([1, 2], ["a.jpg", "b.jpg"]))
    with pytest.raises(CannotTell):
        ask(script, stored.server_ids, "d", "i", rows, {})


BOX = {"category": "cat", "value": "m", "x1": 1, "y1": 2.5, "x2": 3, "y2": 4}


@pytest.mark.parametrize("generation", ["A", "B"])
def test_annotations(generation):
    tags = [{"category": "cat", "value": mode} for mode in ("POSITIVE", "m", "TOMBSTONE")]
    answers = {
        "GET get_annotations_v2": [(200, {"5": tags})],
        "POST get_annotations_v2": [(200, {"5": {"tags": tags, "boxes": [BOX]}})],
    }
    found = ask(Script(answers), stored.stored_annotations, generation, [4, 5])
    boxes = {("cat", "m", 1, 2.5, 3, 4)} if generation == "B" else set()
    assert found == {5: Stored({"cat": {"POSITIVE", "m"}}, boxes)}


@pytest.mark.parametrize("content", [{"x": []}, {"5": [1]}, {"5": {}}, {"5": [{"value": "m"}]}])
def test_annotations_of_another_shape(content):
    script = Script({"POST get_annotations_v2": [(200, content)]})
    with pytest.raises(CannotTell, match="with something else"):
        ask(script, stored.stored_annotations, "B", [5])
