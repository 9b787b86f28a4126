"""Reads a label file in one of the formats; here are the lines of path,category[,mode]."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from tqdm import tqdm

from common.terminal import printable
from labels.file.checks import (
    DEFAULT_MODE,
    Collector,
    LabelFileError,
    Labels,
    category_problem,
    quoted,
)
from labels.file.json_formats import collect_coco, collect_forager
from labels.file.text import Progress, decode, read_bytes

HEADERS = (["path", "category"], ["path", "category", "mode"])
EXPECTED = "expected path,category or path,category,mode"
OTHER_COLUMNS = {  # words of a header with other columns, or in another order
    *("category", "categories", "class", "label", "labels", "mode", "value", "tag"),
    *("file", "filename", "file_name", "id", "identifier", "image", "image_id", "image_path"),
    *("name", "path", "split", "url"),
}
SEPARATOR = re.compile(r'\ufeff?"?sep=(.)"?(?=[\r\n]|$)', re.IGNORECASE)
JSON_START = re.compile(r'\s*[{\[]\s*["{\[]')


def read_label_file(
    path: Path, file_format: str, as_labels: bool = False, allowed_modes: Collection[str] = ()
) -> tuple[Labels, str]:
    """The labels of a file, and its SHA-256 in hexadecimal.

    Args:
        file_format: forager, coco or csv.
        as_labels: read boxes as labels of whole images (coco only).
        allowed_modes: modes that are right although they are nearly built-in ones.

    Raises:
        OSError: the file cannot be read.
        LabelFileError: with everything that is wrong with it.
    """
    try:
        data = read_bytes(path, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        digest = hashlib.sha256(data).hexdigest()
        text = decode(data)
        del data
        with tqdm(desc="Reading", total=len(text), unit="B", unit_scale=True, disable=None) as bar:
            labels = read_labels(
                text, file_format, as_labels, allowed_modes, lambda at: bar.update(at - bar.n)
            )
        return labels, digest
    except MemoryError:
        raise LabelFileError("it does not fit into memory: split it.") from None


def read_labels(
    text: str,
    file_format: str = "forager",
    as_labels: bool = False,
    allowed_modes: Collection[str] = (),
    progress: Progress = lambda characters: None,
) -> Labels:
    """The labels of a text in one of the formats.

    Raises:
        LabelFileError: with everything that is wrong with it.
    """
    if not text.strip():
        raise LabelFileError("the file is empty.")
    collector = Collector(allowed_modes)
    if file_format == "coco":
        collect_coco(text, collector, progress, as_labels)
    elif file_format == "csv":
        collect_csv(text, collector, progress)
    else:
        collect_forager(text, collector, progress)
    return collector.result()


def collect_csv(text: str, collector: Collector, progress: Progress) -> None:
    """Add all labels of a file in this format to the collector.

    A header line is skipped. An empty mode is POSITIVE.

    Raises:
        LabelFileError: a line is not valid CSV, or the file is of another kind.
    """
    if JSON_START.match(text):
        raise LabelFileError("this is JSON, not CSV: use --format forager or --format coco.")
    text = _without_separator(text)
    file = io.StringIO(text, newline="")
    lines = csv.reader(file, strict=True, skipinitialspace=True)
    labelled: defaultdict[str, dict[str, int]] = defaultdict(dict)  # by category: image, line
    is_first, begin = True, 1  # the line in which the next fields begin
    try:
        for fields in lines:
            if fields and not (is_first and _is_header(fields)):
                _collect_line(lines.line_num, fields, labelled, collector)
            is_first = is_first and not fields
            begin = lines.line_num + 1
            progress(file.tell())
    except csv.Error as error:
        raise LabelFileError(_csv_problem(str(error), begin, lines.line_num)) from None


def _without_separator(text: str) -> str:
    """The text, with an empty first line where that says the separator to a spreadsheet: sep=,

    Raises:
        LabelFileError: it is no comma.
    """
    found = SEPARATOR.match(text)
    if found is None:
        return text
    if found[1] != ",":
        raise LabelFileError(
            f"line 1: the fields are separated by {found[1]!r}: save the file with commas."
        )
    return text[found.end() :]


def _csv_problem(reason: str, begin: int, line: int) -> str:
    """What is wrong where the csv module stops, in fields that begin in one line and end there."""
    if reason == "unexpected end of data":
        return f"line {begin}: a quote opens a field there and has no end: close it, or delete it."
    if "expected after" in reason:
        return (
            f'line {line}: text follows the quote that closes a field: write "" for a quote within '
            "a field in quotes."
        )
    return f"line {line}: not valid CSV ({reason})."


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
        more = " Write a field that has a comma in double quotes." if len(fields) > 3 else ""
        report(f"{where}: {EXPECTED}, got {found}.{more}")
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
