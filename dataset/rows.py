"""The state of one ingest in SQLite: what is listed, what is done, what the numbers depend on.

SQLite keeps a million rows out of memory, and its commits survive a power cut.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.files import sync_directory
from common.names import IMAGE_SUFFIXES, encodable, identifier
from common.terminal import printable
from gcs import NO_CRC32C, ListedObject

TRAIN, VAL = 0, 1
SPLITS = {TRAIN: "training", VAL: "validation"}
PENDING, DONE, FAILED = 0, 1, 2
ROWS_PER_QUERY = 1000
SCHEMA = """
CREATE TABLE options (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE skipped (kind TEXT PRIMARY KEY, objects INTEGER NOT NULL, example TEXT NOT NULL);
CREATE TABLE listed (
    split INTEGER NOT NULL, object TEXT NOT NULL, identifier TEXT NOT NULL,
    size INTEGER NOT NULL, crc32c INTEGER NOT NULL, generation INTEGER NOT NULL
);
"""
ROWS = """
CREATE TABLE rows (
    row INTEGER PRIMARY KEY, split INTEGER NOT NULL, object TEXT NOT NULL,
    identifier TEXT NOT NULL, size INTEGER NOT NULL, crc32c INTEGER NOT NULL,
    generation INTEGER NOT NULL, status INTEGER NOT NULL DEFAULT 0,
    imagenet_class INTEGER, reason TEXT
);
INSERT INTO rows (row, split, object, identifier, size, crc32c, generation)
    SELECT row_number() OVER (ORDER BY split, object) - 1, * FROM listed;
DROP TABLE listed;
"""


class Row(NamedTuple):
    """One image: its row in the arrays and what the listing says of its object."""

    row: int
    listed: ListedObject


class Outcome(NamedTuple):
    """What became of one row: its ImageNet class, or the reason why it failed."""

    row: int
    imagenet_class: int | None
    reason: str | None


class Counts(NamedTuple):
    """Images of one split, or of both."""

    images: int
    size: int  # bytes
    done: int
    failed: int


class State:
    """The rows of one ingest in SQLite.

    Made by `create` and `add`, then `number_rows`; afterwards rows change only by `record`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")

    @classmethod
    def create(cls, path: Path) -> State:
        """A new, empty state; what was there is removed."""
        remove_state(path)
        state = cls(path)
        state._db.executescript(SCHEMA)
        return state

    @property
    def directory(self) -> Path:
        """The work directory."""
        return self.path.parent

    @property
    def index_id(self) -> str:
        """The UUID in the names of everything that this ingest uploads."""
        return self.option("index_id") or ""

    def close(self) -> None:
        self._db.close()

    def move(self, path: Path) -> State:
        """Close this, rename its file, and open it there."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.close()
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        os.replace(self.path, path)
        sync_directory(path.parent)
        return State(path)

    def add(self, split: int, objects: Iterable[ListedObject]) -> None:
        """Add a page of a listing: images become rows, everything else is counted by kind."""
        images, others = [], []
        for o in objects:
            if not encodable(o.name):
                others.append(("name that is no valid text", printable(o.name)))
            elif o.name.endswith(IMAGE_SUFFIXES):
                images.append((split, o.name, identifier(o.name), *o[1:]))
            else:
                others.append((_kind(o.name), o.name))
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?)", images)
            self._db.executemany(
                "INSERT INTO skipped VALUES (?, 1, ?) "
                "ON CONFLICT (kind) DO UPDATE SET objects = objects + 1",
                others,
            )

    def number_rows(self) -> None:
        """Fix the row order: training images sorted by object name, then validation likewise."""
        self._db.executescript(ROWS)

    def duplicates(self) -> Iterator[tuple[str, list[str]]]:
        """Each identifier that several objects share, with those objects."""
        groups = self._db.execute(
            "SELECT identifier FROM rows GROUP BY identifier HAVING count(*) > 1 "
            "ORDER BY identifier"
        )
        for (name,) in groups.fetchall():
            objects = self._db.execute(
                "SELECT object FROM rows WHERE identifier = ? ORDER BY row", (name,)
            )
            yield name, [o for (o,) in objects]

    def longer_than(self, identifier_length: int, object_length: int) -> list[str]:
        """Objects whose identifier or name has more characters than the server takes."""
        return [
            name
            for (name,) in self._db.execute(
                "SELECT object FROM rows WHERE length(identifier) > ? OR length(object) > ? "
                "ORDER BY row",
                (identifier_length, object_length),
            )
        ]

    def without_crc32c(self) -> list[str]:
        """Images whose checksum the listing does not give, in row order."""
        query = "SELECT object FROM rows WHERE crc32c = ? ORDER BY row"
        return [name for (name,) in self._db.execute(query, (NO_CRC32C,))]

    def skipped(self) -> list[tuple[str, int, str]]:
        """What is not taken as an image: kind (".JPG", ".txt"), how many, and one of them."""
        return self._db.execute("SELECT * FROM skipped ORDER BY objects DESC, kind").fetchall()

    def counts(self, split: int | None = None) -> Counts:
        """Images, bytes, done and failed rows of one split, or of both."""
        which = (TRAIN, VAL) if split is None else (split,)
        values = self._db.execute(
            "SELECT count(*), total(size), total(status = 1), total(status = 2) FROM rows "
            f"WHERE split IN ({', '.join('?' * len(which))})",
            which,
        ).fetchone()
        return Counts(*(int(value) for value in values))

    def option(self, name: str) -> str | None:
        """A recorded option, or None."""
        found = self._db.execute("SELECT value FROM options WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def set_options(self, options: dict[str, str]) -> None:
        """Record options, durably."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO options VALUES (?, ?)", options.items())

    @property
    def is_registered(self) -> bool:
        """Whether the server was told of this index."""
        return self.option("registered") is not None

    def mark_registered(self) -> None:
        self.set_options({"registered": "yes"})

    @property
    def is_abandoned(self) -> bool:
        """Whether a --restart has begun to delete what belongs to this state."""
        return self.option("abandoned") is not None

    def mark_abandoned(self) -> None:
        self.set_options({"abandoned": "yes"})

    def first(self, split: int) -> Row | None:
        """The first image of a split that is not an empty file, or None."""
        return next(self._rows("split = ? AND size > 0", (split,), "LIMIT 1"), None)

    def has_pending(self) -> bool:
        """Whether any row is still to embed."""
        return next(self._rows("status = 0", (), "LIMIT 1"), None) is not None

    def pending(self) -> Iterator[Row]:
        """The rows still to embed, in order; safe to use while `record` runs."""
        last = -1
        while page := list(
            self._rows("row > ? AND status = 0", (last,), f"LIMIT {ROWS_PER_QUERY}")
        ):
            yield from page
            last = page[-1].row

    def pending_numbers(self, limit: int) -> np.ndarray:
        """The first `limit` rows still to embed: int64, in order."""
        numbers = self._db.execute(
            "SELECT row FROM rows WHERE status = 0 ORDER BY row LIMIT ?", (limit,)
        )
        return np.fromiter((number for (number,) in numbers), np.int64)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """These rows, in order: some hundreds at once."""
        return list(self._rows(f"row IN ({', '.join('?' * len(numbers))})", tuple(numbers), ""))

    def _rows(self, where: str, values: tuple[int, ...], limit: str) -> Iterator[Row]:
        for row, *listed in self._db.execute(
            "SELECT row, object, size, crc32c, generation FROM rows "
            f"WHERE {where} ORDER BY row {limit}",
            values,
        ):
            yield Row(row, ListedObject(*listed))

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Mark rows done or failed, durably. Call it after their vectors are on disk."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(
                "UPDATE rows SET status = ?, imagenet_class = ?, reason = ? WHERE row = ?",
                [
                    (DONE if o.reason is None else FAILED, o.imagenet_class, o.reason, o.row)
                    for o in outcomes
                ],
            )

    def failed(self) -> list[tuple[str, str]]:
        """Objects that could not be embedded, with the reason, in row order."""
        return self._db.execute(
            "SELECT object, reason FROM rows WHERE status = 2 ORDER BY row"
        ).fetchall()

    def retry_failed(self) -> int:
        """Make the failed rows pending again; returns how many."""
        return self._db.execute(
            "UPDATE rows SET status = 0, reason = NULL WHERE status = 2"
        ).rowcount

    def objects(self) -> Iterator[str]:
        """All object names, in row order."""
        for (name,) in self._db.execute("SELECT object FROM rows ORDER BY row"):
            yield name

    def identifiers(self, split: int) -> Iterator[tuple[str, int]]:
        """(identifier, row) of a split, in row order."""
        yield from self._db.execute(
            "SELECT identifier, row FROM rows WHERE split = ? ORDER BY row", (split,)
        )

    def imagenet_classes(self) -> Iterator[tuple[str, int]]:
        """(object name, ImageNet class) of the rows that are done, in row order."""
        yield from self._db.execute(
            "SELECT object, imagenet_class FROM rows WHERE status = 1 ORDER BY row"
        )

    def take_replaced(self, listing: Path) -> int:
        """Accept new versions of objects whose rows failed: they have no numbers yet.

        Only for a listing of the same paths: see `changes`.
        """
        with self._attached(listing):
            replaced = self._db.execute(
                "UPDATE rows SET (size, crc32c, generation, status, reason) = ("
                "    SELECT new.size, new.crc32c, new.generation, 0, NULL FROM new.rows new"
                "    WHERE new.split = rows.split AND new.object = rows.object)"
                " WHERE status = 2 AND EXISTS ("
                "    SELECT 1 FROM new.rows new WHERE new.split = rows.split"
                "    AND new.object = rows.object AND new.generation <> rows.generation)"
            )
            return replaced.rowcount

    def changes(self, listing: Path) -> dict[str, list[str]]:
        """What differs in a newer listing: object names that appeared, vanished or changed.

        A new version of an object whose row failed is no difference: it is what was asked for.
        """
        queries = {
            "appeared": "SELECT split, object FROM new.rows "
            "EXCEPT SELECT split, object FROM main.rows",
            "vanished": "SELECT split, object FROM main.rows "
            "EXCEPT SELECT split, object FROM new.rows",
            "changed": "SELECT split, object FROM main.rows old JOIN new.rows new "
            "USING (split, object) WHERE new.generation <> old.generation AND old.status <> 2",
        }
        with self._attached(listing):
            return {
                what: objects
                for what, query in queries.items()
                if (objects := [name for _, name in self._db.execute(query)])
            }

    @contextlib.contextmanager
    def _attached(self, listing: Path) -> Iterator[None]:
        """Another state, readable as `new` within a `with` block."""
        self._db.execute("ATTACH ? AS new", (str(listing),))
        try:
            yield
        finally:
            self._db.execute("DETACH new")


def remove_state(path: Path) -> None:
    """Remove a database with the files that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _kind(name: str) -> str:
    """What a skipped object is, by its extension: ".JPG", ".txt", "directory", "no extension"."""
    if name.endswith("/"):
        return "directory"
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return f".{extension}" if dot and stem and len(extension) <= 20 else "no extension"
