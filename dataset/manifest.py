"""The manifest of an index: a Parquet file with one row per image, in row order.

With it, the arrays can be used without Forager: it names the object of each row, and tells how its
vectors were computed.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from common.files import written_whole
from common.names import identifier
from common.precision import Precision, least_exact
from common.program import program_digest
from dataset.listing import Split
from dataset.quality import Quality
from dataset.state import Found, State

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "manifest.parquet"
ROWS_PER_GROUP = 100_000
BATCH_ROWS = 10_000  # that are read at once
PACKAGES = ("torch", "numpy", "Pillow")  # the libraries that compute
IMAGENET_CLASSES = 1000
SPLITS = {split.short: split for split in Split}
FOUND = ("object", "size", "crc32c", "imagenet_class", "width", "height", "vectors_crc32c")
MOST = float(np.finfo(np.float32).max)  # which is less than infinity
RANGES = {  # of the values that are not null
    "size": (0, 2**63 - 1),
    "generation": (0, 2**63 - 1),
    "width": (1, 2**31 - 1),
    "height": (1, 2**31 - 1),
    "imagenet_class": (0, IMAGENET_CLASSES - 1),
    **dict.fromkeys(Quality._fields, (0, MOST)),
    "brightness": (0, 255),
}


def schema(metadata: dict[str, str]) -> pa.Schema:
    """The columns of a manifest, with metadata of the whole file."""
    import pyarrow as pa

    return pa.schema(
        [
            ("object", pa.string()),  # its name in the image bucket
            ("identifier", pa.string()),
            ("split", pa.string()),  # train or val
            ("size", pa.int64()),  # bytes of the object
            ("generation", pa.int64()),
            ("crc32c", pa.uint32()),  # of the object
            ("width", pa.int32()),  # pixels; null if it could not be decoded
            ("height", pa.int32()),
            ("imagenet_class", pa.int32()),  # null if it failed
            ("failure", pa.string()),  # why the row holds zeros; null if it was embedded
            ("vectors_crc32c", pa.uint32()),  # of the row's vectors, in the order of EMBEDDINGS
            # Null if it failed, or was reused from an index that lacks them: see quality.py.
            *((name, pa.float32()) for name in Quality._fields),
            ("row_crc32c", pa.uint32()),  # of the other columns: see row_checksums
        ],
        metadata={"forager": json.dumps(metadata)},
    )


def manifest_path(directory: Path) -> Path:
    """The manifest in a work directory."""
    return directory / "index" / NAME


def write_manifest(state: State) -> None:
    """Write the manifest of a state whose rows are all done or failed.

    Memory does not grow with the number of rows.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = manifest_path(state.directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = schema(_metadata(state))
    with (
        written_whole(path) as temporary,
        parquet.ParquetWriter(
            temporary, columns, compression="zstd", write_page_checksum=True
        ) as writer,
    ):
        found = state.manifest_rows()
        while rows := list(itertools.islice(found, ROWS_PER_GROUP)):
            values = dict(zip(columns.names[:-1], zip(*rows, strict=True), strict=True))
            values["split"] = tuple(Split(number).short for number in values["split"])
            arrays = [pa.array(values[field.name], field.type) for field in list(columns)[:-1]]
            arrays.append(pa.array(row_checksums(arrays), pa.uint32()))
            writer.write_table(pa.Table.from_arrays(arrays, schema=columns))


def _metadata(state: State) -> dict[str, str]:
    """How the vectors were computed, and of what."""
    recorded = ("dataset", "train_path", "val_path", "index_id", "backend")
    digests = {f"{name}_sha256": name for name in ("resnet_weights", "clip_weights")}
    return {
        **{name: state.option(name) or "" for name in recorded},
        **{name: state.option(option) or "" for name, option in digests.items()},
        "precision": precision_of_rows(state) or "",
        **{package: version(package) for package in PACKAGES},
        "program": program_digest(),
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def precision_of_rows(state: State) -> Precision | None:
    """The least exact precision in which rows were computed, here or where they came from."""
    found = [state.option(name) for name in ("precision", "reused_precision")]
    known = [Precision(name) for name in found if name]
    return least_exact(known) if known else None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a manifest.

    Raises:
        ValueError: the file is no manifest.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        found = parquet.read_schema(path).metadata or {}
        metadata = json.loads(found[b"forager"])
        return {str(name): str(value) for name, value in metadata.items()}
    except (
        *(pa.ArrowException, OSError, KeyError, ValueError, AttributeError, TypeError),
        RecursionError,
    ) as error:
        raise ValueError("is no manifest of an index") from error


def row_checksums(columns: Sequence[pa.Array]) -> list[int]:
    """The crc32c of each row: of the bytes of its values, with a zero byte between two of them.

    A number has those of its Arrow type, little-endian; a text is UTF-8; null has none.
    """
    import pyarrow as pa
    from pyarrow import compute

    values = [
        column.cast(pa.binary())
        if pa.types.is_string(column.type)
        else column.view(pa.binary(column.type.byte_width)).cast(pa.binary())
        for column in columns
    ]
    rows = compute.binary_join_element_wise(
        *values, b"\0", null_handling="replace", null_replacement=b""
    )
    return [google_crc32c.value(row) for row in rows.to_pylist()]


def read_images(path: Path) -> Iterator[Found]:
    """The images of a manifest, in row order; every value is checked before it is believed.

    One of an earlier version has no quality and no checksums of its rows.

    Raises:
        ValueError: it is damaged, or is no manifest as `write_manifest` makes it.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = list(schema({}))
    earlier = columns[: -len(Quality._fields) - 1]
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if list(file.schema_arrow) not in (columns, earlier):
                raise ValueError("has other columns than the manifest of an index")
            last, first = (-1, ""), 0
            for batch in file.iter_batches(BATCH_ROWS):
                places = [last, *_places(batch)]
                in_order = [a < b for a, b in itertools.pairwise(places)]
                if (row := _first_false(_are_sound(batch, places[1:]) & in_order)) is not None:
                    raise ValueError(f"has values in row {first + row:,} that no ingest writes")
                if (row := _first_false(_match_checksums(batch))) is not None:
                    raise ValueError(
                        f"has a row, {first + row:,}, that its checksum does not match"
                    )
                yield from _found(batch, first)
                last, first = places[-1], first + len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError("is damaged") from error


def _first_false(rows: np.ndarray) -> int | None:
    return None if rows.all() else int(rows.argmin())


def _places(batch: pa.RecordBatch) -> list[tuple[int, str]]:
    """The split and the object of each image, by which rows are ordered."""
    splits, objects = (batch[name].fill_null("").to_pylist() for name in ("split", "object"))
    return [(SPLITS.get(split, -1), name) for split, name in zip(splits, objects, strict=True)]


def _are_sound(batch: pa.RecordBatch, places: list[tuple[int, str]]) -> np.ndarray:
    """bool (rows,): whether all values of an image are such as an ingest writes."""
    has = {
        name: batch[name].is_valid().to_numpy(zero_copy_only=False) for name in batch.schema.names
    }
    failed = has["failure"]
    sound = has["size"] & has["generation"] & has["crc32c"] & (has["imagenet_class"] != failed)
    sound &= (has["width"] & has["height"]) | failed
    for name in has.keys() & set(Quality._fields):
        sound &= (has[name] == has["brightness"]) & ~(has[name] & failed)
    for name in has.keys() & RANGES.keys():
        least, most = RANGES[name]
        numbers = batch[name].fill_null(least).to_numpy()
        sound &= (least <= numbers) & (numbers <= most)
    names = zip(places, batch["identifier"].to_pylist(), strict=True)
    return sound & [
        split >= 0 and name != "" and known == identifier(name) for (split, name), known in names
    ]


def _match_checksums(batch: pa.RecordBatch) -> np.ndarray:
    """bool (rows,): whether a row has its checksum, in a manifest that has them."""
    *columns, checksums = batch.columns
    if "row_crc32c" not in batch.schema.names:
        return np.ones(len(batch), bool)
    return checksums.is_valid().to_numpy(zero_copy_only=False) & np.equal(
        checksums.fill_null(0), row_checksums(columns)
    )


def _found(batch: pa.RecordBatch, first: int) -> Iterator[Found]:
    """The images of a batch; its first row has this number."""
    known = [batch[name].to_pylist() for name in FOUND]
    quality: Iterator[Quality | None] = itertools.repeat(None)
    if "row_crc32c" in batch.schema.names:
        quality = map(Quality.known, *(batch[name].to_pylist() for name in Quality._fields))
    failed = batch["failure"].is_valid().to_pylist()
    return map(Found, itertools.count(first), *known, quality, itertools.repeat(None), failed)


def row_count(path: Path) -> int:
    """The number of rows of a manifest whose metadata can be read."""
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)
