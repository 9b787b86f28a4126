"""What ingest_labels.py says of labels: the table, what differs, long lists cut short."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from common.terminal import printable
from labels.file import Group
from labels.journal import LabelRequest

SHOWN_FINDINGS = 10  # on the screen; all of them go to a file


def count_asked(requests: Iterable[LabelRequest]) -> Counter[Group]:
    """Labels by category and mode."""
    asked: Counter[Group] = Counter()
    for request in requests:
        asked[request.category, request.mode] += len(request.images)
    return asked


def difference(asked: Counter[Group], created: Counter[Group], index_known: bool) -> str:
    """Where the server stored another number of labels than it was asked to, or ""."""
    wrong = [group for group in asked if created[group] != asked[group]]
    if not wrong:
        return ""
    lines = [
        f"  {printable(category)!r} ({printable(mode)}): "
        f"{created[category, mode]:,} of {asked[category, mode]:,}"
        for category, mode in wrong[:SHOWN_FINDINGS]
    ]
    if len(wrong) > SHOWN_FINDINGS:
        lines.append(f"  and {len(wrong) - SHOWN_FINDINGS:,} more, in the table")
    why = (
        "More than asked means that the dataset has two images of one identifier, less that images "
        "of its index are missing on the server."
        if index_known
        else "The dataset does not have all of these images; only its index could tell which."
    )
    return "The server did not store as many labels as asked:\n" + "\n".join([*lines, why])


def show_plan(requests: list[LabelRequest]) -> None:
    per_group = Counter((request.category, request.mode) for request in requests)
    show_table(("category", "mode", "labels", "requests"), count_asked(requests), per_group)


def show_table(header: tuple[str, ...], first: Counter[Group], second: Counter[Group]) -> None:
    """Two numbers for each category and mode, on stdout."""
    rows = [header] + [
        (
            printable(group[0], 60),
            printable(group[1], 60),
            f"{first[group]:,}",
            f"{second[group]:,}",
        )
        for group in first
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for category, mode, asked, created in rows:
        click.echo(
            f"{category:<{widths[0]}}  {mode:<{widths[1]}}  "
            f"{asked:>{widths[2]}}  {created:>{widths[3]}}"
        )


def shortened(lines: list[str], list_file: Path, always: bool = False) -> str:
    """The first lines, indented, and where all of them are."""
    shown = "\n".join(f"      {line}" for line in lines[:SHOWN_FINDINGS])
    if len(lines) <= SHOWN_FINDINGS and not always:
        return shown
    more = len(lines) - SHOWN_FINDINGS
    end = f"      ... and {more:,} more; all" if more > 0 else "      All"
    try:
        list_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        where = f"could not be written to {printable(str(list_file))} ({error.strerror})."
    else:
        where = f"are in {printable(str(list_file))}"
    return f"{shown}\n{end} {where}"


def count(number: int, noun: str) -> str:
    """`1 label`, `1,234 labels`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
