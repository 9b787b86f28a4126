"""The command that adds columns of one's own to a dataset of the local Forager.

On the page, numbers and dates become ranges and texts become filters. A CSV export has all of them.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from common.options import CONTEXT_SETTINGS, Command, LocalPath, bucket_option, flag
from common.terminal import count, first_lines, printable
from local_forager.commands.opening import local_dataset, open_dataset
from local_forager.commands.options import data_dir_option
from local_forager.export import CSV_HEADER
from local_forager.indexes.fields import ABOUT
from local_forager.indexes.own_columns import (
    MAX_TEXTS,
    OwnColumns,
    columns_path,
    read_columns,
    write_columns,
)
from local_forager.page.rows import FIELD_SORTS, SORTS
from local_forager.types import PageError

TAKEN = {*CSV_HEADER, *ABOUT, *FIELD_SORTS, *SORTS}  # no names for columns of one's own


def described(columns: OwnColumns) -> Iterator[str]:
    """What became of each column, a line each."""
    for name in columns.names:
        if name in columns.fields:
            what = columns.fields[name].kind.value.replace("whole", "number")
        elif name not in columns.texts or not columns.table[name].null_count < len(columns.table):
            what = "no values: for the CSV export only"
        elif values := columns.texts[name].values:
            what = count(len(values), "text")
        else:
            what = f"more than {MAX_TEXTS} texts: for the CSV export only"
        yield f"{printable(name)}: {what}"


@click.command("columns", cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@click.argument("file", required=False, type=LocalPath(exists=True, dir_okay=False))
@click.option("--key", metavar="COLUMN", help="Column that names the images.  [default: the first]")
@flag("--remove", "Take the columns of the dataset away.")
@data_dir_option
@bucket_option
def add_columns(
    name: str, file: Path | None, key: str | None, remove: bool, data_dir: Path, bucket: str
) -> None:
    """Show columns of FILE, CSV or Parquet, beside the images of dataset NAME.

    They replace those of an earlier call. Images are named by object, file name or identifier.

    \b
    Example:
        python -m local_forager columns birds cameras.csv --key image
    """
    if (file is None) != remove:
        raise click.UsageError("Give either a file with columns, or --remove.")
    asyncio.run(change_columns(name, file, key, data_dir, bucket))


async def change_columns(
    name: str, file: Path | None, key: str | None, data_dir: Path, bucket: str
) -> None:
    """Replace the columns of a dataset by those of a file; None removes them."""
    from local_forager.commands.column_files import in_row_order, read_columns_file, rows_of_keys

    async with local_dataset(name, data_dir) as (_, dataset):
        path = columns_path(data_dir, dataset.id)
    if file is None:
        removed = read_columns(path, dataset.index_id, None).names
        path.unlink(missing_ok=True)
        click.echo(f"Removed {count(len(removed), 'column')}.", err=True)
        return
    columns_file = read_columns_file(file, key, TAKEN)
    opened = await open_dataset(name, data_dir, bucket)
    index, earlier = opened.index, opened.table.columns.names
    found = rows_of_keys(columns_file.keys, index.names)
    unmatched, where = np.flatnonzero(found < 0), click.format_filename(file)
    if len(unmatched) == len(found):
        example = printable(columns_file.keys[0].as_py() or "")
        raise PageError(
            400,
            f"No row of {where} is of an image of {printable(name)}: the first names {example!r}, "
            f"an image is {printable(index.names[0]) if index.names else ''!r}. --key chooses the "
            "column that names the images. Nothing is changed.",
        )
    write_columns(path, in_row_order(columns_file, found, len(index.names)), dataset.index_id)
    columns = read_columns(path, dataset.index_id, len(index.names))
    if earlier:
        click.echo(f"Replaced {count(len(earlier), 'earlier column')}.", err=True)
    if len(unmatched):
        keys = columns_file.keys.take(unmatched[:11]).to_pylist()
        verb = "names" if len(unmatched) == 1 else "name"
        click.echo(f"{count(len(unmatched), 'row')} {verb} no image:", err=True)
        shown = [printable(key or "") for key in keys]
        click.echo(first_lines(shown + [""] * (len(unmatched) - len(shown))), err=True)
    click.echo(f"Columns:\n{first_lines(list(described(columns)))}", err=True)
    added = f"{count(len(columns.names), 'column')} for {len(found) - len(unmatched):,}"
    images = count(len(index.names), "image")
    click.echo(f"Added {added} of {images}. A page that is open shows them.", err=True)
