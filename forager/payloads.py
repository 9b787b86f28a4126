"""The bodies of the requests that store data on a Forager server, as all-ASCII JSON."""

import json
from collections.abc import Sequence
from typing import NamedTuple

Group = tuple[str, str]  # category, mode
ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each call


class Label(NamedTuple):
    """A label of a whole image."""

    identifier: str
    category: str
    mode: str


class Box(NamedTuple):
    """A box on an image, in pixels of the full-size image."""

    identifier: str
    category: str
    mode: str
    x1: float
    y1: float
    x2: float
    y2: float


def create_body(name: str, train_path: str, val_path: str, index_id: str) -> bytes:
    """The body that registers a dataset."""
    return _encoded(
        {
            "dataset": name,
            "train_path": train_path,
            "val_path": val_path,
            "index_id": index_id,
        }
    )


def label_body(
    generation: str, identifiers: list[str], user: str, category: str, mode: str
) -> bytes:
    """The body that stores `category` with `mode` for these images.

    The generations name the mode differently. B accepts the body of A, but stores a wrong mode.
    """
    fields = (
        {"value": mode, "mode": "ingest"}
        if generation == "A"
        else {"mode": mode, "created_by": "ingest"}
    )
    return _encoded({"identifiers": identifiers, "user": user, "category": category, **fields})


def multi_body(name: str, annotations: Sequence[Label | Box], user: str) -> bytes:
    """The body that stores labels or boxes of any categories in the dataset `name`, on B."""
    start = _encoded({"dataset": name, "user": user, "created_by": "ingest"})
    fields = b",".join(map(annotation_fields, annotations))
    return start[:-1] + b',"annotations":[' + fields + b"]}"


def annotation_fields(annotation: Label | Box) -> bytes:
    """One element of `annotations` in that body."""
    fields: dict[str, object] = annotation._asdict()
    return _encoded({**fields, "is_box": True} if isinstance(annotation, Box) else fields)


def _encoded(payload: dict[str, object]) -> bytes:
    return ENCODER.encode(payload).encode("ascii")
