"""The command that deletes a dataset of the local Forager, after a question."""

import asyncio
import sys
from pathlib import Path

import click

from common.options import CONTEXT_SETTINGS, Command, bucket_option, flag
from common.terminal import count, printable
from local_forager.commands.opening import local_dataset
from local_forager.commands.options import data_dir_option
from local_forager.deletion import delete, plan
from local_forager.types import DeletionPlan, PageError


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
    async with local_dataset(name, data_dir) as (database, dataset):
        found = await plan(database, dataset, bucket)
        images = count(found["num_train"] + found["num_val"], "image")
        what = f"dataset {printable(name)}: {images}, {count(found['annotations'], 'label')}"
        if not yes and not confirmed(f"Delete {what}?"):
            raise PageError(400, "Nothing was deleted.")
        await delete(database, dataset, data_dir)
    click.echo(f"Deleted {what}.", err=True)
    click.echo(kept_in_buckets(found))


@click.command("delete", cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@data_dir_option
@bucket_option
@flag("--yes", "Delete without a question.")
def delete_dataset(name: str, data_dir: Path, bucket: str, yes: bool) -> None:
    """Delete dataset NAME from the local Forager, with its labels; buckets keep what they have.

    \b
    Example:
        python -m local_forager delete birds
    """
    asyncio.run(ask_and_delete(name, data_dir, bucket, yes))
