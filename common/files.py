"""What a disk can do to a run: fill up, fail, lose the names of new files in a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import click

from common.terminal import printable

DISK_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS),
    *(errno.EACCES, errno.EPERM),
}
# What SQLite says of the disk; Python 3.10 does not hand out its error codes.
DAMAGE_WORDS = ("malformed", "not a database", "no such table")
DISK_WORDS = ("disk is full", "disk I/O error", "readonly database", "unable to open database")


class DiskError(click.ClickException):
    """The disk is full, fails or holds damaged files; the message says what to do."""


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Make a sentence of a full, failing or damaged disk, met within a `with` block.

    Raises:
        DiskError: what the disk said; every other error goes on as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        where, reason = error.filename or directory, error.strerror
    except sqlite3.DatabaseError as error:
        where, reason = directory, str(error)
        if not any(words in reason for words in DAMAGE_WORDS + DISK_WORDS):
            raise
        if any(words in reason for words in DAMAGE_WORDS):
            raise DiskError(
                f"The state in {directory} is damaged ({error}): remove that directory, or choose "
                "another with --work_dir. What it uploaded stays in the index bucket."
            ) from error
    else:
        return
    raise DiskError(
        f"Writing to {printable(str(where))} failed ({reason}): make room or mend it; the same "
        "command then continues where this one stopped."
    ) from None


def sync_directory(path: Path) -> None:
    """Make names in a directory durable: without it a power cut can lose a new file."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
