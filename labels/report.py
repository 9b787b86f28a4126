"""What ingest_labels.py prints about labels: tables, mismatches, shortened lists."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.terminal import printable, table
from labels.journal import Entry
from labels.requests import Group, LabelRequest

SHOWN_LINES = 10  # of a list, on the screen; all of them go to a file


def count_asked(requests: Iterable[LabelRequest]) -> Counter[Group]:
    """Labels by category and mode."""
    asked: Counter[Group] = Counter()
    for request in requests:
        asked[request.category, request.mode] += len(request.images)
    return asked


def count_created(requests: Sequence[LabelRequest], entries: Sequence[Entry]) -> Counter[Group]:
    """Labels that the server stored, by category and mode."""
    created: Counter[Group] = Counter()
    for request, entry in zip(requests, entries, strict=True):
        created[request.category, request.mode] += entry.created
    return created


def count_mismatch(asked: Counter[Group], created: Counter[Group], index_known: bool) -> str:
    """The categories of which the server stored more or fewer labels than asked, or ""."""
    wrong = [group for group in asked if created[group] != asked[group]]
    if not wrong:
        return ""
    lines = [
        f"  {printable(category)!r} ({printable(mode)}): "
        f"{created[category, mode]:,} of {asked[category, mode]:,}"
        for category, mode in wrong[:SHOWN_LINES]
    ]
    if len(wrong) > SHOWN_LINES:
        lines.append(f"  and {len(wrong) - SHOWN_LINES:,} more, in the table")
    why = (
        "More labels than asked: two images of the dataset have the same identifier. Fewer: the "
        "server lacks images that are in the index."
        if index_known
        else "The dataset does not have all of these images. Only its index would tell which."
    )
    return "The server stored another number of labels than asked:\n" + "\n".join([*lines, why])


def plan_table(requests: list[LabelRequest]) -> str:
    """Labels and requests by category and mode."""
    per_group = Counter((request.category, request.mode) for request in requests)
    return group_table(("category", "mode", "labels", "requests"), count_asked(requests), per_group)


def group_table(header: tuple[str, ...], first: Counter[Group], second: Counter[Group]) -> str:
    """Two numbers for each category and mode."""
    rows = [
        (
            printable(group[0], 60),
            printable(group[1], 60),
            f"{first[group]:,}",
            f"{second[group]:,}",
        )
        for group in first
    ]
    return table(header, rows, text_columns=2)


def shortened(lines: list[str], list_file: Path, always: bool = False) -> str:
    """The first lines, indented, and the file to which all of them are written.

    The file is written if there are more lines than shown, or `always`.
    """
    shown = "\n".join(f"      {line}" for line in lines[:SHOWN_LINES])
    if len(lines) <= SHOWN_LINES and not always:
        return shown
    more = len(lines) - SHOWN_LINES
    end = f"      ... and {more:,} more; all" if more > 0 else "      All"
    try:
        list_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        where = f"could not be written to {printable(str(list_file))} ({error.strerror})."
    else:
        where = f"are in {printable(str(list_file))}"
    return f"{shown}\n{end} {where}"
