"""The SQLite file of an ingest: opened, checked for damage, moved; and the options recorded in it.

SQLite keeps a million images out of memory, and its commits survive a power cut. What SQLite does
not notice, such as a byte that changes inside a value, is found by checksums: one over the options,
and one per image (images.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from common.errors import DamagedState
from common.files import checksum, is_disk_error, sync_directory
from common.names import checked_index_id
from common.process import close_database
from common.terminal import printable

VERSION = 6  # of the tables, as SQLite's user_version
OPTIONS = "CREATE TABLE options (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
OPTIONS_CHECKSUM = "checksum"  # the option that holds the checksum over all others
SKIPPED = """
CREATE TABLE skipped (
    kind TEXT PRIMARY KEY, objects INTEGER NOT NULL, example TEXT NOT NULL
) WITHOUT ROWID;
"""
EMBEDDING_S = "embedding_s"  # the option of Database.embedding_s
INDEX_ID_ON_DISK = re.compile(rb"index_id([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")

AnyDatabase = TypeVar("AnyDatabase", bound="Database")


class Database:
    """The open file, with the options that are recorded in it."""

    TABLES = OPTIONS  # SQL that makes all tables

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.create_function("checksum", -1, checksum, deterministic=True)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")

    @classmethod
    def open_checked(cls: type[AnyDatabase], path: Path) -> AnyDatabase:
        """An earlier file, after a check of all that is in it.

        Raises:
            DamagedState: it is not as it was written.
            OSError, sqlite3.OperationalError: the disk fails.
        """
        opened: AnyDatabase | None = None
        problem, other_version = None, False
        try:
            opened = cls(path)
            (version,) = opened._db.execute("PRAGMA user_version").fetchone()
            other_version = version not in (0, VERSION)  # no program writes 0
            if other_version:
                problem = f"its tables have version {version}, this program's have {VERSION}"
            else:
                problem = opened._damage()
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:  # text that is not UTF-8
            if is_disk_error(error):
                raise
            problem = str(error)
        if problem is None:
            assert opened
            return opened
        if opened:
            opened.close()
        raise damaged_state(path, problem, other_version=other_version)

    def _damage(self) -> str | None:
        """What is wrong with the content, if anything."""
        (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            return str(found)
        if _schema_of(self._db) != _schema_made_by(self.TABLES):
            return "its tables are not those of an ingest"
        options = self.options()
        if self.option(OPTIONS_CHECKSUM) != _options_checksum(options):
            return "its options do not match their checksum"
        return None

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
        return checked_index_id(self.recorded("index_id"))

    @property
    def bucket(self) -> str:
        """The bucket of the index and the thumbnails. Raises ValueError: there is none."""
        return self.recorded("bucket")

    def close(self) -> None:
        """Close the file, if no other thread can use it."""
        close_database(self._db)

    def move(self: AnyDatabase, path: Path) -> AnyDatabase:
        """Close this, rename its file, and open it there."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # everything is in the one file
        self.close()
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        os.replace(self.path, path)
        sync_directory(path.parent)
        return type(self)(path)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction: all of the `with` block is in the file, or nothing."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _column(self, query: str, *values: object) -> Iterator[Any]:
        """The one column of the rows that a query finds."""
        return (value for (value,) in self._db.execute(query, values))

    def option(self, name: str) -> str | None:
        """A recorded option, or None."""
        found = self._db.execute("SELECT value FROM options WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def recorded(self, name: str) -> str:
        """An option that every ingest records. Raises ValueError: this one did not."""
        value = self.option(name)
        if value is None:
            raise ValueError(f"no {name} is recorded")
        return value

    def options(self) -> dict[str, str]:
        """All recorded options."""
        options = dict(self._db.execute("SELECT name, value FROM options"))
        options.pop(OPTIONS_CHECKSUM, None)
        return options

    def set_options(self, options: Mapping[str, str | None]) -> None:
        """Record options, durably; None removes one."""
        with self._transaction():
            self._set_options(options)

    def _set_options(self, options: Mapping[str, str | None]) -> None:
        """The same within a transaction."""
        for name, value in options.items():
            if value is None:
                self._db.execute("DELETE FROM options WHERE name = ?", (name,))
            else:
                self._db.execute("INSERT OR REPLACE INTO options VALUES (?, ?)", (name, value))
        self._db.execute(
            "INSERT OR REPLACE INTO options VALUES (?, ?)",
            (OPTIONS_CHECKSUM, _options_checksum(self.options())),
        )

    @property
    def is_registered(self) -> bool:
        """Whether a server was told of this index."""
        return self.option("registered") is not None

    def servers(self) -> dict[str, str | None]:
        """The servers that were told of this index, and the address of the web page of each."""
        found: dict[str, str | None] = json.loads(self.option("servers") or "{}")
        return found

    def mark_registered(
        self, server: str, *, viewer_url: str | None, outdated: str | None = None
    ) -> None:
        """Record a server; `outdated` says what changed in the bucket while it listed that."""
        servers = json.dumps({**self.servers(), server: viewer_url})
        self.set_options({"registered": "yes", "servers": servers, "outdated": outdated})

    @property
    def outdated_by(self) -> str | None:
        """What changed in the bucket while the server listed it, or None."""
        return self.option("outdated")

    @property
    def is_abandoned(self) -> bool:
        """Whether a --restart has begun to delete what belongs to this ingest."""
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


def _schema_of(db: sqlite3.Connection) -> list[tuple[str, str]]:
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    return db.execute(query).fetchall()


@functools.cache
def _schema_made_by(tables: str) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(tables)
        return _schema_of(db)


class Scratch:
    """A new database for one run: quick, of no use after a crash, and removed by `close`."""

    TABLES: str  # SQL that makes them

    def __init__(self, path: Path) -> None:
        remove_database(path)
        self.path = path
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(self.TABLES)

    def close(self) -> None:
        close_database(self._db)
        remove_database(self.path)


def remove_database(path: Path) -> None:
    """Remove a database with the files that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def damaged_state(path: Path, reason: str, *, other_version: bool = False) -> DamagedState:
    """The error for a state that cannot be used; `reason` says what is wrong with it."""
    index_id = index_id_on_disk(path)
    uploaded = f"its index id is {index_id}" if index_id else "its index id cannot be read"
    shown = printable(reason)
    what, ways_out = "is damaged", "remove that directory, or choose another with --work_dir"
    if other_version:
        what = "was written by another version of this program"
        ways_out = f"continue it with that version, or start over: {ways_out}"
    return DamagedState(
        f"The state in {path.parent} {what} ({shown}): {ways_out}. What it uploaded stays in the "
        f"index bucket; {uploaded}.",
        shown,
    )


def index_id_on_disk(path: Path) -> str | None:
    """The index id in the bytes of a state's files, however damaged they are; None without one."""
    for suffix in ("", "-wal"):
        with (
            contextlib.suppress(OSError, ValueError),  # it is not there, or empty
            open(f"{path}{suffix}", "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if found := INDEX_ID_ON_DISK.search(content):
                return found[1].decode()
    return None


def options_on_disk(path: Path) -> dict[str, str]:
    """The options in the file of an ingest that is not running; nothing is written beside it.

    What a killed run left in the -wal file is not read.

    Raises:
        ValueError, sqlite3.Error: it is damaged, or another version wrote it.
    """
    address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise ValueError(f"its tables have version {version}, this program's have {VERSION}")
        options = dict(db.execute("SELECT name, value FROM options"))
    if options.pop(OPTIONS_CHECKSUM, None) != _options_checksum(options):
        raise ValueError("its options do not match their checksum")
    return options


def _options_checksum(options: dict[str, str]) -> str:
    return str(checksum(*sorted(options.items())))
