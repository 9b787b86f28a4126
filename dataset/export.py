"""Vectors with their manifest as one Parquet file: python -m dataset.export DIR --to FILE.

A name that ends in .csv gets the manifest alone, as CSV.
"""

from __future__ import annotations

from common.guard import guard

if __name__ == "__main__":
    guard()

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from common.errors import IngestError
from common.files import written_whole
from common.options import CONTEXT_SETTINGS, Command, LocalPath
from common.terminal import printable
from dataset.arrays import DIMENSIONS, DTYPE, array_path, arrays_complete
from dataset.manifest import ROWS_PER_GROUP, manifest_path, read_metadata

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

CSV, PARQUET = ".csv", ".parquet"
ROWS_PER_WRITE = 10_000  # 140 MB with all vectors


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument(
    "directory",
    metavar="DIR",
    type=LocalPath(file_okay=False),
    help="The work directory of a finished ingest.",
)
@click.option(
    "--to",
    "path",
    required=True,
    metavar="FILE",
    type=LocalPath(dir_okay=False),
    help="The Parquet file to write, or a .csv file: that gets the manifest without vectors.",
)
@click.option(
    "--embedding",
    "names",
    multiple=True,
    type=click.Choice(list(DIMENSIONS)),
    help="An embedding to include; give it several times for several.  [default: all]",
)
def main(directory: Path, path: Path, names: tuple[str, ...]) -> None:
    """Write the manifest and the vectors of the work directory DIR as one file.

    \b
    Example:
      python -m dataset.export birds --to birds.parquet --embedding clip

    Each embedding becomes a column of fixed-size lists of float32, which pandas, DuckDB, Lance and
    Embedding Atlas read.
    """
    suffix = path.suffix.lower()
    if suffix not in (CSV, PARQUET):
        raise click.UsageError(f"--to {printable(str(path))} must end in {PARQUET} or {CSV}.")
    if suffix == CSV and names:
        raise click.UsageError(
            f"{printable(str(path))} would be CSV, which has no vectors: leave out --embedding, or "
            "write a .parquet file."
        )
    rows = export(directory, path, () if suffix == CSV else names or tuple(DIMENSIONS))
    click.echo(f"Wrote {rows:,} rows to {path}.", err=True)


def export(directory: Path, path: Path, names: tuple[str, ...]) -> int:
    """Write the file, Parquet in row groups, or CSV without vectors; returns the number of rows.

    Raises:
        IngestError: the work directory has no finished index, or the file cannot be
            written.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    source = manifest_path(directory)
    try:
        read_metadata(source)
        manifest = parquet.ParquetFile(source, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise IngestError(
            f"{directory} has no readable index/manifest.parquet: name the work directory of a "
            "finished ingest."
        ) from error
    count = manifest.metadata.num_rows
    if not arrays_complete(directory, count):
        raise IngestError(
            f"The arrays in {directory} do not have the {count:,} rows of the manifest: run the "
            "ingest again to finish it."
        )
    vectors = {name: pa.list_(pa.float32(), DIMENSIONS[name]) for name in names}
    columns = manifest.schema_arrow
    for name, kind in vectors.items():
        columns = columns.append(pa.field(name, kind))
    arrays = {
        name: np.memmap(array_path(directory, name), DTYPE, "r", shape=(count, DIMENSIONS[name]))
        for name in names
    }
    first = 0
    if path.suffix.lower() == CSV:
        open_writer, options = csv.CSVWriter, {}
    else:
        open_writer = functools.partial(parquet.ParquetWriter, compression="zstd")
        options = {"row_group_size": ROWS_PER_GROUP}
    with _write_errors(path), written_whole(path) as new, open_writer(new, columns) as writer:
        for batch in _batches(manifest, source):
            after = first + batch.num_rows
            lists = [
                pa.FixedSizeListArray.from_arrays(pa.array(rows[first:after].ravel()), width)
                for name, rows in arrays.items()
                for width in [DIMENSIONS[name]]
            ]
            full = pa.RecordBatch.from_arrays([*batch.columns, *lists], schema=columns)
            writer.write_batch(full, **options)
            first = after
    return count


def _batches(manifest: parquet.ParquetFile, path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a manifest. Raises IngestError if they cannot be read."""
    from pyarrow import ArrowException

    try:
        yield from manifest.iter_batches(ROWS_PER_WRITE)
    except (ArrowException, OSError) as error:
        raise IngestError(
            f"{path} is damaged: run the ingest again, or take the manifest from the index bucket."
        ) from error


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Raise what keeps a file from being written as IngestError."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise IngestError(
            f"{printable(str(path))} cannot be written ({reason}): name another file with --to."
        ) from error


if __name__ == "__main__":
    main.run("python -m dataset.export")
