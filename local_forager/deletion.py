"""Deletes a dataset of the local Forager, with what this machine keeps of its index and thumbnails.

The page asks for it with a question, and so does `python -m local_forager delete`. Nothing in a
bucket is deleted.
"""

import asyncio
import shlex
import shutil
from pathlib import Path

from common.terminal import printable
from local_forager.indexes.copies import index_directory, thumbnail_path
from local_forager.indexes.own_columns import columns_path
from local_forager.server.database import Database, Dataset
from local_forager.types import DeletionPlan, PageError


async def plan(database: Database, dataset: Dataset, bucket: str) -> DeletionPlan:
    """What the deletion of a dataset means."""
    splits = await database.counts(dataset.id)
    sharing = await database.names_of_index(dataset.index_id)
    others = [name for name in sharing if name != dataset.name]
    folders = [f"gs://{bucket}/{kind}/{dataset.index_id}/" for kind in ("indexes", "thumbnails")]
    folders.append(f"gs://{bucket}/aux_labels/{dataset.index_id}/")
    return {
        "name": dataset.name,
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


async def delete(database: Database, dataset: Dataset, data_dir: Path) -> None:
    """Delete the files on this machine, then the rows: after a stop, it can be asked for again.

    The files of an index that another dataset has stay. Raises PageError if something cannot be
    deleted.
    """
    is_shared = len(await database.names_of_index(dataset.index_id)) > 1
    directory = index_directory(data_dir, dataset.index_id)
    try:
        columns_path(data_dir, dataset.id).unlink(missing_ok=True)
        if not is_shared:
            identifiers = await database.identifiers(dataset.id)
            await asyncio.to_thread(delete_thumbnails, data_dir, dataset.index_id, identifiers)
            if directory.exists():
                await asyncio.to_thread(shutil.rmtree, directory)
    except OSError as error:
        where = printable(str(error.filename))
        reason = f"{where} cannot be deleted ({error.strerror}). The dataset is still there."
        raise PageError(500, reason) from None
    await database.delete_dataset(dataset.id)
