"""The bodies of the requests that store data on a Forager server, as all-ASCII JSON."""

import json
from typing import NamedTuple


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


def box_body(name: str, boxes: list[Box], user: str) -> bytes:
    """The body that stores these boxes in the dataset `name`, on generation B."""
    start = _encoded({"dataset": name, "user": user, "created_by": "ingest"})
    return start[:-1] + b',"annotations":[' + b",".join(map(box_fields, boxes)) + b"]}"


def box_fields(box: Box) -> bytes:
    """One element of `annotations` in that body."""
    return _encoded({**box._asdict(), "is_box": True})


def _encoded(payload: dict[str, object]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode("ascii")
