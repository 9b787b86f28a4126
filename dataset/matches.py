"""Which images found elsewhere have the bytes of pending ones: joins in SQLite.

Elsewhere is another index, another work directory, or this ingest itself under other names. An
image matches if it has the same bytes (size and crc32c), under the same name if there is such an
image, else under any name. So memory does not grow with the number of images.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataset.database import Scratch
from dataset.images import PENDING
from dataset.quality import COLUMNS, UNKNOWN, Quality
from dataset.state import Found

TABLES = f"""
CREATE TABLE found (
    source INTEGER NOT NULL, row INTEGER NOT NULL, object TEXT NOT NULL, size INTEGER NOT NULL,
    crc32c INTEGER NOT NULL, imagenet_class INTEGER, width INTEGER, height INTEGER,
    vectors_crc32c INTEGER, origin TEXT, kind INTEGER NOT NULL, {COLUMNS}
);
"""
INDEXES = """
DROP INDEX IF EXISTS by_content; DROP INDEX IF EXISTS by_object;
CREATE INDEX by_content ON found (size, crc32c, kind, source, row);
CREATE INDEX by_object ON found (object, source);
DROP TABLE IF EXISTS matches;
CREATE TABLE matches (
    slot INTEGER PRIMARY KEY, identifier TEXT NOT NULL, size INTEGER NOT NULL,
    found INTEGER NOT NULL
);
"""


class Use(enum.IntEnum):
    """Whether a found image can be copied."""

    USABLE = 0
    FAILED_THERE = 1
    COMPUTED_DIFFERENTLY = 2


UNMATCHED = f"i.status = {PENDING} AND NOT EXISTS (SELECT 1 FROM matches m WHERE m.slot = i.slot)"
SAME = f"f.size = i.size AND f.crc32c = i.crc32c AND f.kind = {Use.USABLE} AND f.source = :source"
# INDEXED BY: SQLite would look up the name among all images of the same content.
MATCH = f"""
INSERT INTO matches SELECT slot, identifier, size, found FROM (
    SELECT i.slot, i.identifier, i.size, coalesce(
        (SELECT f.rowid FROM found f INDEXED BY by_object
            WHERE f.object = i.object AND {SAME} LIMIT 1),
        (SELECT f.rowid FROM found f INDEXED BY by_content WHERE {SAME} ORDER BY f.row LIMIT 1)
    ) AS found FROM ingest.images i WHERE {UNMATCHED}
) WHERE found IS NOT NULL
"""
OF_KIND = "EXISTS (SELECT 1 FROM found f WHERE f.size = i.size AND f.crc32c = i.crc32c AND f.kind="
# "changed" where a source has other bytes under this name; what failed there is tried again.
REASONS = f"""
SELECT CASE
    WHEN {OF_KIND} {Use.FAILED_THERE}) THEN 'failed there'
    WHEN {OF_KIND} {Use.COMPUTED_DIFFERENTLY}) THEN 'computed differently'
    WHEN EXISTS (SELECT 1 FROM found f WHERE f.object = i.object) THEN 'changed'
    ELSE 'new' END, count(*)
FROM ingest.images i WHERE {UNMATCHED} GROUP BY 1 ORDER BY 2 DESC, 1 DESC
"""


class Match(NamedTuple):
    """A pending image, and the image of a source that has what it needs."""

    source: int  # number of the source
    slot: int
    identifier: str
    image: Found


@dataclass(frozen=True, kw_only=True)
class Matched:
    """How many pending images can be copied, how many bytes they have, and why others not."""

    reused: dict[int, int]  # images by number of the source
    size: int  # bytes
    left: dict[str, int]  # images that cannot be copied, by reason


class Matches(Scratch):
    """The images of all sources, and after `match` those that are to be copied."""

    TABLES = TABLES
    _sources = 0

    def add(self, images: Iterable[Found], *, usable: bool) -> None:
        """Add the images of the next source; `usable` is false if it was computed differently."""
        kind = Use.USABLE if usable else Use.COMPUTED_DIFFERENTLY
        values = (
            (
                *(self._sources, *i[:8], i.origin),  # in the order of the columns
                Use.FAILED_THERE if i.failed else kind,
                *(i.quality or UNKNOWN.values()),
            )
            for i in images
            if (usable if i.failed else i.vectors_crc32c is not None)
        )
        self._db.execute("BEGIN")
        self._db.executemany(f"INSERT INTO found VALUES ({', '.join('?' * 15)})", values)
        self._db.execute("COMMIT")
        self._sources += 1

    def match(self, state: Path) -> Matched:
        """Match the pending images of an ingest, source by source, in order."""
        self._db.executescript(INDEXES)
        self._db.execute("ATTACH ? AS ingest", (str(state),))
        try:
            self._db.execute("BEGIN")
            for source in range(self._sources):
                self._db.execute(MATCH, {"source": source})
            self._db.execute("COMMIT")
            left = dict(self._db.execute(REASONS).fetchall())
        finally:
            self._db.execute("DETACH ingest")
        self._db.execute("CREATE INDEX by_found ON matches (found)")
        by_source = self._db.execute(
            "SELECT f.source, count(*), sum(m.size) FROM matches m "
            "JOIN found f ON f.rowid = m.found GROUP BY 1"
        ).fetchall()
        return Matched(
            reused={source: count for source, count, _ in by_source},
            size=sum(size for *_, size in by_source),
            left=left,
        )

    def __iter__(self) -> Iterator[Match]:
        """Every match, in the order of the sources' rows."""
        for source, slot, identifier, origin, *values in self._db.execute(
            "SELECT f.source, m.slot, m.identifier, f.origin, f.row, f.object, f.size, f.crc32c, "
            f"f.imagenet_class, f.width, f.height, f.vectors_crc32c, {COLUMNS} FROM matches m "
            "JOIN found f ON f.rowid = m.found ORDER BY m.found, m.slot"
        ):
            image = Found._make((*values[:8], Quality.known(*values[8:]), origin, False))
            yield Match(source, slot, identifier, image)
