"""The directory of one ingest on disk: locked while it runs, and the databases in it.

lock            held while an ingest runs; the lock is released with the process
state.sqlite    rows and options (rows.py)
listing.sqlite  the same, of a listing that is being checked
reuse.sqlite    the rows of other indexes that may be reused, during a run (matches.py)
relisting/      state and index/ of a newer listing, while unchanged rows are copied into them
relisted/       the same, complete: it takes the place of state and index/
index/, aux/    what is uploaded in the end (arrays.py, lists.py)
failed.json     the images that could not be embedded, with the reason
report.json     what the last run did (docs/report.md)
trial.json      the same of the last trial; trial/ is there while it runs
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import Protocol, TypeVar

from common.errors import DiskError
from common.files import refuse_irregular, sync_directory
from dataset.state.rows import State
from dataset.state.state_file import remove_state

STATE, LISTING = "state.sqlite", "listing.sqlite"
REUSE = "reuse.sqlite"
RELISTING, RELISTED = "relisting", "relisted"
INDEX = "index"
REPORT, TRIAL_REPORT = "report.json", "trial.json"
TRIAL = "trial"
# A directory with any of them is one of an ingest.
OURS = ("lock", STATE, LISTING, REUSE, REPORT, TRIAL)


class Closable(Protocol):
    def close(self) -> None: ...


Database = TypeVar("Database", bound=Closable)


class WorkDirectory:
    """A directory locked for one ingest; a context manager, which closes the databases it opened.

    A run that begins nothing leaves no more behind than its report.

    Raises:
        DiskError: another ingest holds it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: State | None = None
        self._listing: State | None = None
        self._others: list[Closable] = []

    def __enter__(self) -> WorkDirectory:
        try:
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            there = os.listdir(self.path)
            if there and not any(name.startswith(OURS) for name in there):
                raise DiskError(
                    f"The directory {self.path} has files that are not of an ingest: choose "
                    "another with --work_dir."
                )
            for name in OURS:
                refuse_irregular(self.path / name)
            # Without following links, and without waiting for the other end of a named pipe.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._lock = os.open(self.path / "lock", flags, 0o644)
        except OSError as error:
            raise DiskError(
                f"The work directory {self.path} cannot be written ({error.strerror}): "
                "choose another with --work_dir."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_the_lock():  # the run that held it has just removed it
                raise BlockingIOError
        except OSError as error:
            os.close(self._lock)
            raise DiskError(
                f"Another ingest is running in {self.path}: wait for it, end it, or choose "
                "another directory with --work_dir."
            ) from error
        try:
            self._take_relisted()
            _remove(self.path / RELISTING)
        except OSError as error:
            os.close(self._lock)
            raise DiskError(
                f"The work directory {self.path} cannot be written ({error.strerror}): "
                "repair the disk; the same command then continues where this one stopped."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        for state in (self._state, self._listing):
            if state is not None:
                state.close()
        for database in self._others:
            database.close()
        remove_state(self.path / LISTING)
        remove_state(self.path / REUSE)
        with contextlib.suppress(OSError):
            _remove(self.path / RELISTING)
        if self._is_new and set(os.listdir(self.path)) <= {"lock", REPORT, TRIAL_REPORT}:
            (self.path / "lock").unlink()
            # It has a report, or after Ctrl-C a listing is still under way.
            with contextlib.suppress(OSError):
                self.path.rmdir()
        os.close(self._lock)

    def _is_the_lock(self) -> bool:
        path = self.path / "lock"
        return path.exists() and os.path.samestat(os.fstat(self._lock), path.stat())

    def state(self) -> State | None:
        """The state of an earlier run here, if there was one."""
        path = self.path / STATE
        if self._state is None and path.exists():
            self._state = State.open_checked(path)
        return self._state

    def new_listing(self) -> State:
        """An empty state for a listing that is to be checked."""
        if self._listing is not None:
            self._listing.close()
        self._listing = State.create(self.path / LISTING)
        return self._listing

    def keep_open(self, database: Database) -> Database:
        """Close another database of this directory when this is left; returns it."""
        self._others.append(database)
        return database

    def forget_state(self) -> None:
        """Remove the state of an earlier run; what it belongs to was deleted."""
        if self._state is not None:
            self._state.close()
            self._state = None
        remove_state(self.path / STATE)

    def begin_relisting(self, listing: State) -> State:
        """Move a listing to a directory of its own, in which the rows of the state are copied."""
        directory = self.path / RELISTING
        _remove(directory)
        directory.mkdir()
        self._listing = listing.move(directory / STATE)
        return self._listing

    def adopt_relisting(self) -> State:
        """Make the listing in that directory, with its arrays, the state of this directory.

        A process that ends before the first rename leaves the earlier state as it is. After that,
        the next run makes the other renames.
        """
        for state in (self._listing, self._state):
            assert state is not None
            state.close_whole()
        os.rename(self.path / RELISTING, self.path / RELISTED)
        sync_directory(self.path)
        self._take_relisted()
        self._state, self._listing = State(self.path / STATE), None
        return self._state

    def _take_relisted(self) -> None:
        relisted = self.path / RELISTED
        if not relisted.exists():
            return
        if (relisted / INDEX).exists():
            _remove(self.path / INDEX)
            os.rename(relisted / INDEX, self.path / INDEX)
            sync_directory(self.path)
        if (relisted / STATE).exists():
            remove_state(self.path / STATE)
            os.rename(relisted / STATE, self.path / STATE)
        _remove(relisted)
        sync_directory(self.path)

    def adopt(self, listing: State) -> State:
        """Make a listing the state of this directory, instead of an earlier one."""
        if self._state is not None:
            self._state.close()
        self._state, self._listing = listing.move(self.path / STATE), None
        return self._state


def _remove(directory: Path) -> None:
    """Remove a directory with all that is in it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
