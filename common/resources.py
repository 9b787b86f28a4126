"""What the process needs from the machine: open files, memory, working disks.

A shortage of these fails every image alike. It stops the run; it is never the fault of an image.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

from common.errors import IngestError, ShortageError

OPEN_FILES = 1 << 20  # no more than this is asked for, where the hard limit is higher
CONTINUE = "the same command then continues where this one stopped."


def raise_open_file_limit() -> int:
    """Raise this process's limit on open files as far as it may; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS refuses more than it can open
        return soft
    return wanted


@contextlib.contextmanager
def shortages() -> Iterator[None]:
    """Raise an exception that reports a shortage within a `with` block as ShortageError."""
    try:
        yield
    except IngestError:
        raise
    except Exception as error:
        if found := shortage(error):
            raise found from error
        raise


def shortage(error: BaseException) -> ShortageError | None:
    """The shortage that an exception or one of its causes reports, or None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ShortageError):
            return cause
        if isinstance(cause, MemoryError):
            return ShortageError(_sentence(errno.ENOMEM))
        if isinstance(cause, OSError) and cause.errno in _ADVICE:
            return ShortageError(_sentence(cause.errno))
        if isinstance(cause, RuntimeError) and "can't start new thread" in str(cause):
            return ShortageError(
                "This process cannot start more threads: raise the limit, such as with "
                f"`ulimit -u`; {CONTINUE}"
            )
        cause = cause.__cause__ or cause.__context__
    return None


_ADVICE = {
    errno.EMFILE: "This process can open up to {limit:,}: raise the limit, such as with "
    "`ulimit -n 65536`;",
    errno.ENFILE: "All programs on this machine together have too many files open: end some;",
    errno.ENOMEM: "There is not enough memory: free some, or lower --decode_workers;",
    errno.EIO: "A disk of this machine cannot be read or written: repair it;",
}


def _sentence(number: int) -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"{os.strerror(number)}. {_ADVICE[number].format(limit=limit)} {CONTINUE}"
