"""Cuts labels into requests that the server accepts."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.terminal import printable
from forager.payloads import label_body

# Django refuses bodies over 2,621,440 bytes. nginx, which often stands in front of it, by default
# refuses bodies over 1,048,576.
MAX_BODY_BYTES = 1_000_000

Group = tuple[str, str]  # category, mode


class LabelRequest(NamedTuple):
    """One request: the images that get this category with this mode."""

    category: str
    mode: str
    images: list[str]

    def key(self) -> str:
        """A digest of the labels; it does not depend on the server's generation."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()

    def size(self) -> int:
        """The number of labels."""
        return len(self.images)

    def __str__(self) -> str:
        first, last = printable(self.images[0], 40), printable(self.images[-1], 40)
        which = first if len(self.images) == 1 else f"{first} to {last}"
        return (
            f"{len(self.images):,} x {printable(self.category)!r} ({printable(self.mode)}), {which}"
        )


def make_requests(groups: dict[Group, list[str]], user: str) -> list[LabelRequest]:
    """The labels in requests of bounded size, in a fixed order."""
    requests = []
    for (category, mode), images in groups.items():
        # The larger of both, so that the requests do not depend on the server's generation.
        empty = max(len(label_body(generation, [], user, category, mode)) for generation in "AB")
        requests += [LabelRequest(category, mode, part) for part in chunk(images, empty)]
    return requests


def chunk(
    images: Iterable[str], empty_body_bytes: int, max_body_bytes: int = MAX_BODY_BYTES
) -> Iterator[list[str]]:
    """The identifiers, in order, in lists whose request bodies are small enough.

    Args:
        images: identifiers.
        empty_body_bytes: size of the encoded body without identifiers.
        max_body_bytes: size of the longest body, unless a single identifier needs more.
    """
    room = max_body_bytes - empty_body_bytes
    part: list[str] = []
    left = room
    for image in images:
        size = len(json.dumps(image)) + 1  # and the comma
        if size > left and part:
            yield part
            part, left = [], room
        part.append(image)
        left -= size
    if part:
        yield part
