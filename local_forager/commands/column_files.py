"""Reads a CSV or Parquet file with columns of one's own, and finds the image of each row.

It imports pyarrow, so it is imported where a command has a file to read.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pyarrow as pa
from pyarrow import compute, csv, parquet

from common.terminal import printable
from local_forager.indexes.index import images_named
from local_forager.types import PageError

MAX_COLUMNS = 100
MAX_NAME = 100  # characters of the name of a column
SEPARATORS = ",;\t"
PARQUET = b"PAR1"  # the first bytes of the file
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks, as of what Excel calls Unicode text
NOT_UTF_8 = "is not UTF-8 text: save it as CSV in UTF-8"
UNKNOWN = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-")  # among numbers and dates
ZERO_FIRST = r"^-?0\d"  # 007 is a name, not a number
YEARS_MS = (-62_135_596_800_000, 253_402_300_799_999)  # 1 to 9999, which Python can write
BUCKET = r"^gs://[^/]*/"  # before an object name


class ColumnFile(NamedTuple):
    keys: Any  # pyarrow.ChunkedArray of texts: what each row says which image it is of
    table: Any  # pyarrow.Table of the other columns: int64, float64, timestamp("ms") or string


def read_columns_file(path: Path, key: str | None, taken: set[str]) -> ColumnFile:
    """The columns of a file; the first one, or the one named `key`, names the images.

    taken: names that no column may have.

    Raises:
        PageError: with one sentence for the user.
    """
    where = click.format_filename(path)
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(PARQUET)) == PARQUET
        table = _read_parquet(path) if is_parquet else _read_csv(path)
        key = key or table.column_names[0]
        _check_names(table.column_names, key, taken)
        if len(table.column_names) == 1:
            raise ValueError(f"has no column besides {printable(key)}, which names the images")
        if not len(table):
            raise ValueError("has no rows")
        others = [name for name in table.column_names if name != key]
        read = _from_type if is_parquet else _from_text
        columns = {name: _column(read, name, table[name]) for name in others}
        return ColumnFile(_keys(key, table[key]), pa.table(columns))
    except ValueError as error:  # of pyarrow too
        reason = str(error).partition("\n")[0].rstrip(".")
        raise PageError(400, f"{where} {reason}. Nothing is changed.") from error
    except OSError as error:
        raise PageError(400, f"{where} cannot be read ({error.strerror or error}).") from error


def _read_parquet(path: Path) -> Any:
    try:
        with parquet.ParquetFile(path) as file:
            nested = [f.name for f in file.schema_arrow if pa.types.is_nested(f.type)]
            if nested:
                raise ValueError(f"has a nested column, {printable(nested[0])}: use plain values")
            return file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError("is a damaged Parquet file") from error


def _read_csv(path: Path) -> Any:
    """All cells as texts, so that one type fits a whole column, not its beginning."""
    with path.open("rb") as file:
        first = file.readline(1_000_000)
        second = file.read(1_000)
    if first.startswith(UTF_16):
        raise ValueError(NOT_UTF_8)
    if b"\0" in first + second:  # as in a picture
        raise ValueError("is neither a CSV nor a Parquet file")
    separator = max(SEPARATORS, key=lambda one: first.count(one.encode()))
    names = {f"f{place}": pa.string() for place in range(MAX_COLUMNS + 1)}
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(autogenerate_column_names=True),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=names, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise ValueError(NOT_UTF_8) from error
        reason = printable(str(error).removeprefix("CSV parse error: "))
        raise ValueError(f"is no CSV file ({reason})") from error
    if len(table.column_names) > MAX_COLUMNS:
        raise ValueError(f"has more than {MAX_COLUMNS} columns")
    return table.slice(1).rename_columns([column[0].as_py().strip() for column in table.columns])


def _check_names(names: list[str], key: str, taken: set[str]) -> None:
    if key not in names:
        known = printable(", ".join(names))
        raise ValueError(f"has no column {printable(key)}: its columns are {known}")
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"has more than {MAX_COLUMNS} columns")
    for place, name in enumerate(names, 1):
        if names.count(name) > 1:
            raise ValueError(f"has several columns named {printable(name)}")
        if name == key:
            continue
        if not name.strip() or len(name) > MAX_NAME or not name.isprintable() or name[0] == "-":
            raise ValueError(
                f"has a name for column {place} that no address can have: use 1 to {MAX_NAME} "
                "printable characters, not beginning with a dash"
            )
        if name in taken:
            raise ValueError(f"has a column {printable(name)}, as every image has: rename it")


def _keys(name: str, column: Any) -> Any:
    keys = _column(_from_type, name, column)
    if pa.types.is_floating(keys.type):
        what = f"has {keys.type} in column {printable(name)}"
        raise ValueError(f"{what}, where names of images should be")
    return keys.cast(pa.string())


def _column(read: Any, name: str, column: Any) -> Any:
    """A column as int64, float64, timestamp("ms") or string; what is not known is null."""
    try:
        found = read(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        what = f"has {column.type} in column {printable(name)}"
        raise ValueError(f"{what}: use numbers, dates or texts") from error
    if pa.types.is_floating(found.type):
        found = compute.if_else(compute.is_finite(found), found, None)
    if pa.types.is_timestamp(found.type):
        found = found.cast(pa.timestamp("ms"), safe=False)  # in UTC
        ends = compute.min_max(found.cast(pa.int64())).as_py()
        if ends["min"] is not None and not YEARS_MS[0] <= ends["min"] <= ends["max"] <= YEARS_MS[1]:
            raise ValueError(f"has dates beyond the years 1 to 9999 in column {printable(name)}")
    return found


def _from_text(column: Any) -> Any:
    """The first type that fits all texts of a column."""
    trimmed = compute.utf8_trim_whitespace(column)
    known = compute.if_else(compute.is_in(trimmed, pa.array(UNKNOWN)), None, trimmed)
    types = [pa.int64(), pa.float64(), pa.timestamp("ms"), pa.timestamp("ms", "UTC")]
    if compute.any(compute.match_substring_regex(known, ZERO_FIRST)).as_py():
        types = types[2:]
    for kind in types if known.null_count < len(known) else ():
        try:
            return known.cast(kind)
        except pa.ArrowInvalid:
            continue
    return compute.if_else(compute.equal(trimmed, ""), None, column)


def _from_type(column: Any) -> Any:
    """A column of a Parquet file. Whole numbers stay whole where pandas kept them as float."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("ms"), safe=False)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return column.cast(pa.float64(), safe=False)
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise pa.ArrowNotImplementedError(str(kind))
    texts = column.cast(pa.string())
    return compute.if_else(compute.equal(texts, ""), None, texts)


def rows_of_keys(keys: Any, names: list[str]) -> np.ndarray:
    """int64: the row of the image that each key names, -1 where there is none.

    keys: a pyarrow.ChunkedArray of texts. Raises PageError if a key names several images, or
    several keys the same one.
    """
    texts = compute.replace_substring_regex(keys, BUCKET, "").to_pylist()
    row_of: dict[str, int] = {}
    for what, named in images_named(texts, names):
        row_of |= named
        images = Counter(text for text, _ in named)
        if len(images) < len(named):
            several = [text for text in texts if images[text] > 1]
            raise PageError(
                400,
                f"{printable(several[0])} is the {what} of several images{_more(len(several))}: "
                "name images by object. Nothing is changed.",
            )
    found = np.array([row_of.get(text, -1) for text in texts], np.int64)
    matched = np.flatnonzero(found >= 0)
    rows, firsts, repeats = np.unique(found[matched], return_index=True, return_counts=True)
    if (repeats > 1).any():
        row = found[matched[firsts[repeats > 1].min()]]
        one, other = (printable(texts[place]) for place in np.flatnonzero(found == row)[:2])
        same = f"{one} and {other}" if one != other else f"{one}, twice"
        raise PageError(
            400,
            f"Two rows are of image {printable(names[row])}: {same}"
            f"{_more(len(matched) - len(rows))}. Keep one row per image. Nothing is changed.",
        )
    return found


def _more(number: int) -> str:
    return f" (and {number - 1:,} more such rows)" if number > 1 else ""


def in_row_order(file: ColumnFile, found: np.ndarray, images: int) -> Any:
    """A pyarrow.Table with a row per image of the index, null where the file does not have it."""
    sources = np.full(images, -1, np.int64)
    matched = np.flatnonzero(found >= 0)
    sources[found[matched]] = matched
    return file.table.take(pa.array(sources, mask=sources < 0))
