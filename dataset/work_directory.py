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
import os
from collections.abc import Mapping
from pathlib import Path

from common.errors import DiskError
from common.files import locked, refuse_irregular
from dataset.database import remove_database
from dataset.listing import Listing
from dataset.matches import Matches
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
        self._others = contextlib.ExitStack()

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
            self._lock = locked(self.path / LOCK, os.O_CREAT)
        except BlockingIOError as error:
            raise DiskError(
                f"Another ingest is running in {self.path}: wait for it, end it, or choose "
                "another directory with --work_dir."
            ) from error
        except OSError as error:
            raise DiskError(
                f"The work directory {self.path} cannot be written ({error.strerror}): "
                "choose another with --work_dir."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._others.close()
        for database in (self._state, self._listing):
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

    def new_matches(self, name: str) -> Matches:
        """An empty database of matches in this directory."""
        return self._others.enter_context(contextlib.closing(Matches(self.path / name)))

    def forget_state(self) -> None:
        """Remove the state of an earlier run; what it belongs to was deleted."""
        if self._state is not None:
            self._state.close()
            self._state = None
        remove_database(self.path / STATE)

    def draft(self, listing: Listing) -> State:
        """A state with the images of a listing, under a temporary name."""
        state = State.create(self.path / NEW_STATE)
        self._others.enter_context(contextlib.closing(state))
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
