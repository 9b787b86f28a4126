"""Deletes a dataset of the local Forager, with what this machine keeps of its index and thumbnails.

The page asks for it with a question, and so does `python -m local_forager delete`. Nothing in a
bucket is deleted.
"""

import asyncio
import contextlib
import shlex
import shutil
import sqlite3
import sys
from pathlib import Path

import click

from common.options import Command
from common.terminal import count, printable
from local_forager.export import SETTINGS, bucket_option, data_dir_option
from local_forager.indexes.copies import IndexCopies, thumbnail_path
from local_forager.indexes.own_columns import columns_path
from local_forager.opening import find_dataset, opened_database
from local_forager.server.api import NoSuchDataset
from local_forager.server.buckets import Buckets
from local_forager.server.database import Database, Dataset
from local_forager.types import DeletionPlan, PageError

IN_USE = "The database is in use by another program: try again. The dataset is still there."


async def plan(database: Database, name: str, bucket: str) -> tuple[Dataset, DeletionPlan]:
    """The dataset and what its deletion means; raises NoSuchDataset."""
    dataset = await database.dataset(name)
    if dataset is None:
        raise NoSuchDataset(name)
    splits = await database.counts(dataset.id)
    others = await database.names_of_index(dataset.index_id)
    others.remove(name)
    folders = [f"gs://{bucket}/{kind}/{dataset.index_id}/" for kind in ("indexes", "thumbnails")]
    folders.append(f"gs://{bucket}/aux_labels/{dataset.index_id}/")
    return dataset, {
        "name": name,
        "num_train": splits.num_train,
        "num_val": splits.num_val,
        "annotations": await database.count_annotations(dataset.id),
        "train_path": dataset.train_path,
        "val_path": dataset.val_path,
        "shared_with": others,
        "command": "" if others else shlex.join(["gcloud", "storage", "rm", "-r", *folders]),
    }


def delete_thumbnails(data_dir: Path, index_id: str, identifiers: list[str]) -> None:
    for identifier in identifiers:
        thumbnail_path(data_dir, index_id, identifier).unlink(missing_ok=True)


async def delete(
    database: Database, dataset: Dataset, data_dir: Path, directory: Path | None
) -> None:
    """Delete the files on this machine, then the rows: after a stop, it can be asked for again.

    directory: of the copy of the index; None where another dataset has the same index, whose files
    stay. Raises PageError if something cannot be deleted.
    """
    try:
        columns_path(data_dir, dataset.id).unlink(missing_ok=True)
        if directory is not None:
            identifiers = await database.identifiers(dataset.id)
            await asyncio.to_thread(delete_thumbnails, data_dir, dataset.index_id, identifiers)
            if directory.exists():
                await asyncio.to_thread(shutil.rmtree, directory)
    except OSError as error:
        where = printable(str(error.filename))
        reason = f"{where} cannot be deleted ({error.strerror}). The dataset is still there."
        raise PageError(500, reason) from None
    try:
        await database.delete_dataset(dataset.id)
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        raise PageError(503, IN_USE) from None


def kept_in_buckets(found: DeletionPlan) -> str:
    """What is not deleted, in sentences, and the command that deletes the index."""
    images = " and ".join(printable(path) for path in (found["train_path"], found["val_path"]))
    if found["shared_with"]:
        names = ", ".join(map(printable, found["shared_with"]))
        return f"The images in {images} stay. So does the index: {names} has it too."
    return (
        f"The images in {images} stay. The index bucket keeps the index. To delete it as well, if "
        f"no other Forager uses it:\n    {printable(found['command'], 10_000)}"
    )


def confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():  # Ctrl-C
            raise
        reason = "Nothing was deleted: there was no answer. --yes deletes without a question."
        raise PageError(400, reason) from None
    finally:
        if not sys.stdin.isatty():
            click.echo(err=True)  # ends the line of the question


async def ask_and_delete(name: str, data_dir: Path, bucket: str, yes: bool) -> None:
    await find_dataset(name, data_dir)
    buckets = Buckets()
    with contextlib.closing(buckets), opened_database(data_dir) as database:
        dataset, found = await plan(database, name, bucket)
        images = count(found["num_train"] + found["num_val"], "image")
        what = f"dataset {printable(name)}: {images}, {count(found['annotations'], 'label')}"
        if not yes and not confirmed(f"Delete {what}?"):
            raise PageError(400, "Nothing was deleted.")
        directory = IndexCopies(buckets, bucket, data_dir).directory(dataset.index_id)
        own = None if found["shared_with"] else directory
        await delete(database, dataset, data_dir, own)
    click.echo(f"Deleted {what}.", err=True)
    click.echo(kept_in_buckets(found))


@click.command("delete", cls=Command, context_settings=SETTINGS)
@click.argument("name")
@data_dir_option
@bucket_option
@click.option("--yes", is_flag=True, help="Delete without a question.")
def delete_dataset(name: str, data_dir: Path, bucket: str, yes: bool) -> None:
    """Delete dataset NAME from the local Forager, with its labels; buckets keep what they have.

    \b
    Example:
        python -m local_forager delete birds
    """
    asyncio.run(ask_and_delete(name, data_dir, bucket, yes))
