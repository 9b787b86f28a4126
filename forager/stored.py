"""What a Forager server has stored already. Asking changes nothing.

The server identifies images by numbers of its own, and no call tells the numbers of given images.
But it numbers the images of a split in the order in which it listed them, which is the order of
rows. So a few pages of its results tell the numbers of all images, and whether that is so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from common.errors import ServerError
from common.names import identifier
from forager.connection import Connection

TRIES = 2  # a server without index server answers some of these questions with 500, always
PAGE_IMAGES = 10  # of results; the server clusters the images of a page, so pages are small
PAGES = 5  # of each split
REMOVED_MODE = "TOMBSTONE"  # the mode of a label that was removed on the web page


class CannotTell(Exception):
    """The server does not answer a question; the message is the reason."""


class Stored(NamedTuple):
    """The annotations of one image."""

    labels: dict[str, set[str]]  # by category, the modes
    boxes: set[tuple[Any, ...]]  # category, mode, x1, y1, x2, y2


NOTHING = Stored({}, set())


class ServerIds(NamedTuple):
    """The server's numbers of the images of a dataset."""

    train: dict[str, int]  # rows by identifier
    val: dict[str, int]
    first_train: int  # the number of row 0
    first_val: int

    def of(self, image: str) -> int:
        """The server's number of an image of the dataset."""
        if (row := self.train.get(image)) is not None:
            return row + self.first_train
        return self.val[image] + self.first_val


async def category_counts(
    connection: Connection, name: str, categories: Sequence[str]
) -> dict[tuple[str, str], int] | None:
    """The number of rows that the server has, by category and mode.

    It counts boxes and, on generation A, labels that newer ones replace. None if the server does
    not tell. Some servers tell all categories by GET, others want a list by POST.
    """
    route = f"get_category_counts_v2/{quote(name, safe='')}"
    answer = await connection.ask("GET", route)
    if answer.status == 405:
        body = json.dumps({"categories": list(categories)}).encode()
        answer = await connection.ask("POST", route, body)
    content = answer.content
    if answer.status != 200 or not isinstance(content, dict):
        return None
    by_category = content.get("numLabeled", content)
    if not isinstance(by_category, dict):
        return None
    return {
        (category, mode): number
        for category, modes in by_category.items()
        if isinstance(modes, dict)
        for mode, number in modes.items()
        if type(number) is int
    }


async def server_ids(
    connection: Connection, name: str, index_id: str, train: dict[str, int], val: dict[str, int]
) -> ServerIds:
    """The server's numbers of all images, from their rows in the index.

    Raises:
        CannotTell: the server does not answer, or does not number the images in this order.
    """
    first_train = await _number_of_row_0(connection, name, index_id, "train", train)
    first_val = await _number_of_row_0(connection, name, index_id, "val", val)
    return ServerIds(train, val, first_train, first_val)


async def _number_of_row_0(
    connection: Connection, name: str, index_id: str, split: str, rows: dict[str, int]
) -> int:
    """The number that row 0 has, or would have, if the numbers of a split follow the rows."""
    if not rows:
        return 0
    if not all(type(row) is int for row in rows.values()):
        raise CannotTell("the index has rows that are no numbers")
    images = sorted(rows, key=rows.__getitem__)
    count, first_row = len(images), rows[images[0]]
    body = json.dumps({"split": split, "order": "id", "index_id": index_id}).encode()
    found = await _ask(connection, "POST", f"query_images_v2/{quote(name, safe='')}", body)
    if found.get("num_results") != count or rows[images[-1]] - first_row != count - 1:
        raise CannotTell(f"the {split} images of the server are not those of the index")
    numbers: dict[int, int] = {}  # by place
    for page in range(PAGES):
        start = max(0, count - PAGE_IMAGES) * page // (PAGES - 1)
        query = {"index_id": index_id, "result_set_id": found.get("id")}
        query |= {"offset": start, "num": PAGE_IMAGES}
        route = f"get_results_v2/{quote(name, safe='')}?{urlencode(query)}"
        shown = await _ask(connection, "GET", route)
        paths, ids = shown.get("paths"), shown.get("identifiers")
        wanted = images[start : start + PAGE_IMAGES]
        if not isinstance(ids, list) or not all(type(number) is int for number in ids):
            raise CannotTell("it answers GET api/get_results_v2 with something else")
        if not isinstance(paths, list) or [identifier(str(path)) for path in paths] != wanted:
            raise CannotTell(f"it has the {split} images in another order than the index")
        numbers |= dict(enumerate(ids, start))
    # The server sorts the numbers, and no two are equal. So if the last one follows from the first
    # one, all in between do.
    if any(number != numbers[0] + place for place, number in numbers.items()):
        raise CannotTell(f"it does not number the {split} images one after the other")
    return numbers[0] - first_row


async def stored_annotations(
    connection: Connection, generation: str, numbers: Sequence[int]
) -> dict[int, Stored]:
    """The annotations of the images with these numbers; images without any are left out.

    Raises:
        CannotTell: the server does not answer.
    """
    route = "get_annotations_v2"
    if generation == "A":
        query = ",".join(map(str, numbers))
        content = await _ask(connection, "GET", f"{route}?identifiers={query}")
    else:
        content = await _ask(
            connection, "POST", route, json.dumps({"identifiers": list(numbers)}).encode()
        )
    try:
        return {int(number): _stored(annotations) for number, annotations in content.items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise CannotTell("it answers api/get_annotations_v2 with something else") from None


def _stored(annotations: Any) -> Stored:
    """The annotations of one image, as generation A (a list) or B (an object) tells them."""
    tags, boxes = annotations, []
    if isinstance(annotations, dict):
        tags, boxes = annotations["tags"], annotations["boxes"]
    labels: dict[str, set[str]] = {}
    for tag in tags:
        if tag["value"] != REMOVED_MODE:
            labels.setdefault(tag["category"], set()).add(tag["value"])
    fields = ("category", "value", "x1", "y1", "x2", "y2")
    return Stored(labels, {tuple(box[field] for field in fields) for box in boxes})


async def _ask(
    connection: Connection, method: str, route: str, body: bytes | None = None
) -> dict[str, Any]:
    """The JSON object that the server answers."""
    try:
        answer = await connection.ask(method, route, body, attempts=TRIES)
    except ServerError as error:
        raise CannotTell(error.message.rstrip(".")) from error
    shown = route.partition("?")[0]
    if answer.status != 200:
        raise CannotTell(f"it answers {method} api/{shown} with HTTP {answer.status}")
    if not isinstance(answer.content, dict):
        raise CannotTell(f"it answers {method} api/{shown} with something else")
    return answer.content
