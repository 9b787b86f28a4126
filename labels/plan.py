"""What is sent: the labels of images that the dataset has, in requests that the server accepts."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import gcs
from common.errors import StorageError
from common.names import identifier
from common.terminal import count, first_lines, printable, say
from forager.generation import Box, Generation, Group, Kind, LabelRequest, box_fields, label_fields
from forager.generation import quoted as json_string
from labels.file.checks import Labels, inverted, is_image_name

# Django refuses bodies over 2,621,440 bytes. nginx, which often stands in front of it, by default
# refuses bodies over 1,048,576.
MAX_BODY_BYTES = 1_000_000
# A server of generation B took 4 ms for each label that it replaced, so these take 200 s. A request
# is given up after 600 s.
MAX_LABELS = 50_000
# A request of several categories is stored whole or not at all, and its answer has no numbers by
# category. So it is only used where it saves many requests.
MIN_SAVED_REQUESTS = 10
INDEX_ID = re.compile(r"[-\w.]{1,300}")
ROUNDING = 1.0  # pixel by which coordinates of a box inside its image may exceed it

T = TypeVar("T")
Counts = Mapping[Kind, Counter[Group]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be sent, and what is not."""

    requests: list[LabelRequest]
    unknown: int = 0  # images that are skipped, because the dataset does not have them
    skipped_boxes: int = 0
    index_known: bool = True  # whether the index told which images the dataset has

    @functools.cached_property
    def digest(self) -> str:
        """A digest of all requests, in their order."""
        digest = hashlib.sha256()
        for request in self.requests:
            digest.update(json.dumps([*request.labels.items(), request.boxes]).encode() + b"\n")
        return digest.hexdigest()

    def counts(self, created: Sequence[int] | None = None) -> Counts:
        """The number of labels and of boxes by category and mode.

        Args:
            created: counts what the server stored: how many labels of each request. Which of
                several categories it did not store is not known, so then these count as nothing.
        """
        counts: Counts = {kind: Counter() for kind in Kind}
        sizes = [request.size for request in self.requests]
        for request, number in zip(self.requests, created or sizes, strict=True):
            by_group = request.counts()
            if number != request.size:
                by_group = Counter(dict.fromkeys(by_group, number) if len(by_group) == 1 else ())
            counts[request.kind].update(by_group)
        return counts

    def skipped(self) -> str:
        """What is not sent, in words, or ""."""
        images = f"; labels of {count(self.unknown, 'unknown image')} skipped"
        boxes = f"; {Kind.BOXES.counted(self.skipped_boxes)} skipped"
        return (images if self.unknown else "") + (boxes if self.skipped_boxes else "")


def known_images(bucket: str, index_id: str) -> set[str] | None:
    """The identifiers of the dataset's images, according to its index in the bucket.

    If the index cannot be read, prints why and returns None. This function blocks.
    """
    known: set[str] = set()
    try:
        if not INDEX_ID.fullmatch(index_id):
            raise ValueError(f"the server names no valid index ({index_id!r})")
        for file in ("identifiers.json", "val_identifiers.json"):
            rows = json.loads(gcs.read_bytes(bucket, f"indexes/{index_id}/{file}"))
            if not isinstance(rows, dict):
                raise ValueError(f"{file} is not a JSON object")
            known.update(rows)
        return known
    except StorageError as error:
        reason = error.message
        if error.status == 404:
            reason += " If the index is in another bucket, name that with --bucket."
    except (ValueError, RecursionError) as error:
        reason = f"{printable(str(error))}."
    say(
        f"The dataset's index in gs://{printable(bucket)} cannot be read: {reason} Unknown images "
        "are therefore found only by comparing how many labels the server stores.",
    )
    return None


def split_unknown(labels: Labels, known: set[str]) -> tuple[Labels, list[str]]:
    """The labels and boxes of known images, and the other images, sorted."""
    wanted = {box.identifier for box in labels.boxes}
    wanted.update(*labels.groups.values())
    unknown = wanted - known
    if not unknown:
        return labels, []
    kept = {
        group: [image for image in images if image not in unknown]
        for group, images in labels.groups.items()
    }
    groups = {group: images for group, images in kept.items() if images}
    boxes = [box for box in labels.boxes if box.identifier not in unknown]
    return replace(labels, groups=groups, boxes=boxes), sorted(unknown)


def inversion(labels: Labels, kept: Labels, known: set[str] | None) -> str | None:
    """What is wrong with labels whose categories are images and whose images are none, if they are.

    `kept` are those labels that are of known images. `known` is None where these are not known:
    then names of image files tell.
    """
    categories = {category for category, _ in labels.groups}
    if not categories or any(map(is_image_name, labels.paths.values())):
        return None
    if known is None:
        is_inverted = all(map(is_image_name, categories))
    else:
        is_inverted = not kept.groups and not kept.boxes
        is_inverted &= all({name, identifier(name)} & known for name in categories)
    if not is_inverted:
        return None
    (category, _), (image, *_) = next(iter(labels.groups.items()))
    return inverted(labels.paths[image], category)


def image_sizes(bucket: str, index_id: str) -> dict[str, tuple[int, int]]:
    """Width and height by identifier, from the manifest of the index; {} if there is none.

    This function blocks.
    """
    import pyarrow
    from pyarrow import parquet

    columns = ["identifier", "width", "height"]
    try:
        data = gcs.read_bytes(bucket, f"indexes/{index_id}/manifest.parquet")
        table = parquet.read_table(io.BytesIO(data), columns=columns)
    except (StorageError, pyarrow.ArrowException, OSError):
        return {}
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return {image: (width, height) for image, width, height in rows if width and height}


def check_boxes(boxes: list[Box], sizes: dict[str, tuple[int, int]]) -> list[str]:
    """A sentence for each box that is not inside its image, as far as the sizes are known."""
    return [
        f"The box {box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g} of {printable(box.category)!r} on "
        f"{printable(box.identifier)} is not inside the image of {width} x {height} pixels."
        for box in boxes
        for width, height in [sizes.get(box.identifier, (math.inf, math.inf))]
        if box.x2 >= width + ROUNDING or box.y2 >= height + ROUNDING
    ]


def make_requests(labels: Labels, user: str, shared: bool = False) -> list[LabelRequest]:
    """All labels, then all boxes, in requests of bounded size and in a fixed order.

    Args:
        shared: whether the server takes labels of several categories in one request, and is known
            to have all images. Small groups then share requests.
    """
    longer = Generation.B  # by some bytes; so the requests are the same for both generations
    requests: list[LabelRequest] = []
    for group, images in labels.groups.items():
        empty = len(longer.body("", LabelRequest({group: []}, []), user))
        parts = chunk(images, empty, lambda image: len(json_string(image)))
        requests += [LabelRequest({group: part}, []) for part in parts]
    longest_name = "x" * 50  # of a dataset
    empty = len(longer.body(longest_name, LabelRequest({}, []), user))
    if shared:
        requests = _share_small(requests, empty)
    boxes = chunk(labels.boxes, empty, lambda box: len(box_fields(box)))
    return [*requests, *(LabelRequest({}, part) for part in boxes)]


def _share_small(requests: list[LabelRequest], empty_body_bytes: int) -> list[LabelRequest]:
    """The requests with shared ones for the small ones, if that saves many.

    A request is small if at least two such fit into one.
    """
    large: list[LabelRequest] = []
    small: list[tuple[Group, str]] = []
    for request in requests:
        ((group, images),) = request.labels.items()
        size = len(images) * _label_bytes((group, ""))
        size += sum(len(json_string(image)) for image in images)
        if size <= (MAX_BODY_BYTES - empty_body_bytes) // 2:
            small += [(group, image) for image in images]
        else:
            large.append(request)
    shared = []
    for part in chunk(small, empty_body_bytes, _label_bytes):
        groups: defaultdict[Group, list[str]] = defaultdict(list)
        for group, image in part:
            groups[group].append(image)
        shared.append(LabelRequest(groups, []))
    saved = len(requests) - len(large) - len(shared)
    return [*large, *shared] if saved >= MIN_SAVED_REQUESTS else requests


def _label_bytes(label: tuple[Group, str]) -> int:
    group, image = label
    return len(label_fields(image, group)) + len("{}")


def chunk(
    items: Iterable[T], empty_body_bytes: int, encoded_bytes: Callable[[T], int]
) -> Iterator[list[T]]:
    """The items, in order, in lists of up to MAX_LABELS whose request bodies are small enough.

    Only a single item that is too long makes a body longer than MAX_BODY_BYTES.

    Args:
        items: what goes into a JSON list of the body.
        empty_body_bytes: size of the encoded body without items.
        encoded_bytes: gives the size of one encoded item.
    """
    room = left = MAX_BODY_BYTES - empty_body_bytes
    part: list[T] = []
    for item in items:
        size = encoded_bytes(item) + 1  # and the comma
        if part and (size > left or len(part) == MAX_LABELS):
            yield part
            part, left = [], room
        part.append(item)
        left -= size
    if part:
        yield part


def show_notes(notes: Sequence[str]) -> None:
    """Print the first notes on standard error."""
    if notes:
        say(f"Note:\n{first_lines(notes)}")


def notes_on_names(categories: Iterable[str]) -> list[str]:
    """Sentences about categories of a file that are probably misspelt."""
    notes = []
    for same in _alike(categories).values():
        notes += [
            f"{printable(one)!r} and {printable(other)!r} are two categories."
            for one, other in itertools.pairwise(same)
        ]
        notes += [
            f"The category {printable(category)!r} begins or ends with white space."
            for category in same
            if category != category.strip()
        ]
    return notes


def notes_on_categories(categories: Iterable[str], on_server: set[str]) -> list[str]:
    """Sentences about categories of a file that are probably others which the server has."""
    alike = _alike(on_server)
    return [
        f"{printable(category)!r} is not the category {printable(other)!r}, which the server has."
        for key, same in _alike(set(categories) - on_server).items()
        for category in same
        for other in alike.get(key, [])
    ]


def similar_image(unknown: Iterable[str], known: set[str]) -> str | None:
    """A sentence if the dataset has one of these images but for the case of letters."""
    wanted = {image.casefold(): image for image in unknown}
    for image in known:
        if (other := wanted.get(image.casefold())) is not None:
            return (
                f"The dataset has {printable(image)}, and the file {printable(other)}: the case "
                "of letters counts."
            )
    return None


def _alike(texts: Iterable[str]) -> dict[str, list[str]]:
    """The texts in lists of those that differ in case and white space only."""
    alike: dict[str, list[str]] = {}
    for text in sorted(set(texts)):
        alike.setdefault(" ".join(text.casefold().split()), []).append(text)
    return alike
