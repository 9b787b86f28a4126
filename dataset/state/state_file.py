"""The file of one ingest's state: created, checked, opened and moved; and what it says of the run.

SQLite keeps a million rows out of memory, and its commits survive a power cut. The tables and the
checks for damage are in schema.py, the rows in rows.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from common.files import is_disk_error, sync_directory
from common.names import checked_index_id
from dataset.state.schema import (
    OPTIONS_CHECKSUM,
    SCHEMA,
    VERSION,
    damaged_state,
    options_checksum,
    other_version_of,
    problem_of,
    row_checksum,
)

EMBEDDING_S = "embedding_s"  # the option of StateFile.embedding_s

AnyState = TypeVar("AnyState", bound="StateFile")


class StateFile:
    """The open file of a state, with the options that are recorded in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.create_function("checksum", -1, row_checksum, deterministic=True)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")

    @classmethod
    def open_checked(cls: type[AnyState], path: Path) -> AnyState:
        """An earlier state, after a check of all that is in it.

        Raises:
            DamagedState: it is not as it was written.
            OSError, sqlite3.OperationalError: the disk fails.
        """
        state: AnyState | None = None
        other = ""
        try:
            state = cls(path)
            other = other_version_of(state._db)
            problem = other or problem_of(state._db)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:  # text that is not UTF-8
            if is_disk_error(error):
                raise
            problem = str(error)
        if problem:
            if state:
                state.close()
            raise damaged_state(path, problem, other_version=bool(other))
        assert state
        return state

    @classmethod
    def create(cls: type[AnyState], path: Path) -> AnyState:
        """A new, empty state; what was there is removed."""
        remove_state(path)
        state = cls(path)
        state._db.executescript(SCHEMA)
        state._db.execute(f"PRAGMA user_version = {VERSION}")
        state.set_options({})
        return state

    @property
    def directory(self) -> Path:
        """The work directory."""
        return self.path.parent

    @property
    def index_id(self) -> str:
        """The UUID in the names of everything that this ingest uploads.

        Raises:
            ValueError: there is none.
        """
        return checked_index_id(self.option("index_id") or "")

    def close(self) -> None:
        """Close the file; a statement that another thread still runs after Ctrl-C is stopped."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed already
            self._db.interrupt()
        self._db.close()

    def close_whole(self) -> None:
        """Close this with everything in the one file, so that it can be renamed."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.close()

    def move(self: AnyState, path: Path) -> AnyState:
        """Close this, rename its file, and open it there."""
        self.close_whole()
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        os.replace(self.path, path)
        sync_directory(path.parent)
        return type(self)(path)

    def option(self, name: str) -> str | None:
        """A recorded option, or None."""
        found = self._db.execute("SELECT value FROM options WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def options(self) -> dict[str, str]:
        """All recorded options."""
        options = dict(self._db.execute("SELECT name, value FROM options"))
        options.pop(OPTIONS_CHECKSUM, None)
        return options

    def set_options(self, options: dict[str, str]) -> None:
        """Record options, durably."""
        with self._db:
            self._db.execute("BEGIN")
            insert = "INSERT OR REPLACE INTO options VALUES (?, ?)"
            self._db.executemany(insert, options.items())
            self._db.execute(insert, (OPTIONS_CHECKSUM, options_checksum(self.options())))

    @property
    def is_registered(self) -> bool:
        """Whether a server was told of this index."""
        return self.option("registered") is not None

    def servers(self) -> dict[str, str]:
        """The servers that were told of this index: the address of the web page of each, or ""."""
        found: dict[str, str] = json.loads(self.option("servers") or "{}")
        return found

    def mark_registered(self, server: str, *, viewer_url: str | None) -> None:
        servers = json.dumps({**self.servers(), server: viewer_url or ""})
        self.set_options({"registered": "yes", "servers": servers})

    @property
    def outdated_by(self) -> str | None:
        """What changed in the bucket while the server listed it, or None."""
        return self.option("outdated")

    def mark_outdated(self, changes: str) -> None:
        self.set_options({"outdated": changes})

    @property
    def is_abandoned(self) -> bool:
        """Whether a --restart has begun to delete what belongs to this state."""
        return self.option("abandoned") is not None

    def mark_abandoned(self) -> None:
        self.set_options({"abandoned": "yes"})

    @property
    def embedding_s(self) -> float:
        """The seconds that all runs together spent on embedding."""
        return float(self.option(EMBEDDING_S) or 0)

    def add_embedding_time(self, seconds: float) -> None:
        self.set_options({EMBEDDING_S: f"{self.embedding_s + seconds:.3f}"})

    @contextlib.contextmanager
    def limited_to(self, seconds: float) -> Iterator[None]:
        """Stop a statement of the `with` block that runs longer: it raises OperationalError."""
        timer = threading.Timer(seconds, self._db.interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def remove_state(path: Path) -> None:
    """Remove a database with the files that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
