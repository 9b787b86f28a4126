"""What differs between the rows of an ingest and a newer listing of the same directories."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataset.state.matches import Match
from dataset.state.schema import REPLACED, VANISHED

OTHER_BYTES = "(new.size <> old.size OR new.crc32c <> old.crc32c)"
# The rows of an ingest that were not given up as vanished.
PRESENT = f"(status <> 2 OR reason <> '{VANISHED}')"
UNLISTED = f"""
SELECT old.row, old.status, new.row IS NULL FROM old.rows old
LEFT JOIN new.rows new USING (split, object) WHERE new.row IS NULL OR {OTHER_BYTES}
"""
COPIED = (
    "object, new.row, new.identifier, old.imagenet_class, old.width, old.height, "
    "old.vectors_crc32c, old.source"
)
# A thumbnail is named by the identifier of its image. With the same identifier it stays where it
# is. A renamed image gets a copy, but never over the thumbnail of another row that is done: until
# the new listing has taken the place of the old one, the old one must stay whole.
UNCHANGED = f"""
SELECT old.row, old.{COPIED} FROM new.rows new
JOIN old.rows old USING (identifier, size, crc32c) WHERE old.status = 1
UNION ALL
SELECT min(old.row), old.{COPIED} FROM new.rows new JOIN old.rows old USING (size, crc32c)
WHERE old.status = 1 AND new.identifier NOT IN (SELECT identifier FROM old.rows WHERE status = 1)
GROUP BY new.row
ORDER BY 1, 3
"""


class Changes(NamedTuple):
    """The names of objects that appeared, vanished or have other bytes since they were listed."""

    appeared: list[str]
    vanished: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return any(self)


class Numbers(NamedTuple):
    """What each way to go on keeps and costs, in rows."""

    kept: int  # of the new listing: they keep their vectors
    dropped: int  # done, and of no use for the new listing
    unlisted: int  # whose image vanished or changed
    unlisted_done: int  # of them, rows that are done
    left: int  # still to embed, of those whose image is as listed


class Comparison:
    """The rows of an ingest (`old`) beside those of a newer listing (`new`); a context manager."""

    def __init__(self, old: Path, new: Path) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("ATTACH ? AS old", (str(old),))
        self._db.execute("ATTACH ? AS new", (str(new),))

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def changes(self, *, as_listed: bool = False, done_only: bool = False) -> Changes:
        """What appeared, vanished or changed.

        With `done_only`, new bytes are no change where nothing is computed for a row yet. With
        `as_listed`, the ingest keeps its list: a failed row is no change, whatever became of its
        object, but an object that was given up as vanished must not come back.
        """
        ours = f"SELECT split, object FROM old.rows{f' WHERE {PRESENT}' if as_listed else ''}"
        theirs = "SELECT split, object FROM new.rows"
        which = " AND old.status = 1" if done_only else " AND old.status <> 2" if as_listed else ""
        queries = (
            f"{theirs} EXCEPT {ours}",
            f"{ours} EXCEPT {theirs}",
            "SELECT split, object FROM old.rows old JOIN new.rows new USING (split, object) "
            f"WHERE {OTHER_BYTES}{which}",
        )
        return Changes(*([name for _, name in self._db.execute(query)] for query in queries))

    def unlisted(self) -> list[tuple[int, str]]:
        """The rows whose object vanished or has other bytes, with that reason."""
        return [
            (row, VANISHED if vanished else REPLACED)
            for row, _, vanished in self._db.execute(UNLISTED)
        ]

    def unchanged(self) -> Iterator[Match]:
        """The rows that are done and the rows of the listing that need the same, in order.

        A row of the listing needs what a row with the same bytes has: that with the same
        identifier, or if there is none, any.
        """
        for values in self._db.execute(UNCHANGED):
            yield Match(0, *values)

    def numbers(self) -> Numbers:
        """What each way to go on would keep and cost."""
        kept, used = self._db.execute(
            f"SELECT count(*), count(DISTINCT row) FROM ({UNCHANGED})"
        ).fetchone()
        unlisted, unlisted_done, unlisted_left = self._db.execute(
            f"SELECT count(*), total(status = 1), total(status = 0) FROM ({UNLISTED})"
        ).fetchone()
        done, left = self._db.execute(
            "SELECT total(status = 1), total(status = 0) FROM old.rows"
        ).fetchone()
        values = kept, done - used, unlisted, unlisted_done, left - unlisted_left
        return Numbers(*map(int, values))
