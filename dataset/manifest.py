"""The manifest of an index: a Parquet file with one row per image, in row order.

With it, the arrays can be used without Forager: it names the object of each row, and tells how its
vectors were computed.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import written_whole
from common.names import identifier
from common.precision import Precision, least_exact
from common.program import program_digest
from dataset.listing import Split
from dataset.state import Found, State

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "manifest.parquet"
ROWS_PER_GROUP = 100_000
BATCH_ROWS = 10_000  # that are read at once
PACKAGES = ("torch", "numpy", "Pillow")  # the libraries that compute
IMAGENET_CLASSES = 1000
SPLITS = [split.short for split in Split]
FOUND = ("object", "size", "crc32c", "imagenet_class", "width", "height", "vectors_crc32c")


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
        for rows in _groups(state.manifest_rows()):
            values = dict(zip(columns.names, zip(*rows, strict=True), strict=True))
            values["split"] = tuple(Split(number).short for number in values["split"])
            arrays = [pa.array(values[field.name], field.type) for field in columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=columns))


def _groups(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
        yield group


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


def read_images(path: Path) -> Iterator[Found]:
    """The images of a manifest, in row order; every value is checked before it is believed.

    Raises:
        ValueError: it is damaged, or is no manifest as `write_manifest` makes it.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = schema({}).remove_metadata()
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.remove_metadata().equals(columns):
                raise ValueError("has other columns than the manifest of an index")
            last, row = (-1, ""), 0
            for batch in file.iter_batches(BATCH_ROWS):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    known = dict(zip(columns.names, values, strict=True))
                    place = _place(known)
                    if place is None or place <= last or not _is_sound(known):
                        raise ValueError(f"has values in row {row:,} that no ingest writes")
                    yield Found(
                        row=row,
                        failed=known["failure"] is not None,
                        **{name: known[name] for name in FOUND},
                    )
                    last, row = place, row + 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError("is damaged") from error


def _place(known: dict[str, Any]) -> tuple[int, str] | None:
    """The split and the object of an image, by which rows are ordered; None if one is missing."""
    if known["split"] not in SPLITS or not known["object"]:
        return None
    return SPLITS.index(known["split"]), known["object"]


def _is_sound(known: dict[str, Any]) -> bool:
    """Whether the values of an image are such as an ingest writes."""
    sides = known["width"], known["height"]
    counted = known["size"], known["generation"]
    imagenet_class = known["imagenet_class"]
    if known["failure"] is None:
        described = imagenet_class is not None and 0 <= imagenet_class < IMAGENET_CLASSES
        described = described and all(side is not None and side > 0 for side in sides)
    else:
        described = imagenet_class is None and all(side is None or side > 0 for side in sides)
    return (
        described
        and known["identifier"] == identifier(known["object"])
        and known["crc32c"] is not None
        and all(number is not None and number >= 0 for number in counted)
    )


def row_count(path: Path) -> int:
    """The number of rows of a manifest whose metadata can be read."""
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)
