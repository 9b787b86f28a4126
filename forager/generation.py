"""What differs between the generations of the Forager server: how each stores labels and boxes."""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from typing import NamedTuple
from urllib.parse import quote

from common.terminal import count, printable

Group = tuple[str, str]  # category, mode
ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each call
MULTI_ROUTE = "add_annotations_multi_v2"  # only generation B has it


class Kind(enum.Enum):
    """What a request stores; their rows on the server are separate."""

    LABELS = "labels"
    BOXES = "boxes"

    def counted(self, number: int) -> str:
        """`1 label`, `4 boxes`."""
        return count(number, "label" if self is Kind.LABELS else "box", self.value)


def amount(numbers: Mapping[Kind, int]) -> str:
    """Numbers of labels and of boxes in words, without one that is zero."""
    shown = [kind.counted(numbers[kind]) for kind in Kind if numbers.get(kind)]
    return " and ".join(shown) or Kind.LABELS.counted(0)


class Box(NamedTuple):
    """A box on an image, in pixels of the full-size image."""

    identifier: str
    category: str
    mode: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class LabelRequest:
    """What one request stores: labels of whole images, or boxes.

    Args:
        labels: the identifiers of the images by category and mode.
        boxes: empty if there are labels.
    """

    labels: dict[Group, list[str]]
    boxes: list[Box]

    @property
    def kind(self) -> Kind:
        return Kind.BOXES if self.boxes else Kind.LABELS

    @property
    def size(self) -> int:
        """The number of labels or boxes."""
        return sum(map(len, self.labels.values())) + len(self.boxes)

    def counts(self) -> Counter[Group]:
        """The number of labels or boxes by category and mode."""
        if self.boxes:
            return Counter((box.category, box.mode) for box in self.boxes)
        return Counter({group: len(images) for group, images in self.labels.items()})

    def __str__(self) -> str:
        amount = self.kind.counted(self.size)
        groups = list(self.labels)
        if self.boxes:
            return f"{amount}, {_from_to([box.identifier for box in self.boxes])}"
        if len(groups) == 1:
            ((category, mode),) = groups
            images = _from_to(self.labels[category, mode])
            return f"{amount} {printable(category)!r} ({printable(mode)}), {images}"
        categories = count(len({category for category, _ in groups}), "category", "categories")
        ends = f"{printable(groups[0][0])!r} to {printable(groups[-1][0])!r}"
        return f"{amount} of {categories}, {ends}"


class Generation(enum.Enum):
    """Of the server. A stores a repeated label as another row; B replaces it, and stores boxes."""

    A = "A"
    B = "B"

    @property
    def stores_boxes(self) -> bool:
        return self is Generation.B

    @property
    def shares_requests(self) -> bool:
        """Whether one request can store labels of several categories.

        It is stored whole, or not at all if the dataset lacks one of the images.
        """
        return self is Generation.B

    @property
    def max_user_length(self) -> int:
        """Characters of an e-mail address; a longer one is answered with 500."""
        return 300 if self is Generation.A else 254

    def stores_twice(self, kind: Kind) -> bool:
        """Whether what is sent twice is stored twice."""
        return self is Generation.A or kind is Kind.BOXES

    def route(self, name: str, request: LabelRequest) -> str:
        """Where a request is sent that stores something in the dataset `name`."""
        if _is_multi(request):
            return MULTI_ROUTE
        return f"add_annotations_by_internal_identifiers_v2/{quote(name, safe='')}"

    def body(self, name: str, request: LabelRequest, user: str) -> bytes:
        """The body of that request, as all-ASCII JSON.

        The generations name the mode of labels differently. B accepts the body of A, but stores a
        wrong mode.
        """
        if _is_multi(request):
            start = encoded({"dataset": name, "user": user, "created_by": "ingest"})
            annotations = [
                *(f"{{{label_fields(i, g)}}}" for g, ids in request.labels.items() for i in ids),
                *map(box_fields, request.boxes),
            ]
            return start[:-1] + f',"annotations":[{",".join(annotations)}]}}'.encode()
        ((category, mode), images), *_ = request.labels.items()
        fields: dict[str, object] = {"identifiers": images, "user": user, "category": category}
        if self is Generation.A:
            fields |= {"value": mode, "mode": "ingest"}
        else:
            fields |= {"mode": mode, "created_by": "ingest"}
        return encoded(fields)


def _is_multi(request: LabelRequest) -> bool:
    return len(request.labels) != 1


def label_fields(image: str, group: Group) -> str:
    """The fields of a label that shares a request with others, as JSON without the braces."""
    category, mode = group
    return f'"identifier":{quoted(image)},"category":{quoted(category)},"mode":{quoted(mode)}'


def box_fields(box: Box) -> str:
    """A box as a JSON object."""
    label = label_fields(box.identifier, (box.category, box.mode))
    corners = f'"x1":{box.x1!r},"y1":{box.y1!r},"x2":{box.x2!r},"y2":{box.y2!r}'
    return f'{{{label},{corners},"is_box":true}}'


def encoded(payload: dict[str, object]) -> bytes:
    """All-ASCII JSON without spaces."""
    return ENCODER.encode(payload).encode("ascii")


def _from_to(images: list[str]) -> str:
    first, last = printable(images[0], 40), printable(images[-1], 40)
    return first if len(images) == 1 else f"{first} to {last}"
