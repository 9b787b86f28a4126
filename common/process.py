"""This process: what Ctrl-C, SIGTERM and a closed terminal do, its open files and memory.

A shortage of open files, memory, threads or working disks fails every image alike. It stops the
run; it is never the fault of an image.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

from common.errors import IngestError, ShortageError
from common.terminal import say

# Exit codes by signal. A shell gives 130 after Ctrl-C and 129 after a closed terminal.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGHUP: 129}
CONTINUES = "Interrupted: the same command continues where this one stopped."
OPEN_FILES = 1 << 20  # no more than this is asked for, where the hard limit is higher
CONTINUE = "the same command then continues where this one stopped."

_received = 0  # the signal that ends the run

T = TypeVar("T")


async def until_interrupted(run: Coroutine[Any, Any, T], message: str = CONTINUES) -> T:
    """The result of `run`; a signal cancels it, then ends the process with message and exit code.

    The run's `finally` blocks record what is done. Threads that wait for the network are not
    waited for. A second signal ends the process without the record: that costs seconds of work,
    like kill -9.
    """
    global _received
    loop, task = asyncio.get_running_loop(), asyncio.create_task(run)
    _received = 0

    def interrupt(number: int, frame: object) -> None:
        global _received
        if _received:
            _leave_interrupted(message)
        _received = number
        loop.call_soon_threadsafe(task.cancel)

    before = {
        number: signal.getsignal(number)
        for number in EXIT_CODES
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # set by nohup
    }
    for number in before:
        # With signal.signal alone, a signal that arrives just before the loop waits is handled
        # only after something else wakes the loop. This makes the signal itself wake it.
        loop.add_signal_handler(number, lambda: None)
        signal.signal(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if _received:
            _leave_interrupted(message)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted_with() -> int:
    """The exit code of the signal that ends this run; 0 if there was none."""
    return EXIT_CODES[signal.Signals(_received)] if _received else 0


def close_database(db: sqlite3.Connection) -> None:
    """Close an SQLite file, unless a signal ends this process.

    Another thread may still run a statement then, and closing would crash the interpreter.
    """
    if not _received:
        db.close()


def _leave_interrupted(message: str) -> NoReturn:
    with contextlib.suppress(OSError):  # the terminal may be closed
        say(message)
    leave(interrupted_with())


def leave(code: int) -> NoReturn:
    """End the process at once, without the interpreter's shutdown.

    The shutdown takes half a second with models in memory, and torch aborts in it while models
    are loading.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or a full disk
            stream.flush()
    os._exit(code)


def in_daemon_thread(name: str, function: Callable[[], T]) -> Future[T]:
    """The result of a function in a thread that the end of the process does not wait for."""
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()  # nobody can cancel it then

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return result


def raise_open_file_limit() -> None:
    """Raise this process's limit on open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS refuses more than it can open
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
        if isinstance(cause, RuntimeError) and "can't start new thread" in str(cause):
            return ShortageError(
                "This process cannot start more threads: raise the limit, such as with "
                f"`ulimit -u`; {CONTINUE}"
            )
        number = cause.errno if isinstance(cause, OSError) else None
        number = errno.ENOMEM if isinstance(cause, MemoryError) else number
        if number in _ADVICE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            advice = _ADVICE[number].format(limit=limit)
            return ShortageError(f"{os.strerror(number)}. {advice} {CONTINUE}")
        cause = cause.__cause__ or cause.__context__
    return None


_ADVICE = {
    errno.EMFILE: "This process can open up to {limit:,}: raise the limit, such as with "
    "`ulimit -n 65536`;",
    errno.ENFILE: "All programs on this machine together have too many files open: end some;",
    errno.ENOMEM: "There is not enough memory: free some, or lower --decode_workers;",
    errno.EIO: "A disk of this machine cannot be read or written: repair it;",
}
