"""Files: durable writes, checksums, and what a full or failing disk means for the user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from common.errors import DiskError
from common.terminal import printable

DISK_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS),
    *(errno.EACCES, errno.EPERM),
}
# SQLite's messages about the disk; Python 3.10 does not give its error codes.
DAMAGE_WORDS = ("malformed", "not a database", "no such table")
DISK_WORDS = ("disk is full", "disk I/O error", "readonly database", "unable to open database")
# By the letter that `ls -l` shows.
KINDS = {"d": "a directory", "l": "a symbolic link", "p": "a FIFO", "s": "a socket"}
KINDS |= dict.fromkeys("bc", "a device")
BLOCK_BYTES = 4 << 20  # read at once for a checksum


class FileToUpload(NamedTuple):
    """A file and the object it becomes."""

    path: Path
    object_name: str
    content_type: str
    crc32c: int | None = None  # where it is known already


def is_disk_error(error: BaseException) -> bool:
    """Whether an exception says that the disk is full or fails, and not that a file is damaged."""
    if isinstance(error, sqlite3.DatabaseError):
        return any(words in str(error) for words in DISK_WORDS)
    return isinstance(error, OSError) and error.errno in DISK_ERRNOS


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn errors of a full, failing or damaged disk within a `with` block into one sentence.

    Raises:
        DiskError: what the disk said; every other error passes unchanged.
    """
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.Error) and any(w in str(error) for w in DAMAGE_WORDS):
            raise DiskError(
                f"The state in {directory} is damaged ({error}): remove that directory, or choose "
                "another with --work_dir. What it uploaded stays in the index bucket."
            ) from error
        if not is_disk_error(error):
            raise
        where = (error.filename if isinstance(error, OSError) else None) or directory
        reason = error.strerror if isinstance(error, OSError) else error
        raise DiskError(
            f"Writing to {printable(str(where))} failed ({reason}): free space or repair the disk; "
            "the same command then continues where this one stopped."
        ) from None


def file_kind(mode: int) -> str | None:
    """The kind of a file that is not a regular file, such as "a FIFO"; None for a regular file.

    `mode` comes from os.stat, or from os.lstat to tell symbolic links.
    """
    return KINDS.get(stat.filemode(mode)[0])


def refuse_irregular(path: Path) -> None:
    """Raise DiskError if something else than a regular file has this name, such as a named pipe."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if kind := file_kind(mode):
        raise DiskError(
            f"{printable(str(path))} is {kind}, not a regular file: remove it, or choose another "
            "directory."
        )


def locked(path: Path, flags: int = 0) -> int:
    """A descriptor of the file, locked until it is closed; with the flag O_CREAT it is made.

    Raises:
        BlockingIOError: another process has locked it, or has replaced it meanwhile.
        DiskError: something else than a regular file has this name.
        OSError: it cannot be opened or locked.
    """
    refuse_irregular(path)
    # Without following links, and without waiting for the other end of a named pipe.
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(path, flags, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (path.exists() and os.path.samestat(os.fstat(file), path.stat())):
            raise BlockingIOError
    except BaseException:
        os.close(file)
        raise
    return file


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the `with` block ends without an error.

    So `path` is either the old file or the new one, also after a crash or a power cut. An error
    removes what was written.

    Raises:
        DiskError: something else than a regular file has one of the names.
    """
    temporary = path.with_name(path.name + ".tmp")
    for used in (path, temporary):
        refuse_irregular(used)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_atomically(path: Path, pieces: Iterable[bytes]) -> None:
    """Write these bytes, so that `path` is either the old file or the new one."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.writelines(pieces)


def checksum(*values: object) -> int:
    """CRC-32 of values of SQLite, of which it does not notice every damage itself."""
    return zlib.crc32(repr(values).encode(errors="replace"))


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: without it a power cut can lose a new file."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def crc32c_of_bytes(data: bytes) -> int:
    """CRC-32C (Castagnoli) as an unsigned 32-bit integer."""
    return int(google_crc32c.value(data))


def crc32c_of_file(path: os.PathLike[str], start: int = 0, size: int | None = None) -> int:
    """CRC-32C of `size` bytes of a file from `start` (by default all), read in blocks."""
    checksum = 0
    with open(path, "rb") as file:
        file.seek(start)
        left = os.path.getsize(path) - start if size is None else size
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
            checksum = google_crc32c.extend(checksum, block)
            left -= len(block)
    return int(checksum)
