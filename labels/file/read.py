"""Reads a label file: its bytes, its text, and its labels in one of the formats."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection
from pathlib import Path

from tqdm import tqdm

from common.files import file_kind
from common.terminal import size
from labels.file import coco_format, csv_format, forager_format
from labels.file.collector import Collector, Labels
from labels.file.describe import LabelFileError
from labels.file.json_stream import Progress, place

MEMORY_PER_BYTE = 8  # of the file, at most: its bytes, its text, and the labels


def read_label_file(
    path: Path,
    file_format: str,
    as_labels: bool = False,
    allowed_modes: Collection[str] = (),
    memory_bytes: int | None = None,
) -> tuple[Labels, str]:
    """The labels of a file, and its SHA-256 in hexadecimal.

    Args:
        file_format: forager, coco or csv.
        as_labels: read boxes as labels of whole images (coco only).
        allowed_modes: modes that are right although they are nearly built-in ones.
        memory_bytes: the memory that may be used; by default that of this machine.

    Raises:
        OSError: the file cannot be read.
        LabelFileError: with everything that is wrong with it.
    """
    try:
        with tqdm(
            desc="Reading", unit="B", unit_scale=True, file=sys.stderr, disable=None
        ) as progress:
            data = read_bytes(path, memory_bytes or total_memory())
            digest = hashlib.sha256(data).hexdigest()
            text = decode(data)
            del data
            progress.reset(total=len(text))
            labels = read_labels(text, file_format, as_labels, allowed_modes, progress.update)
            return labels, digest
    except MemoryError:
        raise LabelFileError(["it does not fit into memory: split it."]) from None


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
        raise LabelFileError(["the file is empty."])
    collector = Collector(allowed_modes)
    if file_format == "coco":
        coco_format.collect(text, collector, progress, as_labels)
    elif file_format == "csv":
        csv_format.collect(text, collector, progress)
    else:
        forager_format.collect(text, collector, progress)
    return collector.result()


def read_bytes(path: Path, memory_bytes: int) -> bytes:
    """The bytes of a regular file that is small enough for this memory.

    Raises:
        OSError: the file cannot be read.
        LabelFileError: it is not a regular file, or too large.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(file, "rb") as opened:
        status = os.fstat(file)
        if kind := file_kind(status.st_mode):
            raise LabelFileError([f"it is {kind}: write the labels to a file."])
        limit = memory_bytes // MEMORY_PER_BYTE
        if status.st_size > limit:
            raise LabelFileError(
                [
                    f"it has {size(status.st_size)}, and with {size(memory_bytes)} of memory, "
                    f"files of up to {size(limit)} can be read: split it."
                ]
            )
        return opened.read(status.st_size)


def total_memory() -> int:
    """The memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def decode(data: bytes) -> str:
    """The text of a file's bytes.

    Raises:
        LabelFileError: it is not UTF-8, with the line and column.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise LabelFileError(["the file is UTF-16 or UTF-32 text: save it as UTF-8."])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        line, column = place(before, len(before))
        raise LabelFileError(
            [f"line {line}, column {column}: byte 0x{data[error.start]:02x} is not UTF-8 text."]
        ) from None
