"""The command that writes sets of images as text, without a server."""

import asyncio
import contextlib
import math
from pathlib import Path
from typing import Any, TextIO

import click

from common.names import checked_index_id
from common.options import CONTEXT_SETTINGS, Command, LocalPath, bucket_option, choice, flag
from common.terminal import escaped, printable
from local_forager.analysis import subsets
from local_forager.analysis.health import LIMITS
from local_forager.analysis.picture_search import find_weights, nearest_to, picture_of_file
from local_forager.commands.opening import open_index, open_named
from local_forager.commands.options import (
    clip_weights_option,
    data_dir_option,
    resnet_weights_option,
)
from local_forager.commands.sets import GROUPED_SETS, NEAR_SETS, SETS, Asked, rows_of
from local_forager.export import FORMATS, export, label_to_export
from local_forager.indexes.index import POSITIVE
from local_forager.indexes.vectors import COMPARED_BY
from local_forager.types import PageError

THRESHOLDS = ", ".join(  # of these sets, if no other is asked for
    f"{name} {limit.field} {'<=' if limit.is_most else '>='} {limit.value:g}"
    for name, limit in LIMITS.items()
)


def not_nan(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """The value, unless it is "nan", which passes for a number within any range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number.")
    return value


def for_terminal(text: str) -> str:
    """Lines of text with unprintable characters escaped, as `ls` does: a name could act on it."""
    return escaped(text.replace("\r\n", "\n"))


@click.command("export", cls=Command, context_settings=CONTEXT_SETTINGS)
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
@choice("--by", COMPARED_BY, "Compare by this.")
@flag("--exact", "Compare all pairs of more than 20,000 images too.")
@click.option(
    "--format",
    type=click.Choice(tuple(FORMATS)),
    help="Object names, CSV, or a label file for ingest_labels.py.  [default: csv or labels where "
    "--out ends in .csv or .json, or else names]",
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
@click.option(
    "--index_id", type=checked_index_id, metavar="ID", help="An index in the bucket, not NAME."
)
@click.option("--split", type=click.Choice(("train", "val")), help="Only images of this split.")
@flag("--unlabelled", "Only images without any label.")
@click.option(
    "--count",
    type=click.IntRange(1),
    metavar="N",
    help="How many images: of diverse or typical, or of those nearest to --like_image.",
)
@click.option(
    "--like",
    type=LocalPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="With diverse or typical: images chosen before, a name a line, to add to.",
)
@click.option(
    "--threshold",
    type=float,
    callback=not_nan,
    help=f"Limit of the sets of images that look bad: {THRESHOLDS}.",
)
@click.option(
    "--distance",
    type=click.FloatRange(0, 2),
    callback=not_nan,
    metavar="D",
    help="Cosine distance, 0 to 2, up to which images of near_duplicates and leaks are almost "
    "identical.  [default: 5% of the median distance between two images]",
)
@click.option(
    "--keep",
    type=click.Choice(("one",)),
    help="Leave out the best image of each group: what is exported can be deleted.",
)
@click.option(
    "--like_image",
    type=LocalPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="Nearest to this picture first, by --by. It needs the weights of that model.",
)
@clip_weights_option
@resnet_weights_option
def export_set(
    name: str | None,
    data_dir: Path,
    bucket: str,
    format: str | None,
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
    kind = Path(out.name).suffix.removeprefix(".")
    format = format or next((name for name, end in FORMATS.items() if end == kind), "names")
    if mode != POSITIVE and category is None:
        raise click.UsageError("--mode goes with --category.")
    if format == "labels" and not category:
        raise PageError(400, "--format labels needs a category: add --category NAME.")
    label = label_to_export(category or "", mode) if format == "labels" else {}
    asked = Asked(category=None if label else category, mode=mode, **options)
    check_combinations(asked, like_image)
    if not Path(out.name).parent.is_dir():  # known before minutes of computing
        raise PageError(400, f"--out {printable(out.name)}: there is no such directory.")
    if like_image:
        weights = find_weights(resnet_weights, clip_weights)
        weights.check(asked.by)
        picture = picture_of_file(like_image)
    if (name is None) == (index_id is None):
        raise click.UsageError("Name a dataset or a work directory, or give --index_id.")
    if index_id is None:
        opened = asyncio.run(open_named(name or "", data_dir, bucket))
    else:
        opened = asyncio.run(open_index(index_id, data_dir, bucket))
    rows = rows_of(opened, asked)
    if like_image:
        rows = nearest_to(weights, picture, opened.index, rows, asked.by)[: asked.count]
        if len(rows) < (asked.count or 0):
            click.echo(f"There are only {len(rows):,} such images.", err=True)
    pieces = export(format, opened.index, opened.table, rows, label)
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
            with_it = [f"--set {kind}" for kind in kinds]
            with_it += ["--like_image"] if option == "count" else []
            raise click.UsageError(f"--{option} goes with {' or '.join(with_it)}.")
    if like_image and asked.which in subsets.KINDS:
        raise click.UsageError(f"--like_image does not go with --set {asked.which}.")
