"""Columns of one's own: what `python -m local_forager columns` keeps beside a dataset's images."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import written_whole
from local_forager.indexes.fields import Field, own_field

MAX_TEXTS = 50  # different ones in a column that is a filter
ROWS_AT_ONCE = 1_000  # that become text for an export


class TextColumn(NamedTuple):
    values: list[str]  # the commonest first; empty if there are more than MAX_TEXTS
    codes: np.ndarray  # int8 (n,), places in values; -1 for an image without a value


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnColumns:
    """Row i of each column belongs to row i of the index."""

    fields: dict[str, Field] = field(default_factory=dict)  # numbers and dates
    texts: dict[str, TextColumn] = field(default_factory=dict)
    table: Any = None  # pyarrow.Table of all columns in the order of their file; None without any
    version: int = 0  # changes with the file
    problem: str | None = None  # why the columns cannot be read, in one sentence

    @property
    def names(self) -> list[str]:
        return self.table.column_names if self.table else []

    def beside(self, rows: Iterable[int]) -> Iterator[tuple[int, Sequence[str]]]:
        """Each row with the values of its columns as text, "" where there is none."""
        left = iter(rows)
        while part := list(itertools.islice(left, ROWS_AT_ONCE)):
            columns = self.table.columns if self.table else []
            texts = [_as_text(column.take(part)) for column in columns]
            for place, row in enumerate(part):
                yield row, [column[place] for column in texts]

    def of_row(self, row: int) -> Iterator[tuple[str, str]]:
        """Name and value of each column that has one for this image."""
        ((_, texts),) = self.beside([row])
        for name, text in zip(self.names, texts, strict=True):
            if text:
                yield name, self.fields[name].text(row) if name in self.fields else text


NO_COLUMNS = OwnColumns()


def _as_text(column: Any) -> list[str]:
    import pyarrow as pa

    texts = ["" if value is None else str(value) for value in column.to_pylist()]
    is_date = pa.types.is_timestamp(column.type)
    return [text.removesuffix(" 00:00:00") for text in texts] if is_date else texts


def columns_path(data_dir: Path, dataset_id: int) -> Path:
    return data_dir / "columns" / f"{dataset_id}.parquet"


def write_columns(path: Path, table: Any, index_id: str) -> None:
    """Keep a pyarrow.Table whose rows are those of the index."""
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"forager": json.dumps({"index_id": index_id})}
    with written_whole(path) as partial:
        parquet.write_table(
            table.replace_schema_metadata(metadata), partial, write_page_checksum=True
        )


def columns_version(path: Path) -> int:
    """A number that changes with the file; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def read_columns(path: Path, index_id: str, rows: int | None) -> OwnColumns:
    """The columns of a dataset; none if the file is of another index, as of a deleted dataset."""
    import pyarrow as pa
    from pyarrow import parquet

    version = columns_version(path)
    if not version:
        return NO_COLUMNS
    try:
        table = parquet.read_table(path, page_checksum_verification=True).combine_chunks()
        metadata = json.loads((table.schema.metadata or {})[b"forager"])
        if metadata["index_id"] != index_id or rows not in (len(table), None):
            return OwnColumns(version=version)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        problem = "The columns of this dataset are damaged: run the columns command again."
        return OwnColumns(version=version, problem=problem)
    fields, texts = {}, {}
    for name, chunked in zip(table.column_names, table.columns, strict=True):
        column = chunked.combine_chunks()
        if pa.types.is_string(column.type):
            texts[name] = text_column(column)
        elif found := own_field(name, column):
            fields[name] = found
    return OwnColumns(fields=fields, texts=texts, table=table, version=version)


def text_column(column: Any) -> TextColumn:
    """The different texts of a column, a pyarrow.StringArray, if they are few enough to choose."""
    import pyarrow as pa
    from pyarrow import compute

    counts = Counter(column.drop_null().to_pylist())
    if len(counts) > MAX_TEXTS:
        return TextColumn([], np.zeros(0, np.int8))
    values = sorted(counts, key=lambda value: (-counts[value], value))
    codes = compute.index_in(column, pa.array(values, pa.string())).fill_null(-1)
    return TextColumn(values, codes.to_numpy().astype(np.int8))
