"""The command that adds columns of one's own to a dataset of the local Forager.

On the page, numbers and dates become ranges and texts become filters. A CSV export has all of them.
"""

import asyncio
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.names import identifier
from common.options import CONTEXT_SETTINGS, Command
from common.terminal import count, first_lines, printable
from local_forager.commands.column_files import ColumnFile, read_columns_file
from local_forager.commands.opening import local_dataset, open_dataset
from local_forager.commands.options import bucket_option, data_dir_option
from local_forager.export import CSV_HEADER
from local_forager.indexes.fields import ABOUT
from local_forager.indexes.own_columns import (
    MAX_TEXTS,
    OwnColumns,
    columns_path,
    read_columns,
    write_columns,
)
from local_forager.page import ranges, rows
from local_forager.types import PageError

TAKEN = {*CSV_HEADER, *ABOUT, *ranges.SORTS, *rows.SORTS}  # no names for columns of one's own
BUCKET = r"^gs://[^/]*/"  # before an object name
NAMES = {  # what an image can be named by, in the order in which it is looked for
    "object": lambda name: name,
    "file name": lambda name: name.rpartition("/")[2],
    "identifier": identifier,
}


def rows_of_keys(keys: Any, names: list[str]) -> np.ndarray:
    """int64: the row of the image that each key names, -1 where there is none.

    keys: a pyarrow.ChunkedArray of texts. Raises PageError if a key names several images, or
    several keys the same one.
    """
    import pyarrow as pa
    from pyarrow import compute

    keys = compute.replace_substring_regex(keys, BUCKET, "").combine_chunks()
    found = np.full(len(keys), -1, np.int64)
    for what, name_of in NAMES.items():
        left = np.flatnonzero(found < 0)
        if not len(left):
            break
        known = _text_array([name_of(name) for name in names]).dictionary_encode()
        codes = known.indices.to_numpy()
        first = np.full(len(known.dictionary), -1, np.int64)
        first[codes[::-1]] = np.arange(len(names))[::-1]
        places = compute.index_in(keys.take(pa.array(left)), value_set=known.dictionary)
        places = places.fill_null(-1).to_numpy(zero_copy_only=False)
        matched, places = left[places >= 0], places[places >= 0]
        several = np.bincount(codes, minlength=len(first))[places] > 1
        if several.any():
            key = printable(keys[int(matched[several][0])].as_py())
            raise PageError(
                400,
                f"{key} is the {what} of several images{_more(int(several.sum()))}: name images by "
                "object. Nothing is changed.",
            )
        found[matched] = first[places]
    _refuse_repeated(keys, found, names)
    return found


def _text_array(texts: list[str]) -> Any:
    """A pyarrow.StringArray; what UTF-8 cannot hold, and no file has, becomes question marks."""
    import pyarrow as pa

    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        return pa.array([text.encode(errors="replace").decode() for text in texts], pa.string())


def _more(number: int) -> str:
    return f" (and {number - 1:,} more such rows)" if number > 1 else ""


def _refuse_repeated(keys: Any, found: np.ndarray, names: list[str]) -> None:
    """PageError if two keys name the same image."""
    matched = np.flatnonzero(found >= 0)
    rows, firsts, repeats = np.unique(found[matched], return_index=True, return_counts=True)
    if (repeats == 1).all():
        return
    row = found[matched[firsts[repeats > 1].min()]]
    one, other = (printable(keys[int(place)].as_py()) for place in np.flatnonzero(found == row)[:2])
    named = f"{one} and {other}" if one != other else f"{one}, twice"
    raise PageError(
        400,
        f"Two rows are of image {printable(names[row])}: {named}"
        f"{_more(len(matched) - len(rows))}. Keep one row per image. Nothing is changed.",
    )


def in_row_order(file: ColumnFile, found: np.ndarray, images: int) -> Any:
    """A pyarrow.Table with a row per image of the index, null where the file does not have it."""
    import pyarrow as pa

    sources = np.full(images, -1, np.int64)
    matched = np.flatnonzero(found >= 0)
    sources[found[matched]] = matched
    return file.table.take(pa.array(sources, mask=sources < 0))


def described(columns: OwnColumns) -> list[str]:
    """What became of each column, a line each."""
    lines = []
    for name in columns.names:
        if name in columns.fields:
            what = columns.fields[name].kind.value.replace("whole", "number")
        elif name not in columns.texts or not columns.table[name].null_count < len(columns.table):
            what = "no values: for the CSV export only"
        elif values := columns.texts[name].values:
            what = count(len(values), "text")
        else:
            what = f"more than {MAX_TEXTS} texts: for the CSV export only"
        lines.append(f"{printable(name)}: {what}")
    return lines


@click.command("columns", cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--key", metavar="COLUMN", help="Column that names the images.  [default: the first]")
@click.option("--remove", is_flag=True, help="Take the columns of the dataset away.")
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
        click.echo(f"No image is named by {count(len(unmatched), 'row')}:", err=True)
        shown = [printable(key or "") for key in keys]
        click.echo(first_lines(shown + [""] * (len(unmatched) - len(shown))), err=True)
    click.echo(first_lines(described(columns)), err=True)
    click.echo(
        f"Added {count(len(columns.names), 'column')} for {len(found) - len(unmatched):,} of "
        f"{count(len(index.names), 'image')}. The page shows them now.",
        err=True,
    )
