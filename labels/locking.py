"""Opens and locks the journal's file, refusing what is not a regular file."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from common.errors import IngestError
from common.files import file_kind
from common.terminal import printable

FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def lock_existing(path: Path) -> int | None:
    """A descriptor of the locked file, or None if there is no such file.

    Raises:
        IngestError: it is not a regular file, cannot be opened, or is locked.
    """
    return _lock(path, FLAGS)


def lock_new(path: Path) -> int | None:
    """The same for a file that is made if need be; None if another process moved it away."""
    return _lock(path, FLAGS | os.O_CREAT)


def _lock(path: Path, flags: int) -> int | None:
    shown = printable(str(path))
    try:
        if kind := file_kind(os.lstat(path).st_mode):
            raise IngestError(
                f"{shown} is {kind}, where the journal should be: move it away, or name another "
                "directory with --work_dir."
            )
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _cannot_open(shown, error) from error
    try:
        file = os.open(path, flags, 0o666)
    except FileNotFoundError as error:
        if flags & os.O_CREAT:
            raise _cannot_open(shown, error) from error
        return None
    except OSError as error:
        raise _cannot_open(shown, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):
            return file
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise IngestError(
                f"Another ingest_labels.py is sending these labels: it holds {shown}."
            ) from None
        raise _cannot_open(shown, error) from error
    os.close(file)
    return None


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _cannot_open(shown: str, error: OSError) -> IngestError:
    return IngestError(
        f"Cannot write the journal {shown} ({error.strerror}): name a directory for it with "
        "--work_dir."
    )
