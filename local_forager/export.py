"""Exports images of a dataset as text: object names, CSV, or a label file for ingest_labels.py.

The page sends it to the browser; `python -m local_forager export` writes sets of images.
"""

import asyncio
import contextlib
import csv
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from common.names import MAX_TEXT_LENGTH, identifier, text_problem
from common.options import Command, bucket_name
from common.terminal import printable
from local_forager.analysis import subsets
from local_forager.analysis.picture_search import find_weights, nearest_to, picture_of_file
from local_forager.analysis.quality import LIMITS
from local_forager.indexes.index import POSITIVE, Index, LabelTable, class_name
from local_forager.indexes.vectors import COMPARED_BY
from local_forager.opening import open_index, open_named
from local_forager.sets import GROUPED_SETS, NEAR_SETS, SETS, SPLITS, Asked, name_line, rows_of
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
clip_weights_option = click.option(
    "--clip_weights",
    "--clip-weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of CLIP ViT-B/32, to search by text or by a picture; text needs its text tower "
    "and tokenizer.",
)
resnet_weights_option = click.option(
    "--resnet_weights",
    "--resnet-weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Detectron2's R-50.pkl, to search by a picture.  [default: R-50.pkl beside ingest.py]",
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
        yield name_line(index.names[row]) + "\n"


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


def number_or_none(
    context: click.Context, option: click.Parameter, value: float | None
) -> float | None:
    """The value, unless it is "nan", which passes for a number within any range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number from 0 to 2.")
    return value


def for_terminal(text: str) -> str:
    """Lines of text with unprintable characters escaped, as `ls` does: a name could act on it."""
    return "\n".join(printable(line, 10 * len(line)) for line in re.split("\r?\n", text))


@click.command("export", cls=Command, context_settings=SETTINGS)
@click.argument("name", required=False, metavar="[NAME_OR_DIRECTORY]")
@data_dir_option
@bucket_option
@click.option(
    "--set",
    "which",
    type=click.Choice((*SETS, *subsets.KINDS)),
    default="all",
    help="Images to export. diverse and typical choose --count of them, the most useful first.",
)
@click.option(
    "--by", type=click.Choice(COMPARED_BY), default=COMPARED_BY[0], help="Compare by this."
)
@click.option("--exact", is_flag=True, help="Compare all pairs of more than 20,000 images too.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(tuple(FORMATS)),
    default="names",
    help="Object names, CSV, or a label file for ingest_labels.py.",
)
@click.option(
    "--category",
    help="Only images with this label; with --format labels, the label that the file gives.",
)
@click.option("--mode", default=POSITIVE, help="Mode of the label that --category names.")
@click.option(
    "--out",
    type=click.File("w", "utf-8", errors="surrogatepass", lazy=True),
    default="-",
    help="File; - is stdout.",
)
@click.option("--index_id", "--index-id", metavar="ID", help="An index in the bucket, not NAME.")
@click.option("--split", type=click.Choice(SPLITS), help="Only images of this split.")
@click.option("--unlabelled", is_flag=True, help="Only images without any label.")
@click.option(
    "--count",
    type=click.IntRange(1),
    metavar="N",
    help="How many images: of diverse or typical, or of those nearest to --like_image.",
)
@click.option(
    "--like",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With diverse or typical: images chosen before, a name a line, to add to.",
)
@click.option(
    "--threshold",
    type=float,
    help=f"Limit of the sets of images that look bad: {THRESHOLDS}.",
)
@click.option(
    "--distance",
    type=click.FloatRange(0, 2),
    callback=number_or_none,
    metavar="D",
    help="Cosine distance, 0 to 2, up to which images of near-duplicates and leaks are almost "
    "identical.  [default: 5% of the median distance between two images]",
)
@click.option(
    "--keep",
    type=click.Choice(("one",)),
    help="Leave out the best image of each group: what is exported can be deleted.",
)
@click.option(
    "--like_image",
    "--like-image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Nearest to this picture first, by --by. It needs the weights of that model.",
)
@clip_weights_option
@resnet_weights_option
def export_set(
    name: str | None,
    data_dir: Path,
    bucket: str,
    format_: str,
    category: str | None,
    mode: str,
    out: TextIO,
    index_id: str | None,
    like_image: Path | None,
    clip_weights: Path | None,
    resnet_weights: Path | None,
    **options: Any,
) -> None:
    """Export images of a dataset, of a work directory such as ./birds, or of --index_id.

    \b
    Examples:
        python -m local_forager export birds --set diverse --count 500 --unlabelled
        python -m local_forager export birds --set leaks --format labels \\
            --category leak --out leaks.json
        python ingest_labels.py birds leaks.json --user you@example.org
    """
    if format_ == "labels" and not category:
        raise PageError(400, "--format labels needs a category: add --category NAME.")
    label = label_to_export(category or "", mode) if format_ == "labels" else {}
    asked = Asked(category=None if label else category, mode=mode, **options)
    check_combinations(asked, like_image)
    if not Path(out.name).parent.is_dir():  # known before minutes of computing
        raise PageError(400, f"--out {printable(out.name)}: there is no such directory.")
    weights, picture = find_weights(resnet_weights, clip_weights), None
    if like_image:
        weights.check(asked.by)
        picture = picture_of_file(like_image)
    if (name is None) == (index_id is None):
        raise click.UsageError("Name a dataset or a work directory, or give --index_id.")
    if index_id is not None:
        opened = asyncio.run(open_index(index_id, data_dir, bucket))
    else:
        opened = asyncio.run(open_named(name or "", data_dir, bucket))
    rows = rows_of(opened, asked)
    if picture is not None:
        rows = nearest_to(weights, picture, opened.index, rows, asked.by)[: asked.count]
        if len(rows) < (asked.count or 0):
            click.echo(f"There are only {len(rows):,} such images.", err=True)
    pieces = export(format_, opened.index, opened.table, rows, label)
    try:
        shown = for_terminal if out.isatty() else str
        out.writelines(map(shown, pieces))
        out.flush()
    except BrokenPipeError:
        raise
    except (OSError, click.FileError) as error:
        raise not_written(out, error) from error
    click.echo(f"Exported {len(rows):,} images.", err=True)


def not_written(out: TextIO, error: OSError | click.FileError) -> PageError:
    """The error for the user. What is left in the buffer is dropped: there is no room for it."""
    reason = error.message if isinstance(error, click.FileError) else error.strerror
    with contextlib.suppress(OSError, click.FileError):
        out.close()
    where = "stdout" if out.name == "-" else printable(out.name)
    return PageError(500, f"{where} cannot be written ({reason}): name another file with --out.")


def check_combinations(asked: Asked, like_image: Path | None) -> None:
    """Raise UsageError where options do not go with --set."""
    if asked.which in subsets.KINDS and asked.count is None:
        raise click.UsageError(f"--set {asked.which} needs --count, such as --count 500.")
    for option, value, kinds in (
        ("count", asked.count if like_image is None else None, subsets.KINDS),
        ("like", asked.like, subsets.KINDS),
        ("threshold", asked.threshold, LIMITS),
        ("distance", asked.distance, NEAR_SETS),
        ("keep", asked.keep, GROUPED_SETS),
    ):
        if value is not None and asked.which not in kinds:
            raise click.UsageError(
                f"--{option} goes with {' or '.join(f'--set {kind}' for kind in kinds)}."
            )
    if like_image and asked.which in subsets.KINDS:
        raise click.UsageError(f"--like_image does not go with --set {asked.which}.")
