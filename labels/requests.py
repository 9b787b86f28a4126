"""Cuts labels and boxes into requests that the server accepts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

from common.terminal import count, printable
from forager.payloads import Box, Group, Label, annotation_fields, label_body, multi_body
from labels.images import KnownImages

# Django refuses bodies over 2,621,440 bytes. nginx, which often stands in front of it, by default
# refuses bodies over 1,048,576.
MAX_BODY_BYTES = 1_000_000
# A server of generation B took 4 ms for each label that it replaced, so these take 200 s. A request
# is given up after 600 s.
MAX_LABELS = 50_000
# A mixed request is stored whole or not at all, and its answer has no numbers by category. So it is
# only used where it saves many requests.
MIN_SAVED_REQUESTS = 10

LABELS, BOXES = "labels", "boxes"  # kinds of requests

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

    def annotations(self) -> Iterator[Label]:
        """The labels one by one."""
        return (Label(image, self.category, self.mode) for image in self.images)

    def __str__(self) -> str:
        what = f"{printable(self.category)!r} ({printable(self.mode)})"
        return f"{len(self.images):,} x {what}, {_from_to(self.images)}"


class MixedRequest(NamedTuple):
    """One request: labels of any categories and modes, for a server of generation B."""

    labels: list[Label]

    @property
    def kind(self) -> str:
        """What is stored."""
        return LABELS

    def key(self) -> str:
        """A digest of the labels."""
        return _digest(self)

    def size(self) -> int:
        """The number of labels."""
        return len(self.labels)

    def groups(self) -> Counter[Group]:
        """The number of labels by category and mode."""
        return Counter((label.category, label.mode) for label in self.labels)

    def annotations(self) -> Iterable[Label]:
        """The labels one by one."""
        return self.labels

    def __str__(self) -> str:
        categories = count(len({label.category for label in self.labels}), "category", "categories")
        first, last = self.labels[0], self.labels[-1]
        return (
            f"{count(len(self.labels), 'label')} of {categories}, "
            f"{printable(first.category)!r} to {printable(last.category)!r}"
        )


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

    def annotations(self) -> Iterable[Box]:
        """The boxes one by one."""
        return self.boxes

    def __str__(self) -> str:
        boxes = count(len(self.boxes), "box", "boxes")
        return f"{boxes}, {_from_to([box.identifier for box in self.boxes])}"


Request = LabelRequest | MixedRequest | BoxRequest


class Plan(NamedTuple):
    """What is to be sent, and what is not."""

    requests: list[Request]
    unknown: int = 0  # images that are skipped, because the dataset does not have them
    skipped_boxes: int = 0
    known: KnownImages | None = None  # the dataset's images, if its index can be read

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


def make_requests(
    groups: dict[Group, list[str]], boxes: list[Box], user: str, mixed: bool = False
) -> list[Request]:
    """All labels, then all boxes, in requests of bounded size and in a fixed order.

    Args:
        mixed: whether the server takes labels of several categories in one request, and is known
            to have all images. Small groups then share requests.
    """
    own: list[LabelRequest] = []
    for (category, mode), images in groups.items():
        # The larger of both, so that the requests do not depend on the server's generation.
        empty = max(len(label_body(generation, [], user, category, mode)) for generation in "AB")
        parts = chunk(images, empty, lambda image: len(json.dumps(image)))
        own += [LabelRequest(category, mode, part) for part in parts]
    empty = len(multi_body("x" * 50, [], user))  # of a dataset with the longest name
    labels = _share_small(own, empty) if mixed else own
    return [*labels, *(BoxRequest(part) for part in chunk(boxes, empty, _fields_bytes))]


def _share_small(
    requests: list[LabelRequest], empty_body_bytes: int
) -> list[LabelRequest | MixedRequest]:
    """The requests with mixed ones for the small ones, if that saves many."""
    large: list[LabelRequest | MixedRequest] = []
    small: list[LabelRequest] = []
    for request in requests:
        (small if _is_small(request, empty_body_bytes) else large).append(request)
    labels = chain.from_iterable(request.annotations() for request in small)
    parts = chunk(labels, empty_body_bytes, _fields_bytes)
    shared = [MixedRequest(part) for part in parts]
    if len(small) - len(shared) < MIN_SAVED_REQUESTS:
        return list(requests)
    return large + shared


def _is_small(request: LabelRequest, empty_body_bytes: int) -> bool:
    """Whether at least two such requests fit into a mixed one."""
    category, mode, images = request
    each = len(annotation_fields(Label("", category, mode)))
    names = sum(len(json.dumps(image)) for image in images)
    return names + len(images) * each <= (MAX_BODY_BYTES - empty_body_bytes) // 2


def _fields_bytes(annotation: Label | Box) -> int:
    return len(annotation_fields(annotation))


def chunk(
    items: Iterable[T],
    empty_body_bytes: int,
    encoded_bytes: Callable[[T], int],
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Iterator[list[T]]:
    """The items, in order, in lists whose request bodies are small enough.

    A list has up to MAX_LABELS items.

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
        if part and (size > left or len(part) == MAX_LABELS):
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
