"""The directory of one ingest on disk: locked while it runs, and the databases in it.

lock            held while an ingest runs; the lock is released with the process
state.sqlite    images and options (state.py)
listing.sqlite  the newest listing, during a run (listing.py)
reuse.sqlite    images of other indexes that may be copied, during a run (matches.py)
copies.sqlite   the same of images that are here under other names
index/, aux/    what is uploaded in the end (arrays.py, lists.py)
failed.json     the images that could not be embedded, with the reason
report.json     what the last run did (docs/report.md)
trial.json      the same of the last trial; trial/ is there while it runs
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from common.errors import DiskError
from common.files import refuse_irregular
from dataset.database import remove_database
from dataset.listing import Listing
from dataset.state import State

LOCK = "lock"
STATE, LISTING, REUSE = "state.sqlite", "listing.sqlite", "reuse.sqlite"
NEW_STATE, COPIES = "state.sqlite.new", "copies.sqlite"
SCRATCH = (LISTING, REUSE, COPIES, NEW_STATE)  # of no use after a run
DIRECTORIES = ("index", "aux")
REPORT, TRIAL_REPORT = "report.json", "trial.json"
TRIAL = "trial"
# A directory with any of them is one of an ingest.
OURS = (LOCK, STATE, LISTING, REUSE, REPORT, TRIAL)


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
        self._listing: Listing | None = None
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
            for name in DIRECTORIES:
                if (self.path / name).is_symlink():
                    raise DiskError(
                        f"{self.path / name} is a symbolic link, not a directory: remove it, or "
                        "choose another directory with --work_dir."
                    )
            # Without following links, and without waiting for the other end of a named pipe.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._lock = os.open(self.path / LOCK, flags, 0o644)
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
        return self

    def __exit__(self, *_: object) -> None:
        for database in (self._state, self._listing, *self._others):
            if database is not None:
                database.close()
        for name in SCRATCH:
            remove_database(self.path / name)
        if self._is_new and set(os.listdir(self.path)) <= {LOCK, REPORT, TRIAL_REPORT}:
            (self.path / LOCK).unlink()
            # It has a report, or after Ctrl-C a listing is still under way.
            with contextlib.suppress(OSError):
                self.path.rmdir()
        os.close(self._lock)

    def _is_the_lock(self) -> bool:
        path = self.path / LOCK
        return path.exists() and os.path.samestat(os.fstat(self._lock), path.stat())

    def state(self) -> State | None:
        """The state of an earlier run here, if there was one."""
        path = self.path / STATE
        if self._state is None and path.exists():
            self._state = State.open_checked(path)
        return self._state

    def new_listing(self) -> Listing:
        """An empty listing, in the place of the last one."""
        if self._listing is not None:
            self._listing.close()
        self._listing = Listing(self.path / LISTING)
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
        remove_database(self.path / STATE)

    def draft(self, listing: Listing) -> State:
        """A state with the images of a listing, under a temporary name."""
        state = self.keep_open(State.create(self.path / NEW_STATE))
        state.take(listing.path)
        return state

    def begin(self, listing: Listing, options: Mapping[str, str | None]) -> State:
        """Begin with the images of a listing, in the place of an earlier run if there was one."""
        new = self.draft(listing)
        new.set_options(options)
        if self._state is not None:
            self._state.close()
        self._state = new.move(self.path / STATE)
        return self._state
