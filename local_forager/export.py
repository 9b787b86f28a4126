"""Exports images of a dataset as text: object names, CSV, or a label file for ingest_labels.py.

The page sends it to the browser; `python -m local_forager export` writes sets of images.
"""

import asyncio
import csv
import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import click

from common.names import MAX_TEXT_LENGTH, identifier, text_problem
from common.options import Command, bucket_name
from common.terminal import printable
from local_forager.analysis.health import Health, Jobs
from local_forager.analysis.quality import LIMITS, beyond
from local_forager.indexes.copies import IndexCopies
from local_forager.indexes.index import POSITIVE, Index, LabelTable, class_name, table_of
from local_forager.indexes.own_columns import columns_path, read_columns
from local_forager.indexes.vectors import COMPARED_BY, EXACT_ROWS
from local_forager.server.buckets import Buckets
from local_forager.server.database import Database, Dataset, ServerGeneration
from local_forager.types import PageError

CSV_HEADER = (
    *("object", "split", "labels", "imagenet_class", "imagenet_name"),
    *("width", "height", "failed"),
)
# Where a spreadsheet may see the beginning of a formula; some split cells at semicolons and tabs.
FORMULA = re.compile(r"(?<![^;\t\r\n])(?=[\t\r]|\s*[=+\-@])")
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?")  # is no formula
LINES_A_PIECE = 1_000
FORMATS = {"names": "txt", "csv": "csv", "labels": "json"}  # format -> suffix of the file
SETS = {  # set -> health check
    "all": "",
    "failed": "failed",
    "exact-duplicates": "exact",
    "near-duplicates": "near",
    "leaks": "leak",
    "contradictions": "disagree",
    **{name: name for name in LIMITS},
}
POLL = 0.05  # seconds between looks at a comparison
THRESHOLDS = ", ".join(  # of these sets, if no other is asked for
    f"{name} {limit.field} {'<=' if limit.is_most else '>='} {limit.value:g}"
    for name, limit in LIMITS.items()
)
SETTINGS = {"show_default": True}

data_dir_option = click.option(
    "--data_dir",
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="forager-data",
    help="Directory for the database and for copies of indexes and thumbnails.",
)
bucket_option = click.option(
    "--bucket",
    default="foragerml",
    envvar="FORAGER_BUCKET",
    type=bucket_name,
    metavar="NAME",
    help="Index bucket.",
)


def label_to_export(category: str, mode: str) -> dict[str, str]:
    """The annotation of each image in a label file; PageError if Forager cannot store it."""
    for what, text in (("category", category), ("mode", mode)):
        if not text.strip():
            raise PageError(400, f"A label file needs a {what}.")
        if len(text) > MAX_TEXT_LENGTH:
            raise PageError(400, f"The {what} is longer than {MAX_TEXT_LENGTH} characters.")
        if problem := text_problem(text):
            raise PageError(400, f"The {what} {problem}.")
    return {"category": category} if mode == POSITIVE else {"category": category, "mode": mode}


def export(
    name: str, index: Index, table: LabelTable, rows: Iterable[int], label: dict[str, str]
) -> Iterator[str]:
    """The text of format `name` in pieces; only a label file needs `label`."""
    if name == "names":
        lines = name_lines(index, rows)
    elif name == "csv":
        lines = csv_lines(index, table, rows)
    else:
        lines = label_lines(index, rows, label)
    while piece := "".join(itertools.islice(lines, LINES_A_PIECE)):
        yield piece


def name_lines(index: Index, rows: Iterable[int]) -> Iterator[str]:
    """An object name per line. A line break within a name is written as a backslash and n or r."""
    for row in rows:
        yield index.names[row].replace("\n", "\\n").replace("\r", "\\r") + "\n"


class Echo:
    """A file for csv.writer that keeps nothing: writing a line returns it."""

    def write(self, line: str) -> str:
        return line


def guarded(cell: str) -> str:
    """A cell with an apostrophe before everything that a spreadsheet could take for a formula."""
    return cell if NUMBER.fullmatch(cell) else FORMULA.sub("'", cell)


def csv_lines(index: Index, table: LabelTable, rows: Iterable[int]) -> Iterator[str]:
    """A row per image; labels as category=MODE, separated by semicolons; columns of one's own."""
    write = csv.writer(Echo()).writerow  # returns what Echo.write returns
    yield write([*CSV_HEADER, *map(guarded, table.columns.names)])
    for row, own in table.columns.beside(rows):
        number = int(index.classes[row])
        labels = [f"{one['category']}={one['mode']}" for one in table.of_row.get(row, [])]
        cells = (
            *(index.names[row], index.split(row), "; ".join(labels)),
            *((str(number), class_name(number)) if number >= 0 else ("", "")),
            *map(str, index.pixels(row) or ("", "")),
            "yes" if index.failed[row] else "",
            *own,
        )
        yield write([guarded(cell) for cell in cells])


def label_lines(index: Index, rows: Iterable[int], label: dict[str, str]) -> Iterator[str]:
    """A label file that gives each image this label. Images with one identifier count once."""
    value = json.dumps([label])
    seen: set[str] = set()
    yield "{"
    for row in rows:
        name = index.names[row]
        if (known := identifier(name)) not in seen:
            yield f"{',' if seen else ''}\n{json.dumps(name)}: {value}"
            seen.add(known)
    yield "\n}\n"


def rows_of(
    which: str,
    index: Index,
    table: LabelTable,
    by: str,
    exact: bool,
    threshold: float | None = None,
) -> list[int]:
    """The rows of a set, ascending. exact: compare all pairs of a large index too.

    threshold: of a set of LIMITS, instead of its own.
    """
    if which == "all":
        return list(range(len(index.names)))
    if which in LIMITS:
        found: list[int] = beyond(index, which, threshold).tolist()
        return found
    jobs, rows = Jobs(), len(index.names)
    health = Health(jobs, index, by, rows if exact else EXACT_ROWS, table, version=0)
    try:
        while (groups := health.groups(SETS[which], start=True)) is None:
            if sys.stderr.isatty():
                click.echo(f"\rComparing images: {jobs.progress():.0%} ", err=True, nl=False)
            time.sleep(POLL)
    finally:
        jobs.close()
    if health.in_lists and SETS[which] in ("near", "leak"):
        click.echo(
            "Only roughly similar images were compared: a few may be missing. --exact compares all "
            "pairs.",
            err=True,
        )
    return sorted(row for group in groups for row in group)


async def find_dataset(name: str, data_dir: Path) -> Dataset:
    """The dataset of this name of the local Forager in this directory."""
    path = data_dir / "forager.sqlite3"
    if not path.exists():
        where = printable(str(data_dir))
        raise PageError(404, f"There is no local Forager in {where}: give its --data_dir.")
    database = Database(path, ServerGeneration.B)
    try:
        dataset = await database.dataset(name)
    finally:
        database.close()
    if dataset is None:
        known, where = printable(name), printable(str(data_dir))
        raise PageError(404, f"There is no dataset named {known} in {where}.")
    return dataset


async def read_dataset(name: str, data_dir: Path, bucket: str) -> tuple[Index, LabelTable]:
    """The index of a dataset, copied from the bucket if it is not here yet, and its labels."""
    dataset = await find_dataset(name, data_dir)
    database, buckets = Database(data_dir / "forager.sqlite3", ServerGeneration.B), Buckets()
    try:
        copy = IndexCopies(buckets, bucket, data_dir).get(dataset.index_id)
        await copy.task
        if copy.index is None:
            raise PageError(409, copy.problem or "")
        labels, boxes = await database.labels(dataset.id), await database.boxes(dataset.id)
        path = columns_path(data_dir, dataset.id)
        columns = read_columns(path, dataset.index_id, len(copy.index.names))
        return copy.index, table_of(labels, boxes, copy.index, columns)
    finally:
        buckets.close()
        database.close()


def for_terminal(text: str) -> str:
    """Lines of text with unprintable characters escaped, as `ls` does: a name could act on it."""
    return "\n".join(printable(line, 10 * len(line)) for line in re.split("\r?\n", text))


@click.command("export", cls=Command, context_settings=SETTINGS)
@click.argument("name")
@data_dir_option
@bucket_option
@click.option(
    "--set", "which", type=click.Choice(tuple(SETS)), default="all", help="Images to export."
)
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
    "--threshold",
    type=float,
    help=f"Limit of the sets of images that look bad: {THRESHOLDS}.",
)
@click.option(
    "--out",
    type=click.File("w", "utf-8", errors="surrogatepass", lazy=True),
    default="-",
    help="File; - is stdout.",
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
    threshold: float | None,
    out: TextIO,
) -> None:
    """Export images of dataset NAME.

    \b
    Example:
        python -m local_forager export birds --set leaks --format labels \\
            --category leak --out leaks.json
        python ingest_labels.py birds leaks.json --user you@example.org
    """
    label = label_to_export(category or "", mode) if format_ == "labels" else {}
    if not label and category is not None:
        raise PageError(400, "--category is for --format labels only.")
    if threshold is not None and which not in LIMITS:
        raise PageError(400, f"--threshold is for --set {', '.join(LIMITS)} only.")
    index, table = asyncio.run(read_dataset(name, data_dir, bucket))
    rows = rows_of(which, index, table, by, exact, threshold)
    shown = for_terminal if out.isatty() else str
    for piece in export(format_, index, table, rows, label):
        out.write(shown(piece))
    out.flush()
    click.echo(f"Exported {len(rows):,} images.", err=True)
