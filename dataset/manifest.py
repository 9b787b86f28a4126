"""The manifest of an index: a Parquet file with one row per image, in row order.

With it, the arrays can be used without Forager: it names the object of each row, and tells how its
vectors were computed.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import refuse_irregular, sync_directory
from common.program import ROOT, program_files
from dataset.rows import SPLIT_NAMES, State

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "manifest.parquet"
ROWS_PER_GROUP = 100_000
PACKAGES = ("torch", "numpy", "Pillow")  # the libraries that compute


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
    temporary = path.with_name(path.name + ".tmp")
    for used in (path, temporary):
        refuse_irregular(used)
    columns = schema(_metadata(state))
    with parquet.ParquetWriter(temporary, columns, compression="zstd") as writer:
        for rows in _groups(state.manifest_rows()):
            values = dict(zip(columns.names, zip(*rows, strict=True), strict=True))
            values["split"] = tuple(SPLIT_NAMES[number] for number in values["split"])
            arrays = [pa.array(values[field.name], field.type) for field in columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=columns))
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def _groups(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
        yield group


def _metadata(state: State) -> dict[str, str]:
    """How the vectors were computed, and of what."""
    recorded = ("dataset", "train_path", "val_path", "index_id", "backend", "precision")
    digests = {f"{name}_sha256": name for name in ("resnet_weights", "clip_weights")}
    return {
        **{name: state.option(name) or "" for name in recorded},
        **{name: state.option(option) or "" for name, option in digests.items()},
        **{package: version(package) for package in PACKAGES},
        "program": program_version(),
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def program_version() -> str:
    """The first digits of a SHA-256 over the files of this program that decide the numbers."""
    code = hashlib.sha256()
    for path in program_files():
        code.update(str(path).encode() + (ROOT / path).read_bytes())
    return code.hexdigest()[:12]


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
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no manifest of an index") from error
    return {str(name): str(value) for name, value in metadata.items()}
