"""Chosen images of a dataset as text: object names, CSV, or a label file for ingest_labels.py."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from common.names import MAX_TEXT_LENGTH, identifier, text_problem
from local_forager.indexes.imagenet import class_name
from local_forager.indexes.index import Index
from local_forager.indexes.label_table import POSITIVE, LabelTable

CSV_HEADER = (
    *("object", "split", "labels", "imagenet_class", "imagenet_name"),
    *("width", "height", "failed"),
)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet may execute such a cell
LINES_A_PIECE = 1_000


class ExportProblem(ValueError):
    """Why nothing can be exported, in one sentence."""


class Annotation(NamedTuple):
    """The label that a label file gives to each image."""

    category: str
    mode: str


def annotation(category: str, mode: str) -> Annotation:
    """The label to export; ExportProblem if Forager could not store it."""
    for what, text in (("category", category), ("mode", mode)):
        if not text.strip():
            raise ExportProblem(f"A label file needs a {what}.")
        if len(text) > MAX_TEXT_LENGTH:
            raise ExportProblem(f"The {what} is longer than {MAX_TEXT_LENGTH} characters.")
        if problem := text_problem(text):
            raise ExportProblem(f"The {what} {problem}.")
    return Annotation(category, mode)


def export(
    name: str, index: Index, table: LabelTable, rows: Iterable[int], label: Annotation | None
) -> Iterator[str]:
    """The text of format `name` in pieces; a label file needs `label`."""
    if name == "labels":
        if label is None:
            raise ExportProblem("A label file needs a category.")
        lines = label_lines(index, rows, label)
    else:
        lines = LINES[name](index, table, rows)
    piece: list[str] = []
    for line in lines:
        piece.append(line)
        if len(piece) == LINES_A_PIECE:
            yield "".join(piece)
            piece.clear()
    yield "".join(piece)


def name_lines(index: Index, table: LabelTable, rows: Iterable[int]) -> Iterator[str]:
    """An object name per line. A line break within a name is written as a backslash and n or r."""
    for row in rows:
        yield index.names[row].replace("\n", "\\n").replace("\r", "\\r") + "\n"


def csv_lines(index: Index, table: LabelTable, rows: Iterable[int]) -> Iterator[str]:
    """A row per image; labels as category=MODE, separated by semicolons.

    A cell that a spreadsheet could take for a formula begins with an apostrophe.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")

    def line(cells: Iterable[str]) -> str:
        file.seek(0)
        file.truncate()
        writer.writerow(f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell for cell in cells)
        return file.getvalue()

    yield line(CSV_HEADER)
    for row in rows:
        number = int(index.classes[row])
        labels = [f"{one['category']}={one['mode']}" for one in table.of_row.get(row, [])]
        yield line(
            (
                index.names[row],
                index.split(row),
                "; ".join(labels),
                str(number) if number >= 0 else "",
                class_name(number) if number >= 0 else "",
                *map(str, index.pixels(row) or ("", "")),
                "yes" if index.failed[row] else "",
            )
        )


def label_lines(index: Index, rows: Iterable[int], label: Annotation) -> Iterator[str]:
    """A label file that gives each image this label. Images with one identifier count once."""
    one = {"category": label.category}
    if label.mode != POSITIVE:
        one["mode"] = label.mode
    value = json.dumps([one])
    seen: set[str] = set()
    yield "{"
    for row in rows:
        name = index.names[row]
        if (known := identifier(name)) not in seen:
            yield f"{',' if seen else ''}\n{json.dumps(name)}: {value}"
            seen.add(known)
    yield "\n}\n"


LINES: dict[str, Callable[[Index, LabelTable, Iterable[int]], Iterator[str]]] = {
    "names": name_lines,
    "csv": csv_lines,
}
FORMATS = {"names": "txt", "csv": "csv", "labels": "json"}  # format -> suffix of the file
