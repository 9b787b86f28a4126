"""Lines of comma-separated values: path,category or path,category,mode."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict

from common.terminal import printable
from labels.file.checks import DEFAULT_MODE, Collector, LabelFileError, category_problem, quoted
from labels.file.text import Progress

HEADERS = (["path", "category"], ["path", "category", "mode"])
EXPECTED = "expected path,category or path,category,mode"
OTHER_COLUMNS = {  # words of a header with other columns, or in another order
    *("category", "categories", "class", "label", "labels", "mode", "value", "tag"),
    *("file", "filename", "file_name", "id", "identifier", "image", "image_id", "image_path"),
    *("name", "path", "split", "url"),
}
JSON_START = re.compile(r'\s*[{\[]\s*["{\[]')


def collect(text: str, collector: Collector, progress: Progress) -> None:
    """Add all labels of a file in this format to the collector.

    A header line is skipped. An empty mode is POSITIVE.

    Raises:
        LabelFileError: a line is not valid CSV, or the file is of another kind.
    """
    if JSON_START.match(text):
        raise LabelFileError("this is JSON, not CSV: use --format forager or --format coco.")
    file = io.StringIO(text, newline="")
    lines = csv.reader(file, strict=True, skipinitialspace=True)
    labelled: defaultdict[str, dict[str, int]] = defaultdict(dict)  # by category: image, line
    try:
        for number, fields in enumerate(lines):
            if fields and (number or not _is_header(fields)):
                _collect_line(lines.line_num, fields, labelled, collector)
            progress(file.tell())
    except csv.Error as error:
        raise LabelFileError(f"line {lines.line_num}: not valid CSV ({error}).") from None


def _is_header(first: list[str]) -> bool:
    """Whether the first line names the columns.

    Raises:
        LabelFileError: it names other columns, or has another separator than a comma.
    """
    names = [field.strip().lower() for field in first]
    if names in HEADERS:
        return True
    if len(names) > 1 and OTHER_COLUMNS.issuperset(names):
        raise LabelFileError(f"line 1: {EXPECTED} as columns, got {printable(','.join(first))}.")
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(first) == 1 and separator in first[0]:
            raise LabelFileError(f"line 1: {EXPECTED} with commas, got {name}.")
    return False


def _collect_line(
    line: int,
    fields: list[str],
    labelled: dict[str, dict[str, int]],
    collector: Collector,
) -> None:
    """Add the label of one line."""
    report = collector.report
    where = f"line {line}"
    if len(fields) not in (2, 3):
        found = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
        report(f"{where}: {EXPECTED}, got {found}.")
        return
    path, category, mode = (*fields, "")[:3]
    mode = mode or DEFAULT_MODE
    image = collector.image(path, where, once=False)
    problem = category_problem(category) or category_problem(mode)
    if problem:
        report(f"{where}: {problem}.")
        return
    first = labelled[category].setdefault(image, line)
    if first != line:
        report(
            f"lines {first} and {line}: two annotations of the category {quoted(category)} on one "
            "image."
        )
    collector.groups[category, mode].append(image)
