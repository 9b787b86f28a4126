"""Cuts labels and boxes into requests that the server accepts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from common.terminal import count, printable
from forager.payloads import Box, box_body, box_fields, label_body

# Django refuses bodies over 2,621,440 bytes. nginx, which often stands in front of it, by default
# refuses bodies over 1,048,576.
MAX_BODY_BYTES = 1_000_000

LABELS, BOXES = "labels", "boxes"  # kinds of requests

Group = tuple[str, str]  # category, mode
T = TypeVar("T")


class LabelRequest(NamedTuple):
    """One request: the images that get this category with this mode."""

    category: str
    mode: str
    images: list[str]

    @property
    def kind(self) -> str:
        """What is stored."""
        return LABELS

    def key(self) -> str:
        """A digest of the labels; it does not depend on the server's generation."""
        return _digest(self)

    def size(self) -> int:
        """The number of labels."""
        return len(self.images)

    def groups(self) -> Counter[Group]:
        """The number of labels by category and mode."""
        return Counter({(self.category, self.mode): len(self.images)})

    def __str__(self) -> str:
        what = f"{printable(self.category)!r} ({printable(self.mode)})"
        return f"{len(self.images):,} x {what}, {_from_to(self.images)}"


class BoxRequest(NamedTuple):
    """One request: boxes of any categories and modes."""

    boxes: list[Box]

    @property
    def kind(self) -> str:
        """What is stored."""
        return BOXES

    def key(self) -> str:
        """A digest of the boxes."""
        return _digest(self)

    def size(self) -> int:
        """The number of boxes."""
        return len(self.boxes)

    def groups(self) -> Counter[Group]:
        """The number of boxes by category and mode."""
        return Counter((box.category, box.mode) for box in self.boxes)

    def __str__(self) -> str:
        boxes = count(len(self.boxes), "box", "boxes")
        return f"{boxes}, {_from_to([box.identifier for box in self.boxes])}"


Request = LabelRequest | BoxRequest


class Plan(NamedTuple):
    """What is to be sent, and what is not."""

    requests: list[Request]
    unknown: int = 0  # images that are skipped, because the dataset does not have them
    skipped_boxes: int = 0
    index_known: bool = True  # whether the dataset's images are known

    def groups(self) -> Counter[Group]:
        """The number of labels and boxes by category and mode."""
        groups: Counter[Group] = Counter()
        for request in self.requests:
            groups.update(request.groups())
        return groups

    def skipped(self) -> str:
        """What is not sent, in words, or ""."""
        images = f"; labels of {count(self.unknown, 'unknown image')} skipped"
        boxes = f"; {count(self.skipped_boxes, 'box', 'boxes')} skipped"
        return (images if self.unknown else "") + (boxes if self.skipped_boxes else "")


def make_requests(groups: dict[Group, list[str]], boxes: list[Box], user: str) -> list[Request]:
    """All labels, then all boxes, in requests of bounded size and in a fixed order."""
    requests: list[Request] = []
    for (category, mode), images in groups.items():
        # The larger of both, so that the requests do not depend on the server's generation.
        empty = max(len(label_body(generation, [], user, category, mode)) for generation in "AB")
        parts = chunk(images, empty, lambda image: len(json.dumps(image)))
        requests += [LabelRequest(category, mode, part) for part in parts]
    empty = len(box_body("x" * 50, [], user))  # of a dataset with the longest name
    return requests + [
        BoxRequest(part) for part in chunk(boxes, empty, lambda box: len(box_fields(box)))
    ]


def chunk(
    items: Iterable[T],
    empty_body_bytes: int,
    encoded_bytes: Callable[[T], int],
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Iterator[list[T]]:
    """The items, in order, in lists whose request bodies are small enough.

    Args:
        items: what goes into a JSON list of the body.
        empty_body_bytes: size of the encoded body without items.
        encoded_bytes: gives the size of one encoded item.
        max_body_bytes: size of the longest body, unless a single item needs more.
    """
    room = max_body_bytes - empty_body_bytes
    part: list[T] = []
    left = room
    for item in items:
        size = encoded_bytes(item) + 1  # and the comma
        if size > left and part:
            yield part
            part, left = [], room
        part.append(item)
        left -= size
    if part:
        yield part


def _digest(request: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()


def _from_to(images: list[str]) -> str:
    first, last = printable(images[0], 40), printable(images[-1], 40)
    return first if len(images) == 1 else f"{first} to {last}"
