"""The images of one ingest, and what a newer listing of the bucket changes in them.

An image has a *slot*: the place of its vectors in the arrays on the disk. It gets one when it is
first listed, so at first slots are in row order. A newer listing (`take`) is one transaction:
images with the same bytes keep their slots. Those that are not listed any more keep theirs too,
until the arrays are put in row order (arrays.py), so that an image that comes back, under any name,
is found.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.database import OPTIONS, SKIPPED, Database
from dataset.quality import COLUMNS

EXAMPLES = 10  # names of each kind of change


class Status(enum.IntEnum):
    """What became of an image."""

    PENDING = 0  # to be embedded
    DONE = 1  # its vectors are on the disk, and its thumbnail is in the bucket
    FAILED = 2  # it cannot be embedded; its vectors are zeros


PENDING, DONE, FAILED = Status
LISTED = "slot, split, object, identifier, size, crc32c, generation"
OUTCOME = f"status, imagenet_class, reason, vectors_crc32c, width, height, source, {COLUMNS}"
# No table has an index beside it, in which damage would go unnoticed. `split` is null for an image
# that is not listed any more.
TABLES = f"""
{OPTIONS};
{SKIPPED}
CREATE TABLE images (
    slot INTEGER PRIMARY KEY, split INTEGER, object TEXT NOT NULL, identifier TEXT NOT NULL,
    size INTEGER NOT NULL, crc32c INTEGER NOT NULL, generation INTEGER NOT NULL,
    status INTEGER NOT NULL, imagenet_class INTEGER, reason TEXT, vectors_crc32c INTEGER,
    width INTEGER, height INTEGER, source TEXT, brightness REAL, contrast REAL, sharpness REAL,
    colourfulness REAL, checksum INTEGER NOT NULL
);
"""
IMAGES = TABLES[TABLES.index("CREATE TABLE images") :]
SAME_BYTES = "(size, crc32c) IN (SELECT size, crc32c FROM {})"
# The same bytes under the same identifier: vectors and thumbnail stay where they are.
SAME_IMAGE = "(identifier, size, crc32c) IN (SELECT identifier, size, crc32c FROM new.listed)"
SAME_IDENTIFIER = "identifier IN (SELECT identifier FROM new.listed)"
KEEP = f"""
UPDATE images SET (split, object, generation, checksum) = (
    n.split, n.object, n.generation,
    checksum(slot, n.split, n.object, images.identifier, images.size, images.crc32c, n.generation,
        {OUTCOME})
)
FROM new.listed n
WHERE n.identifier = images.identifier AND n.size = images.size AND n.crc32c = images.crc32c
    AND (images.split IS NOT n.split OR images.object <> n.object
        OR images.generation <> n.generation)
"""
# An image that is not done has nothing to keep, nor has one whose thumbnail another will replace.
DROP = f"""
DELETE FROM images WHERE NOT {SAME_IMAGE}
    AND (status <> {DONE} OR {SAME_IDENTIFIER})
"""
UNLIST = f"""
UPDATE images SET split = NULL,
    checksum = checksum(slot, NULL, object, identifier, size, crc32c, generation, {OUTCOME})
WHERE split IS NOT NULL AND NOT {SAME_IMAGE}
"""
NEW = """
SELECT n.split, n.object, n.identifier, n.size, n.crc32c, n.generation FROM new.listed n
LEFT JOIN images i USING (identifier, size, crc32c) WHERE i.slot IS NULL ORDER BY n.split, n.object
"""
NEW_IMAGE = f"?1, ?2, ?3, ?4, ?5, ?6, ?7, {PENDING}" + OUTCOME.count(",") * ", NULL"
INSERT = f"INSERT INTO images VALUES ({NEW_IMAGE}, checksum({NEW_IMAGE}))"
APPEARED = """
CREATE TEMP TABLE appeared AS SELECT n.object, n.size, n.crc32c FROM new.listed n
LEFT JOIN images i USING (split, object) WHERE i.slot IS NULL ORDER BY n.split, n.object
"""
VANISHED = """
CREATE TEMP TABLE vanished AS SELECT i.object, i.size, i.crc32c FROM images i
LEFT JOIN new.listed n USING (split, object)
WHERE i.split IS NOT NULL AND n.object IS NULL ORDER BY i.split, i.object
"""
KINDS = {  # of changes: their objects
    "appeared": f"SELECT object FROM appeared WHERE NOT {SAME_BYTES.format('vanished')}",
    "vanished": f"SELECT object FROM vanished WHERE NOT {SAME_BYTES.format('appeared')}",
    # Or moved: other names of bytes that are there.
    "renamed": f"SELECT object FROM appeared WHERE {SAME_BYTES.format('vanished')}",
    # Other bytes under a name that is there.
    "replaced": "SELECT object FROM images i JOIN new.listed n USING (split, object) "
    "WHERE n.size <> i.size OR n.crc32c <> i.crc32c",
}


class Kind(NamedTuple):
    """One kind of change: how many images, and the first of their objects."""

    number: int
    examples: list[str]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a newer listing changes for the images of an ingest."""

    kinds: dict[str, Kind]  # those of KINDS that there are
    computed: int  # listed images that are done
    left_out: int  # of them, those whose bytes the newer listing does not have
    lost: int  # of them, those that are computed again under the same identifier
    new: int  # images that need a slot

    def __bool__(self) -> bool:
        return bool(self.kinds)


class Images(Database):
    """The table of images: created, checked for damage, and brought up to date by a listing."""

    TABLES = TABLES

    def _damage(self) -> str | None:
        if problem := super()._damage():
            return problem
        count = self._db.execute("SELECT count(*) FROM images").fetchone()[0]
        if str(count) != self.option("images"):
            return f"{count:,} images, where it recorded {self.option('images')}"
        wrong = f"SELECT slot FROM images WHERE checksum IS NOT checksum({LISTED}, {OUTCOME})"
        found = self._db.execute(f"{wrong} LIMIT 1").fetchone()
        return f"image {found[0]:,} does not match its checksum" if found else None

    def changes(self, listing: Path) -> Changes:
        """What a newer listing of the same directories changes."""
        with self._attached(listing):
            try:
                self._db.execute(APPEARED)
                self._db.execute(VANISHED)
                found = {kind: self._kind(query) for kind, query in KINDS.items()}
                computed, left_out, lost = self._db.execute(
                    f"SELECT count(*), total(NOT {SAME_BYTES.format('new.listed')}), "
                    f"total(NOT {SAME_IMAGE} AND {SAME_IDENTIFIER}) FROM images "
                    f"WHERE split IS NOT NULL AND status = {DONE}"
                ).fetchone()
                (new,) = self._db.execute(f"SELECT count(*) FROM ({NEW})").fetchone()
            finally:
                self._db.execute("DROP TABLE IF EXISTS appeared")
                self._db.execute("DROP TABLE IF EXISTS vanished")
        return Changes(
            kinds={kind: images for kind, images in found.items() if images.number},
            computed=computed,
            left_out=int(left_out),
            lost=int(lost),
            new=new,
        )

    def _kind(self, query: str) -> Kind:
        (number,) = self._db.execute(f"SELECT count(*) FROM ({query})").fetchone()
        return Kind(number, list(self._column(f"{query} LIMIT {EXAMPLES}")))

    def take(self, listing: Path) -> None:
        """Make a newer listing the images of this ingest, in one transaction.

        Images that the listing has with the same bytes keep what is known of them. Others that are
        done are kept without being listed; new images are pending, in slots that are free.
        """
        with self._attached(listing), self._transaction():
            for statement in (DROP, KEEP, UNLIST):
                self._db.execute(statement)
            used = np.fromiter(self._column("SELECT slot FROM images"), np.int64)
            free = _free_slots(used)
            new = self._db.execute(NEW).fetchall() if len(used) else self._db.execute(NEW)
            self._db.executemany(INSERT, ((next(free), *values) for values in new))
            self._db.execute("DELETE FROM skipped")
            self._db.execute("INSERT INTO skipped SELECT * FROM new.skipped")
            self._count_images()

    def _count_images(self) -> None:
        (count,) = self._db.execute("SELECT count(*) FROM images").fetchone()
        self._set_options({"images": str(count)})

    @contextlib.contextmanager
    def _attached(self, listing: Path) -> Iterator[None]:
        """A listing, readable as `new` within a `with` block."""
        self._db.execute("ATTACH ? AS new", (str(listing),))
        try:
            yield
        finally:
            self._db.execute("DETACH new")


def _free_slots(used: np.ndarray) -> Iterator[int]:
    """Slots that are not used: the gaps first, then those after the last, without end."""
    end = int(used.max()) + 1 if len(used) else 0
    yield from np.setdiff1d(np.arange(end), used, assume_unique=True).tolist()
    while True:
        yield end
        end += 1
