"""Exports images as text: object names, CSV, or a label file for ingest_labels.py.

The page sends it to the browser; `python -m local_forager export` writes it.
"""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator

from common.names import MAX_TEXT_LENGTH, identifier, text_problem
from local_forager.indexes.index import POSITIVE, Index, LabelTable, class_name
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
        lines: Iterator[str] = (name_line(index.names[row]) + "\n" for row in rows)
    elif name == "csv":
        lines = csv_lines(index, table, rows)
    else:
        lines = label_lines(index, rows, label)
    while piece := "".join(itertools.islice(lines, LINES_A_PIECE)):
        yield piece


def name_line(name: str) -> str:
    """An object name in one line: a line break is a backslash and n or r."""
    return name.replace("\n", "\\n").replace("\r", "\\r")


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
