"""Lines of comma-separated values: path,category or path,category,mode."""

from __future__ import annotations

import csv
import io
from collections import defaultdict

from labels.file.collector import DEFAULT_MODE, Collector, category_problem
from labels.file.describe import LabelFileError, quoted
from labels.file.json_stream import PROGRESS_EVERY, Progress

HEADERS = (["path", "category"], ["path", "category", "mode"])
EXPECTED = "expected path,category or path,category,mode"


def collect(text: str, collector: Collector, progress: Progress) -> None:
    """Add all labels of a file in this format to the collector.

    A header line is skipped. An empty mode is POSITIVE.

    Raises:
        LabelFileError: a line is not valid CSV.
    """
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    labelled: defaultdict[str, dict[str, int]] = defaultdict(dict)  # by category: image, line
    read = 0
    try:
        for number, fields in enumerate(lines):
            if fields and (number or [field.strip().lower() for field in fields] not in HEADERS):
                _collect_line(lines.line_num, fields, labelled, collector)
            read += sum(map(len, fields)) + len(fields)
            if number % PROGRESS_EVERY == 0:
                progress(read)
                read = 0
    except csv.Error as error:
        raise LabelFileError([f"line {lines.line_num}: not valid CSV ({error})."]) from None


def _collect_line(
    line: int,
    fields: list[str],
    labelled: dict[str, dict[str, int]],
    collector: Collector,
) -> None:
    """Add the label of one line."""
    report = collector.findings.append
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
