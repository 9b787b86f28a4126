"""The durable state of one ingest: what is listed, what is done, what the numbers depend on.

A work directory holds

    lock            held while an ingest runs; the lock goes with the process
    state.sqlite    this module
    index/, aux/    what is uploaded in the end (index.py)
    failed.json     the images that could not be embedded, with the reason

SQLite keeps a million rows out of memory, and its commits survive a power cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import click

from dataset.rows import State

OURS = ("lock", "state.sqlite", "listing.sqlite")  # with any of them a directory is one of ours


class StateError(click.ClickException):
    """The work directory cannot be used; the message says why and what to do."""


class WorkDirectory:
    """A directory locked for one ingest; a context manager.

    Raises:
        StateError: another ingest holds it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._states: list[State] = []

    def __enter__(self) -> WorkDirectory:
        try:
            self.is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            there = os.listdir(self.path)
            if there and not any(name.startswith(OURS) for name in there):
                raise StateError(
                    f"The directory {self.path} holds other files: name one for this ingest "
                    "with --work_dir."
                )
            self._lock = open(self.path / "lock", "w")  # noqa: SIM115 - open as long as we run
        except OSError as error:
            raise StateError(
                f"The work directory {self.path} cannot be written ({error.strerror}): "
                "choose another with --work_dir."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_the_lock():  # the run that held it removed it just now
                raise BlockingIOError
        except OSError as error:
            self._lock.close()
            raise StateError(
                f"Another ingest is running in {self.path}: wait for it, end it, or choose "
                "another directory with --work_dir."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        for state in self._states:
            state.close()
        self._lock.close()

    def keep(self, state: State) -> State:
        """The state, which is closed with this directory."""
        self._states.append(state)
        return state

    def _is_the_lock(self) -> bool:
        path = self.path / "lock"
        return path.exists() and os.path.samestat(os.fstat(self._lock.fileno()), path.stat())

    def state(self) -> State | None:
        """The state of an earlier run here, if there was one."""
        path = self.path / "state.sqlite"
        return self.keep(State(path)) if path.exists() else None

    def remove_if_unused(self) -> None:
        """Leave nothing behind of a run that only looked."""
        for suffix in ("", "-wal", "-shm"):
            (self.path / f"listing.sqlite{suffix}").unlink(missing_ok=True)
        if self.is_new and os.listdir(self.path) == ["lock"]:
            (self.path / "lock").unlink()
            with contextlib.suppress(OSError):  # interrupted, with a listing still under way
                self.path.rmdir()
