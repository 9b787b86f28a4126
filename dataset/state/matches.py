"""Which rows of other indexes hold what the pending rows of an ingest need: joins in SQLite.

A row matches if its image has the same bytes (size and crc32c), under the same name if there is
such a row, else under any name. So memory does not grow with the number of rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dataset.state.state_file import remove_state

USABLE, FAILED_THERE, OTHERWISE = 0, 1, 2  # what `kind` of a found row is
TABLES = """
CREATE TABLE found (
    source INTEGER NOT NULL, row INTEGER NOT NULL, object TEXT NOT NULL, size INTEGER NOT NULL,
    crc32c INTEGER NOT NULL, imagenet_class INTEGER, width INTEGER, height INTEGER,
    vectors_crc32c INTEGER, kind INTEGER NOT NULL
);
"""
INDEXES = """
CREATE INDEX by_content ON found (size, crc32c, kind, source, row);
CREATE INDEX by_object ON found (object, source);
"""
MATCHES = """
DROP TABLE IF EXISTS matches;
CREATE TABLE matches (
    row INTEGER PRIMARY KEY, identifier TEXT NOT NULL, size INTEGER NOT NULL, found INTEGER NOT NULL
);
"""
UNMATCHED = "r.status = 0 AND NOT EXISTS (SELECT 1 FROM matches m WHERE m.row = r.row)"
SAME = "f.size = r.size AND f.crc32c = r.crc32c AND f.kind = 0 AND f.source = :source"
# INDEXED BY: SQLite would look up the name among all images of the same content.
MATCH = f"""
INSERT INTO matches SELECT row, identifier, size, found FROM (
    SELECT r.row, r.identifier, r.size, coalesce(
        (SELECT f.rowid FROM found f INDEXED BY by_object
            WHERE f.object = r.object AND {SAME} LIMIT 1),
        (SELECT f.rowid FROM found f INDEXED BY by_content WHERE {SAME} ORDER BY f.row LIMIT 1)
    ) AS found FROM ingest.rows r WHERE {UNMATCHED}
) WHERE found IS NOT NULL
"""
OF_KIND = "EXISTS (SELECT 1 FROM found f WHERE f.size = r.size AND f.crc32c = r.crc32c AND f.kind="
REASONS = f"""
SELECT CASE
    WHEN {OF_KIND} {FAILED_THERE}) THEN 'failed'
    WHEN {OF_KIND} {OTHERWISE}) THEN 'otherwise'
    WHEN EXISTS (SELECT 1 FROM found f WHERE f.object = r.object) THEN 'changed'
    ELSE 'new' END, count(*)
FROM ingest.rows r WHERE {UNMATCHED} GROUP BY 1
"""


class Match(NamedTuple):
    """A pending row, and the row of a source that holds what it needs."""

    source: int
    source_row: int
    source_object: str
    row: int
    identifier: str
    imagenet_class: int
    width: int | None
    height: int | None
    vectors_crc32c: int
    origin: str | None = None  # of an earlier listing of the same ingest: Outcome.source there


class Tally(NamedTuple):
    """How many pending rows can be reused, how many bytes their images have, and why others not."""

    reused: dict[int, int]  # rows by source
    size: int  # bytes
    new: int  # of no source
    changed: int  # a source has other bytes under this name
    failed: int  # could not be embedded there, and are tried again
    otherwise: int  # only in sources that were computed otherwise


class Matches:
    """The rows of all sources, and after `match` those that are to be copied; a context manager.

    They are in a database of their own, which is removed in the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        remove_state(path)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        # Nothing here outlives the run.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(TABLES)
        self._sources = 0

    def close(self) -> None:
        self._db.close()
        remove_state(self._path)

    def add(self, rows: Iterable[tuple[Any, ...]], *, usable: bool) -> None:
        """Add the rows of the next source: object, size, crc32c, imagenet_class, width, height,
        vectors_crc32c and failure of each, in row order.

        `usable` is false for a source that was computed otherwise.
        """
        values = (
            (
                self._sources,
                row,
                *known,
                FAILED_THERE if failure is not None else USABLE if usable else OTHERWISE,
            )
            for row, (*known, failure) in enumerate(rows)
            for checksum in [known[-1]]
            if (usable if failure is not None else checksum is not None)
        )
        self._db.execute("BEGIN")
        self._db.executemany(f"INSERT INTO found VALUES ({', '.join('?' * 10)})", values)
        self._db.execute("COMMIT")
        self._sources += 1

    def match(self, state: Path) -> Tally:
        """Match the pending rows of the ingest whose state this is, source by source, in order."""
        self._db.executescript("DROP INDEX IF EXISTS by_content; DROP INDEX IF EXISTS by_object;")
        self._db.executescript(INDEXES)
        self._db.executescript(MATCHES)
        self._db.execute("ATTACH ? AS ingest", (str(state),))
        try:
            self._db.execute("BEGIN")
            for source in range(self._sources):
                self._db.execute(MATCH, {"source": source})
            self._db.execute("COMMIT")
            reasons = dict(self._db.execute(REASONS).fetchall())
        finally:
            self._db.execute("DETACH ingest")
        self._db.execute("CREATE INDEX by_found ON matches (found)")
        by_source = self._db.execute(
            "SELECT f.source, count(*), sum(m.size) FROM matches m "
            "JOIN found f ON f.rowid = m.found GROUP BY 1"
        ).fetchall()
        counts = {source: count for source, count, _ in by_source}
        others = (reasons.get(reason, 0) for reason in Tally._fields[2:])
        return Tally(counts, sum(size for *_, size in by_source), *others)

    def __iter__(self) -> Iterator[Match]:
        """Every match, in the order of the sources' rows."""
        for values in self._db.execute(
            "SELECT f.source, f.row, f.object, m.row, m.identifier, f.imagenet_class, f.width, "
            "f.height, f.vectors_crc32c FROM matches m JOIN found f ON f.rowid = m.found "
            "ORDER BY m.found, m.row"
        ):
            yield Match(*values)
