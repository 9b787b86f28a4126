"""Reads a label file in one of the formats."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from tqdm import tqdm

from labels.file import csv_format, json_formats
from labels.file.checks import Collector, LabelFileError, Labels
from labels.file.text import Progress, decode, read_bytes


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
        json_formats.collect_coco(text, collector, progress, as_labels)
    elif file_format == "csv":
        csv_format.collect(text, collector, progress)
    else:
        json_formats.collect_forager(text, collector, progress)
    return collector.result()
