"""The Arrow tables that carry images to the embedders, and their embeddings to the driver.

A pack is a few images as one row of a table: its columns are lists. Pixels are read in place, in
Ray's object store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dataset.arrays import DIMENSIONS, ZEROS, Embedding
from dataset.state import Row
from engine.decode import Decoded, NotEmbedded
from engine.stages import StageTime
from gcs import ListedObject
from models.clip_crop import CLIP_SIDE

CLIP_SHAPE = (CLIP_SIDE, CLIP_SIDE, 3)
ROW = pa.struct(
    [
        ("row", pa.int64()),
        ("name", pa.large_string()),
        ("size", pa.int64()),
        ("reason", pa.large_string()),  # why it has no image, or null
        ("changed", pa.bool_()),  # the object is not the listed one any more
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("is_rotated", pa.bool_()),  # it carries an EXIF rotation
    ]
)
PACK = pa.schema(
    [
        ("rows", pa.list_(ROW)),
        ("pixels", pa.list_(pa.large_binary())),  # per row; null for a row with a reason
        ("clip_inputs", pa.list_(pa.large_binary())),  # per row; null where the device makes it
        ("times", pa.list_(pa.float64())),  # of fetch, decode, thumbnails: images and seconds busy
        ("requests", pa.list_(pa.int64())),  # empty
    ]
)
RESULTS = pa.schema(
    [
        ("row", pa.int64()),
        ("name", pa.large_string()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("is_rotated", pa.bool_()),
        ("reason", pa.large_string()),  # why it has no embedding, or null
        ("changed", pa.bool_()),  # the object is not the listed one any more
        ("imagenet_class", pa.int64()),
        ("times", pa.list_(pa.float64())),  # of STAGES: images and seconds busy; on the first line
        ("requests", pa.list_(pa.int64())),  # on the first line
        *((name, pa.list_(pa.float32(), dimension)) for name, dimension in DIMENSIONS.items()),
    ]
)


def packed(
    images: list[tuple[Row, Decoded | NotEmbedded]], times: list[StageTime], requests: list[int]
) -> pa.Table:
    """A pack: a table of one row with these images, and what the stages did for them."""
    rows, pixels, clip_inputs = [], [], []
    for row, prepared in images:
        described = {"row": row.row, "name": row.listed.name, "size": row.listed.size}
        image = clip_input = None
        if isinstance(prepared, Decoded):
            described["height"], described["width"] = prepared.pixels.shape[:2]
            described["is_rotated"] = prepared.is_rotated
            image = prepared.pixels.tobytes()
            if prepared.clip_input is not None:
                clip_input = prepared.clip_input.tobytes()
        else:
            described |= prepared._asdict()
        rows.append(described)
        pixels.append(image)
        clip_inputs.append(clip_input)
    numbers = [number for stage in times for number in (stage.images, stage.busy_s)]
    pack = {"rows": rows, "pixels": pixels, "clip_inputs": clip_inputs, "times": numbers}
    pack["requests"] = requests
    return pa.Table.from_pylist([pack], PACK)


def unpacked(pack: pa.Table) -> tuple[list[dict[str, Any]], list[Decoded | NotEmbedded]]:
    """The rows of a pack as ROW describes them, and their images or why they have none.

    The arrays of an image are views of the pack's memory.
    """
    rows = pack["rows"][0].as_py()
    images: list[Decoded | NotEmbedded] = []
    columns = pack["pixels"][0].values, pack["clip_inputs"][0].values
    for row, pixels, clip_input in zip(rows, *columns, strict=True):
        if row["reason"] is not None:
            images.append(NotEmbedded(row["reason"], bool(row["changed"])))
            continue
        image = _array(pixels, (row["height"], row["width"], 3))
        clip = _array(clip_input, CLIP_SHAPE) if clip_input.is_valid else None
        images.append(
            Decoded(pixels=image, clip_input=clip, thumbnail=None, is_rotated=row["is_rotated"])
        )
    return rows, images


def _array(binary: pa.Scalar, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(binary.as_buffer(), np.uint8).reshape(shape)


def results(
    rows: list[dict[str, Any]],
    embedded: Sequence[Embedding | NotEmbedded],
    times: list[float],
    requests: list[int],
) -> pa.Table:
    """A table of RESULTS: the embedding of each row, or why it has none."""
    nothing = Embedding(ZEROS, 0)
    failures = [outcome if isinstance(outcome, NotEmbedded) else None for outcome in embedded]
    embeddings = [outcome if isinstance(outcome, Embedding) else nothing for outcome in embedded]
    columns = [
        *([row[name] for row in rows] for name in RESULTS.names[:6]),  # as ROW has them
        [failure and failure.reason for failure in failures],
        [failure is not None and failure.changed for failure in failures],
        [embedding.imagenet_class for embedding in embeddings],
        *([numbers, *[None] * (len(rows) - 1)] for numbers in (times, requests)),
    ]
    vectors = zip(*(embedding.vectors for embedding in embeddings), strict=True)
    arrays = [
        pa.FixedSizeListArray.from_arrays(
            pa.array(np.concatenate(column, dtype=np.float32)), dimension
        )
        for column, dimension in zip(vectors, DIMENSIONS.values(), strict=True)
    ]
    kinds = list(RESULTS.types)
    plain = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=False)]
    return pa.table([*plain, *arrays], RESULTS)


class Result(NamedTuple):
    """What became of one row."""

    row: Row
    width: int | None  # pixels
    height: int | None
    is_rotated: bool
    outcome: Embedding | NotEmbedded


def read_results(table: pa.Table) -> Iterator[Result]:
    """The rows of `results`."""
    arrays = [
        np.concatenate([c.flatten().to_numpy() for c in table[name].chunks]).reshape(-1, dimension)
        for name, dimension in DIMENSIONS.items()
    ]
    columns = ("row", "name", "size", "imagenet_class", "reason", "changed")
    lines = zip(*(table[column].to_pylist() for column in columns), strict=True)
    described = ("width", "height", "is_rotated")
    images = zip(*(table[column].to_pylist() for column in described), strict=True)
    for i, (number, name, size, imagenet_class, reason, changed) in enumerate(lines):
        row = Row(number, ListedObject(name, size, 0, 0))
        embedding = Embedding([array[i] for array in arrays], imagenet_class)
        outcome = embedding if reason is None else NotEmbedded(reason, changed)
        width, height, is_rotated = next(images)
        yield Result(row, width, height, bool(is_rotated), outcome)
