"""The command that exports a set of images without a browser: python -m local_forager export."""

import asyncio
import sys
from pathlib import Path
from typing import TextIO

import click

from common.options import Command
from local_forager.analysis.approximate import usable
from local_forager.analysis.health import near_in_lists
from local_forager.analysis.health_checks import (
    Groups,
    disagreeing,
    exact_duplicates,
    leaks,
    near_duplicates,
)
from local_forager.export_formats import (
    FORMATS,
    Annotation,
    ExportProblem,
    annotation,
    export,
)
from local_forager.indexes.index import Index
from local_forager.indexes.index_copy import IndexCopies
from local_forager.indexes.label_table import POSITIVE, LabelTable, table_of
from local_forager.page.query import COMPARED_BY
from local_forager.server.buckets import Buckets
from local_forager.server.database import Database

SETS = ("all", "failed", "exact-duplicates", "near-duplicates", "leaks", "contradictions")


def report(progress: float) -> None:
    """Show the progress of a comparison on stderr, where that is a terminal."""
    if sys.stderr.isatty():
        end = "\n" if progress >= 1 else ""
        click.echo(f"\rComparing images: {progress:.0%}{end}", err=True, nl=False)


def rows_of(which: str, index: Index, table: LabelTable, by: str, exact: bool) -> list[int]:
    """The rows of a set, ascending. exact: compare all pairs of a large index too."""
    vectors, failed = index.embeddings[by], index.failed
    if which == "all":
        return list(range(len(index.names)))
    if which == "failed":
        return [int(row) for row in failed.nonzero()[0]]
    if which == "contradictions":
        return sorted(disagreeing(vectors, table.positive(), failed, report))
    groups: Groups
    if which == "exact-duplicates":
        groups = exact_duplicates(vectors, failed)
    else:
        if exact or not usable(len(index.names)):
            groups = near_duplicates(vectors, failed, report).groups
        else:
            groups = near_in_lists(index, by, report).groups
            click.echo(
                "Only roughly similar images were compared: a few may be missing. --exact compares "
                "all pairs.",
                err=True,
            )
        if which == "leaks":
            groups = leaks(index, groups)
    return sorted(row for group in groups for row in group)


async def read_dataset(name: str, data_dir: Path, bucket: str) -> tuple[Index, LabelTable]:
    """The index of a dataset, copied from the bucket if it is not here yet, and its labels."""
    path = data_dir / "forager.sqlite3"
    if not path.exists():
        raise click.ClickException(f"There is no local Forager in {data_dir}: give its --data_dir.")
    database, buckets = Database(path, "B"), Buckets()
    try:
        dataset = await database.dataset(name)
        if dataset is None:
            raise click.ClickException(f"There is no dataset named {name} in {data_dir}.")
        copy = IndexCopies(buckets, bucket, data_dir).get(dataset.index_id)
        await copy.task
        if copy.index is None:
            raise click.ClickException(copy.problem)
        labels, boxes = await database.labels(dataset.id), await database.boxes(dataset.id)
        return copy.index, table_of(labels, boxes, copy.index)
    finally:
        buckets.close()
        database.close()


@click.command("export", cls=Command, context_settings={"show_default": True})
@click.argument("name")
@click.option(
    "--data_dir",
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="forager-data",
    help="Directory of the local Forager. It may be running.",
)
@click.option("--bucket", default="foragerml", envvar="FORAGER_BUCKET", help="Index bucket.")
@click.option("--set", "which", type=click.Choice(SETS), default="all", help="Images to export.")
@click.option(
    "--by", type=click.Choice(COMPARED_BY), default=COMPARED_BY[0], help="Compare by this."
)
@click.option("--exact", is_flag=True, help="Compare all pairs of more than 200,000 images too.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(tuple(FORMATS)),
    default="names",
    help="Object names, CSV, or a label file for ingest_labels.py.",
)
@click.option("--category", help="Category of every image in a label file.")
@click.option("--mode", default=POSITIVE, help="Mode of every image in a label file.")
@click.option(
    "--out", type=click.File("w", "utf-8", lazy=True), default="-", help="File; - is stdout."
)
def export_set(
    name: str,
    data_dir: Path,
    bucket: str,
    which: str,
    by: str,
    exact: bool,
    format_: str,
    category: str | None,
    mode: str,
    out: TextIO,
) -> None:
    """Export images of dataset NAME.

    \b
    Example:
        python -m local_forager export birds --set leaks --format labels \\
            --category leak --out leaks.json
        python ingest_labels.py birds leaks.json --user you@example.org
    """
    label: Annotation | None = None
    try:
        if format_ == "labels":
            label = annotation(category or "", mode)
        elif category is not None:
            raise ExportProblem("--category is for --format labels only.")
    except ExportProblem as error:
        raise click.ClickException(str(error)) from error
    index, table = asyncio.run(read_dataset(name, data_dir, bucket))
    rows = rows_of(which, index, table, by, exact)
    for piece in export(format_, index, table, rows, label):
        out.write(piece)
    out.flush()
    click.echo(f"Exported {len(rows):,} images.", err=True)
