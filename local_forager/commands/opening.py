"""Opens what `export` reads, without a server: a dataset, a work directory, or an index by its id.

A dataset of the local Forager has labels. A work directory and an index in the bucket have none.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from common.terminal import first_of, printable, say
from dataset.database import options_on_disk
from dataset.work_directory import LOCK, STATE
from local_forager.indexes.copies import IndexCopies
from local_forager.indexes.index import NO_LABELS, Index, LabelTable, read_work_directory, table_of
from local_forager.indexes.own_columns import columns_path, read_columns
from local_forager.server.buckets import Buckets
from local_forager.server.database import DATABASE_FILE, Database, Dataset, ServerGeneration, usable
from local_forager.types import PageError


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An index with the labels of its dataset; NO_LABELS where there is no dataset."""

    index: Index
    table: LabelTable = NO_LABELS


async def open_named(name: str, data_dir: Path, bucket: str) -> Opened:
    """A dataset of the local Forager or, if the name is that of a directory, a work directory."""
    directory = Path(name)
    if "://" in name:
        raise PageError(
            400,
            f"{printable(name)} is an address: name a dataset of the local Forager, a work "
            "directory such as ./birds, or an index in the bucket with --index_id.",
        )
    if os.sep in name or directory.name in ("", ".."):
        return open_work_directory(directory)
    try:
        return await open_dataset(name, data_dir, bucket)
    except PageError as error:
        if error.status != 404:
            raise
        if not (directory / STATE).exists():
            others = "A work directory such as ./birds, or --index_id, can be exported too."
            raise PageError(404, f"{error.message} {others}") from None
        say(f"There is no dataset named {printable(name)} here: reading the work directory.")
        return open_work_directory(directory)


@contextlib.asynccontextmanager
async def local_dataset(name: str, data_dir: Path) -> AsyncIterator[tuple[Database, Dataset]]:
    """The database of the local Forager in this directory, and its dataset of this name."""
    path, where = data_dir / DATABASE_FILE, printable(str(data_dir))
    if not path.exists():
        raise PageError(404, f"There is no local Forager in {where}: give its --data_dir.")
    with usable(path), contextlib.closing(Database(path, ServerGeneration.B)) as database:
        dataset = await database.dataset(name)
        if dataset is None:
            known = first_of(await database.dataset_names()) or "no datasets"
            missing = f"There is no dataset named {printable(name)} in --data_dir {where}."
            raise PageError(404, f"{missing} It has: {known}.")
        yield database, dataset


async def open_dataset(name: str, data_dir: Path, bucket: str) -> Opened:
    """The index of a dataset, copied from the bucket if it is not here yet; labels and columns."""
    async with local_dataset(name, data_dir) as (database, dataset):
        index = await copied_index(dataset.index_id, data_dir, bucket)
        path = columns_path(data_dir, dataset.id)
        columns = read_columns(path, dataset.index_id, len(index.names))
        labels, boxes = await database.labels(dataset.id), await database.boxes(dataset.id)
    return Opened(index=index, table=table_of(labels, boxes, index, columns))


async def open_index(index_id: str, data_dir: Path, bucket: str) -> Opened:
    """An index in the bucket, whether a dataset uses it or not."""
    return Opened(index=await copied_index(index_id, data_dir, bucket))


async def copied_index(index_id: str, data_dir: Path, bucket: str) -> Index:
    """The index, copied from the bucket if it is not here yet."""
    with contextlib.closing(Buckets()) as buckets:
        copy = IndexCopies(buckets, bucket, data_dir).get(index_id)
        await copy.task
    if copy.index is None:
        raise PageError(409, copy.problem or "")
    return copy.index


def open_work_directory(directory: Path) -> Opened:
    """The index in the work directory of an ingest that is finished.

    Raises:
        PageError: it is none, its ingest is running or unfinished, or a file is damaged.
    """
    shown = printable(str(directory))
    if not (directory / STATE).is_file():
        raise PageError(404, f"{shown} has no {STATE}: name the directory of a finished ingest.")
    with contextlib.suppress(FileNotFoundError), (directory / LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # an ingest holds it while it runs
        except BlockingIOError:
            reason = f"An ingest is running in {shown}: wait until it has ended."
            raise PageError(409, reason) from None
    try:
        options = options_on_disk(directory / STATE)
    except (ValueError, sqlite3.Error, OSError) as error:
        reason = f"is not finished, or its {STATE} is damaged ({printable(str(error))})"
        raise PageError(409, f"The ingest in {shown} {reason}: run it again.") from None
    if "registered" not in options or "abandoned" in options:
        raise PageError(409, f"The ingest in {shown} is not finished: run it again, then export.")
    try:
        return Opened(index=read_work_directory(directory))
    except PageError as error:
        raise PageError(409, f"The index in {shown} cannot be used. {error}") from None
