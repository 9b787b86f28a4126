"""Which images the dataset has, according to its index in the bucket."""

import itertools
import json
import math
import re
from typing import NamedTuple

import gcs
from common.errors import StorageError
from common.names import identifier
from common.terminal import printable, say
from forager.payloads import Box
from labels.file.collector import Labels
from labels.file.describe import inverted

INDEX_ID = re.compile(r"[-\w.]{1,300}")
ROUNDING = 1.0  # pixel by which coordinates of a box inside its image may exceed it


class KnownImages(NamedTuple):
    """The images of a dataset: rows by identifier."""

    train: dict[str, int]
    val: dict[str, int]

    def lacks(self, images: set[str]) -> set[str]:
        """Those of the images that the dataset does not have."""
        return images - self.train.keys() - self.val.keys()


def known_images(bucket: str, index_id: str) -> KnownImages | None:
    """The dataset's images.

    If the index cannot be read, prints why and returns None. This function blocks.
    """
    splits: list[dict[str, int]] = []
    try:
        if not INDEX_ID.fullmatch(index_id):
            raise ValueError(f"the server names no valid index ({index_id!r})")
        for file in ("identifiers.json", "val_identifiers.json"):
            rows = json.loads(gcs.read_bytes(bucket, f"indexes/{index_id}/{file}"))
            if not isinstance(rows, dict):
                raise ValueError(f"{file} is not a JSON object")
            splits.append(rows)
    except StorageError as error:
        reason = error.message
    except (ValueError, RecursionError) as error:
        reason = f"{printable(str(error))}."
    else:
        return KnownImages(*splits)
    say(
        f"The dataset's index in gs://{printable(bucket)} cannot be read: {reason} Unknown images "
        "are therefore found only by comparing how many labels the server stores.",
    )
    return None


def image_sizes(bucket: str, index_id: str) -> dict[str, tuple[int, int]]:
    """Width and height by identifier, from the manifest of the index; {} if there is none.

    This function blocks.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return {}
    try:
        data = gcs.read_bytes(bucket, f"indexes/{index_id}/manifest.parquet")
        columns = ["identifier", "width", "height"]
        table = parquet.read_table(pyarrow.BufferReader(data), columns=columns)
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


def split_unknown(labels: Labels, known: KnownImages) -> tuple[Labels, list[str]]:
    """The labels and boxes of known images, and the other images, sorted."""
    wanted = {box.identifier for box in labels.boxes}
    wanted.update(itertools.chain.from_iterable(labels.groups.values()))
    unknown = known.lacks(wanted)
    if not unknown:
        return labels, []
    kept = {
        group: [image for image in images if image not in unknown]
        for group, images in labels.groups.items()
    }
    groups = {group: images for group, images in kept.items() if images}
    boxes = [box for box in labels.boxes if box.identifier not in unknown]
    return labels._replace(groups=groups, boxes=boxes), sorted(unknown)


def inversion(labels: Labels, kept: Labels, known: KnownImages) -> str:
    """What is wrong with labels whose categories are images of the dataset, or "".

    `kept` are those labels that are of known images.
    """
    categories = {category for category, _ in labels.groups}
    if kept.groups or kept.boxes or not categories:
        return ""
    if any(known.lacks({name}) and known.lacks({identifier(name)}) for name in categories):
        return ""
    (category, _), (image, *_) = next(iter(labels.groups.items()))
    return inverted(labels.paths[image], category)
