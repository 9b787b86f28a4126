"""The sets of images that `python -m local_forager export` writes: health checks and subsets."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from common.terminal import first_of, printable, say
from local_forager.analysis import subsets
from local_forager.analysis.duplicates import near_distance
from local_forager.analysis.health import LIMITS, PAIRS_ROWS, Health
from local_forager.analysis.jobs import POLL, Jobs
from local_forager.commands.opening import Opened
from local_forager.export import name_line
from local_forager.indexes.index import NO_LABELS, Index, images_named
from local_forager.types import PageError

SETS = {  # set -> health check
    "all": "",
    "failed": "failed",
    "exact_duplicates": "exact",
    "near_duplicates": "near",
    "leaks": "leak",
    "contradictions": "disagree",
    **{name: name for name in LIMITS},
}
NEAR_SETS = ("near_duplicates", "leaks")  # which a distance changes
GROUPED_SETS = ("exact_duplicates", *NEAR_SETS)
SHOWN_LINES = 3  # of a file of names, which name no image
ONE_A_LINE = "Write one name a line, as an export of names has them."
LABELS_ONLY = "Only a dataset of the local Forager has labels: name one"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which images the command exports."""

    which: str  # one of SETS, or of subsets.KINDS
    by: str
    exact: bool  # compare all pairs of a large index too
    split: str | None
    unlabelled: bool
    category: str | None  # only images with this label
    mode: str
    count: int | None
    like: Path | None
    threshold: float | None  # of a set of LIMITS, instead of its own
    distance: float | None  # of near duplicates
    keep: str | None  # "one" leaves out the kept image of each group


def rows_named(index: Index, path: Path) -> np.ndarray:
    """The rows of the images that a file names, one a line: int64, ascending.

    A line is an object name as an export of names writes it, a file name or an identifier.

    Raises:
        PageError: a line names no image, the file names none, or it is no text.
    """
    shown = printable(str(path))
    try:
        lines = path.read_bytes().decode("utf-8-sig", "surrogatepass").split("\n")
    except UnicodeDecodeError:
        raise PageError(400, f"{shown} is not UTF-8 text. {ONE_A_LINE}") from None
    wanted = dict.fromkeys(line.strip("\r") for line in lines if line.strip())
    names = list(map(name_line, index.names))
    found = [pair for _, named in images_named(wanted, names) for pair in named]
    known = dict(found)
    if unknown := [line for line in wanted if line not in known]:
        what = "1 line names" if len(unknown) == 1 else f"{len(unknown):,} lines name"
        some = first_of(unknown, SHOWN_LINES)
        raise PageError(400, f"In {shown}, {what} no image: {some}. {ONE_A_LINE}")
    if not found:
        raise PageError(400, f"{shown} names no image. {ONE_A_LINE}")
    return np.unique([row for _, row in found])


def candidates(opened: Opened, asked: Asked) -> np.ndarray:
    """bool (n,): the images that pass --split, --unlabelled and --category."""
    index, table = opened.index, opened.table
    passing = index.in_split(asked.split) if asked.split else np.ones(len(index.names), bool)
    if table is NO_LABELS and (asked.unlabelled or asked.category is not None):
        option = "--unlabelled" if asked.unlabelled else "--category"
        raise PageError(400, f"{LABELS_ONLY}, or leave out {option}.")
    if asked.unlabelled:
        passing &= ~table.labelled(len(passing))
    if asked.category is not None:
        marked = table.marked(asked.category, asked.mode, len(passing))
        if not marked.any():
            label = f"{printable(asked.category)} in mode {printable(asked.mode)}"
            modes = table.rows.get(asked.category)
            what, known = ("its modes", modes) if modes else ("the categories", table.rows)
            names = first_of(sorted(known)) or "none"
            raise PageError(404, f"No image has the label {label}; {what} are: {names}.")
        passing &= marked
    return passing


def show_progress(what: str, share: float) -> None:
    """A line that is written over and over on a terminal, and removed at the end."""
    if sys.stderr.isatty():
        text = f"{what}: {share:.0%}"
        click.echo(f"\r{text} " if share < 1 else f"\r{' ' * len(text)}\r", err=True, nl=False)


def subset(opened: Opened, asked: Asked, count: int) -> list[int]:
    """The rows of a subset, the most useful first. Says so if it has fewer than `count`."""
    index, vectors = opened.index, opened.index.embeddings[asked.by]
    given = rows_named(index, asked.like) if asked.like else np.zeros(0, np.int64)
    least = near_distance(vectors, index.failed)
    rows = subsets.choose(
        asked.which,
        vectors,
        candidates(opened, asked) & ~index.failed,
        count,
        given=given[~index.failed[given]],
        least=least,
        progress=lambda share: show_progress("Choosing images", share),
    )
    if len(rows) < count:
        say(
            f"Only {len(rows):,} of {count:,} were left to choose from: failed images and near "
            f"duplicates (a distance of up to {least:.3g} by {asked.by}) are left out."
        )
    return [int(row) for row in rows]


def rows_of(opened: Opened, asked: Asked) -> list[int]:
    """The rows of a set: ascending, or those of a subset with the most useful first."""
    if asked.which in subsets.KINDS and asked.count:
        return subset(opened, asked, asked.count)
    index, which, passing = opened.index, asked.which, candidates(opened, asked)
    if which == "all":
        return [int(row) for row in np.flatnonzero(passing)]
    if which == "contradictions" and opened.table is NO_LABELS:
        raise PageError(400, f"{LABELS_ONLY}, or choose another --set.")
    with closing(Jobs()) as jobs:
        health = Health(
            jobs=jobs,
            index=index,
            by=asked.by,
            table=opened.table,
            exact_rows=len(index.names) if asked.exact else PAIRS_ROWS,
            distance=asked.distance,
            farthest=asked.distance,
            threshold=asked.threshold,
        )
        while (groups := health.groups(SETS[which], start=True)) is None:
            show_progress("Comparing images", jobs.progress())
            time.sleep(POLL)
    show_progress("Comparing images", 1)
    if health.in_lists and which in NEAR_SETS:
        missing = "a few may be missing. --exact compares all pairs."
        say(f"Only roughly similar images were compared: {missing}")
    first = 1 if asked.keep else 0
    return sorted(row for group in groups for row in group[first:] if passing[row])
