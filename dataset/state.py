"""The images of one ingest: which are listed, what became of each, and where their vectors are.

An image has a *slot*: the place of its vectors in the arrays on the disk. It gets one when it is
first listed, so at first slots are in row order. A newer listing (`take`) is one transaction:
images with the same bytes keep their slots. Those that are not listed any more keep theirs too,
until the arrays are put in row order (arrays.py), so that an image that comes back, under any name,
is found.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.database import OPTIONS, VERSION, Database, remove_database
from dataset.listing import Split
from dataset.quality import COLUMNS, UNKNOWN, Quality
from gcs import ListedObject

ROWS_PER_QUERY = 1000
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
CREATE TABLE skipped (
    kind TEXT PRIMARY KEY, objects INTEGER NOT NULL, example TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE images (
    slot INTEGER PRIMARY KEY, split INTEGER, object TEXT NOT NULL, identifier TEXT NOT NULL,
    size INTEGER NOT NULL, crc32c INTEGER NOT NULL, generation INTEGER NOT NULL,
    status INTEGER NOT NULL, imagenet_class INTEGER, reason TEXT, vectors_crc32c INTEGER,
    width INTEGER, height INTEGER, source TEXT, brightness REAL, contrast REAL, sharpness REAL,
    colourfulness REAL, checksum INTEGER NOT NULL
);
"""
IMAGES = TABLES[TABLES.index("CREATE TABLE images") :]
NEW_OUTCOME = ", ".join(f":{name}" for name in OUTCOME.split(", "))
SET_OUTCOME = (
    f"UPDATE images SET ({OUTCOME}, checksum) = ({NEW_OUTCOME}, checksum({LISTED}, {NEW_OUTCOME}))"
)
PENDING_AGAIN = {**dict.fromkeys(OUTCOME.split(", ")), "status": PENDING}
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
NEW_OBJECTS = f"SELECT object FROM ({NEW})"
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
REPLACED = """
SELECT object FROM images i JOIN new.listed n USING (split, object)
WHERE n.size <> i.size OR n.crc32c <> i.crc32c
"""
# Slots in row order get the numbers of their rows; images that are not listed are dropped.
NUMBER_ROWS = f"""
INSERT INTO images SELECT row, split, object, identifier, size, crc32c, generation, {OUTCOME},
    checksum(row, split, object, identifier, size, crc32c, generation, {OUTCOME})
FROM (SELECT row_number() OVER (ORDER BY split, object) - 1 AS row, * FROM unordered
    WHERE split IS NOT NULL)
ORDER BY row
"""
IN_ORDER = """
SELECT count(*) FROM (
    SELECT slot, row_number() OVER (ORDER BY split, object) - 1 AS row FROM images
    WHERE split IS NOT NULL
) WHERE slot <> row
"""


class Row(NamedTuple):
    """One image to embed: its slot in the arrays, and what the listing says of its object."""

    row: int
    listed: ListedObject


class Outcome(NamedTuple):
    """What became of one image: its ImageNet class and a checksum of its vectors, or a reason."""

    row: int
    imagenet_class: int | None
    reason: str | None  # why it failed
    vectors_crc32c: int | None = None  # of the vectors in the order of EMBEDDINGS
    width: int | None = None  # pixels
    height: int | None = None
    source: str | None = None  # of a reused image: INDEX_ID/ROW that it was copied from
    quality: Quality | None = None  # None if it failed, or was reused from where it is not known


class Counts(NamedTuple):
    """Listed images of one split, or of both."""

    images: int
    size: int  # bytes
    done: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What became of the listed images so far."""

    images: int
    training: int
    validation: int
    size: int  # bytes
    done: int  # embedded or reused
    failed: int
    pending: int
    reused: int  # of those that are done


class Kind(NamedTuple):
    """One kind of change: how many images, and the first of their objects."""

    number: int
    examples: list[str]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a newer listing changes for the images of an ingest."""

    appeared: Kind
    vanished: Kind
    renamed: Kind  # or moved: other names of bytes that are there
    replaced: Kind  # other bytes under a name that is there
    computed: int  # listed images that are done
    left_out: int  # of them, those whose bytes the newer listing does not have
    lost: int  # of them, those that are computed again under the same identifier
    new: int  # images that need a slot

    def __bool__(self) -> bool:
        return any(number for number, _ in self.kinds().values())

    def kinds(self) -> dict[str, Kind]:
        return {
            "appeared": self.appeared,
            "vanished": self.vanished,
            "renamed": self.renamed,
            "replaced": self.replaced,
        }


class Found(NamedTuple):
    """What a source knows of an image. A dataclass would take six times as long to make."""

    row: int  # of its vectors in the source's arrays
    object: str
    size: int  # bytes
    crc32c: int
    imagenet_class: int | None
    width: int | None
    height: int | None
    vectors_crc32c: int | None
    quality: Quality | None = None
    origin: str | None = None  # where that source copied it from, as Outcome.source has it
    failed: bool = False


class State(Database):
    """The state of one ingest. Images change only by `take`, `record`, `reopen` and their like."""

    TABLES = TABLES

    @classmethod
    def create(cls, path: Path) -> State:
        """A new state without images; what was there is removed."""
        remove_database(path)
        state = cls(path)
        state._db.executescript(TABLES)
        state._db.execute(f"PRAGMA user_version = {VERSION}")
        state.set_options({"images": "0"})
        return state

    def _damage(self) -> str | None:
        if problem := super()._damage():
            return problem
        count = self._db.execute("SELECT count(*) FROM images").fetchone()[0]
        if str(count) != self.option("images"):
            return f"{count:,} images, where it recorded {self.option('images')}"
        wrong = f"SELECT slot FROM images WHERE checksum IS NOT checksum({LISTED}, {OUTCOME})"
        found = self._db.execute(f"{wrong} LIMIT 1").fetchone()
        return f"image {found[0]:,} does not match its checksum" if found else None

    # A newer listing

    def changes(self, listing: Path) -> Changes:
        """What a newer listing of the same directories changes."""
        with self._attached(listing):
            self._db.execute(APPEARED)
            self._db.execute(VANISHED)
            try:
                elsewhere = f"WHERE {SAME_BYTES}"
                renamed = f"SELECT object FROM appeared {elsewhere.format('vanished')}"
                appeared = f"SELECT object FROM appeared WHERE NOT {SAME_BYTES.format('vanished')}"
                vanished = f"SELECT object FROM vanished WHERE NOT {SAME_BYTES.format('appeared')}"
                computed, left_out, lost = self._db.execute(
                    f"SELECT count(*), total(NOT {SAME_BYTES.format('new.listed')}), "
                    f"total(NOT {SAME_IMAGE} AND {SAME_IDENTIFIER}) FROM images "
                    f"WHERE split IS NOT NULL AND status = {DONE}"
                ).fetchone()
                return Changes(
                    appeared=self._kind(appeared),
                    vanished=self._kind(vanished),
                    renamed=self._kind(renamed),
                    replaced=self._kind(REPLACED),
                    computed=computed,
                    left_out=int(left_out),
                    lost=int(lost),
                    new=self._kind(NEW_OBJECTS).number,
                )
            finally:
                self._db.execute("DROP TABLE appeared")
                self._db.execute("DROP TABLE IF EXISTS vanished")

    def _kind(self, query: str) -> Kind:
        (number,) = self._db.execute(f"SELECT count(*) FROM ({query})").fetchone()
        examples = self._db.execute(f"{query} LIMIT {EXAMPLES}")
        return Kind(number, [name for (name,) in examples])

    def take(self, listing: Path) -> None:
        """Make a newer listing the images of this ingest, in one transaction.

        Images that the listing has with the same bytes keep what is known of them. Others that are
        done are kept without being listed; new images are pending, in slots that are free.
        """
        with self._attached(listing), self._transaction():
            for statement in (DROP, KEEP, UNLIST):
                self._db.execute(statement)
            used = np.fromiter(
                (s for (s,) in self._db.execute("SELECT slot FROM images")), np.int64
            )
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

    # Row order on the disk: see arrays.put_in_order

    def slots(self, *, done: bool = False) -> int:
        """How many slots the arrays on the disk must have: for all images, or for what is done."""
        where = f"status = {DONE}" if done else "true"
        query = f"SELECT coalesce(max(slot) + 1, 0) FROM images WHERE {where}"
        return int(self._db.execute(query).fetchone()[0])

    def is_in_order(self) -> bool:
        """Whether the slots of the listed images are their rows."""
        return not self._db.execute(IN_ORDER).fetchone()[0]

    def slots_in_order(self) -> Iterator[int]:
        """The slot of each row."""
        query = "SELECT slot FROM images WHERE split IS NOT NULL ORDER BY split, object"
        return (slot for (slot,) in self._db.execute(query))

    def ordered_arrays(self) -> list[str] | None:
        """The arrays that are in row order already, while that is under way; else None."""
        recorded = self.option("ordered")
        return None if recorded is None else recorded.split()

    def mark_ordered(self, arrays: Iterable[str]) -> None:
        """Record that these arrays are in row order, or will be as soon as they are renamed."""
        self.set_options({"ordered": " ".join(arrays)})

    def number_rows(self) -> None:
        """Make the slots those of arrays in row order; images that are not listed are dropped."""
        with self._transaction():
            self._db.execute("ALTER TABLE images RENAME TO unordered")
            self._db.execute(IMAGES)
            self._db.execute(NUMBER_ROWS)
            self._db.execute("DROP TABLE unordered")
            self._set_options({"ordered": None})
            self._count_images()

    # What became of the images

    def counts(self, split: Split | None = None) -> Counts:
        """Images, bytes, done and failed ones of one split, or of both."""
        values = self._db.execute(
            f"SELECT count(*), total(size), total(status = {DONE}), total(status = {FAILED}) "
            "FROM images WHERE split IS NOT NULL AND (?1 IS NULL OR split = ?1)",
            (split,),
        ).fetchone()
        return Counts(*(int(value) for value in values))

    def progress(self) -> Progress:
        """What became of the images so far, in one pass over them."""
        columns = {
            "images": "count(*)",
            "training": f"total(split = {Split.TRAIN})",
            "validation": f"total(split = {Split.VAL})",
            "size": "total(size)",
            "done": f"total(status = {DONE})",
            "failed": f"total(status = {FAILED})",
            "pending": f"total(status = {PENDING})",
            "reused": "count(source)",
        }
        values = self._db.execute(
            f"SELECT {', '.join(columns.values())} FROM images WHERE split IS NOT NULL"
        ).fetchone()
        return Progress(**dict(zip(columns, map(int, values), strict=True)))

    def skipped(self) -> list[tuple[str, int, str]]:
        """What is not taken as an image: kind (".JPG", ".txt"), how many, and one of them."""
        return self._db.execute("SELECT * FROM skipped ORDER BY objects DESC, kind").fetchall()

    def failure_reasons(self) -> list[tuple[str, int, str]]:
        """Why images failed: the reason, how many, and one of their objects."""
        return self._db.execute(
            f"SELECT reason, count(*), min(object) FROM images WHERE status = {FAILED} "
            "GROUP BY reason ORDER BY 2 DESC, 1"
        ).fetchall()

    def failed(self) -> list[tuple[str, str]]:
        """Objects that could not be embedded, with the reason, in row order."""
        return self._db.execute(
            f"SELECT object, reason FROM images WHERE status = {FAILED} ORDER BY split, object"
        ).fetchall()

    def has_pending(self) -> bool:
        """Whether any image is still to embed."""
        return next(self._rows(f"status = {PENDING}", (), "LIMIT 1"), None) is not None

    def pending(self) -> Iterator[Row]:
        """The images still to embed, by slot; safe to use while `record` runs."""
        last = -1
        where = f"slot > ? AND status = {PENDING}"
        while page := list(self._rows(where, (last,), f"LIMIT {ROWS_PER_QUERY}")):
            yield from page
            last = page[-1].row

    def pending_numbers(self, limit: int) -> np.ndarray:
        """The first `limit` slots of images still to embed: int64, in order."""
        numbers = self._db.execute(
            f"SELECT slot FROM images WHERE status = {PENDING} ORDER BY slot LIMIT ?", (limit,)
        )
        return np.fromiter((number for (number,) in numbers), np.int64)

    def rows(self, slots: Sequence[int]) -> list[Row]:
        """The images in these slots, in order: some hundreds at once."""
        return list(self._rows(f"slot IN ({', '.join('?' * len(slots))})", tuple(slots), ""))

    def _rows(self, where: str, values: tuple[int, ...], limit: str) -> Iterator[Row]:
        for slot, *listed in self._db.execute(
            "SELECT slot, object, size, crc32c, generation FROM images "
            f"WHERE {where} ORDER BY slot {limit}",
            values,
        ):
            yield Row(slot, ListedObject(*listed))

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Mark images done or failed, durably. Call it after their vectors are on disk."""
        with self._transaction():
            self._db.executemany(
                f"{SET_OUTCOME} WHERE slot = :row",
                [
                    {
                        "status": DONE if o.reason is None else FAILED,
                        **o._asdict(),
                        **(o.quality._asdict() if o.quality else UNKNOWN),
                    }
                    for o in outcomes
                ],
            )

    def reopen(self, slots: Iterable[int]) -> None:
        """Make images pending again, durably: what was computed for them is lost."""
        with self._transaction():
            values = ({**PENDING_AGAIN, "row": slot} for slot in slots)
            self._db.executemany(f"{SET_OUTCOME} WHERE slot = :row", values)

    def retry_failed(self) -> int:
        """Make the failed images pending again; returns how many."""
        return self._db.execute(f"{SET_OUTCOME} WHERE status = {FAILED}", PENDING_AGAIN).rowcount

    def has_copies(self) -> bool:
        """Whether an image that is done has the bytes of a pending one."""
        pending = f"(SELECT size, crc32c FROM images WHERE status = {PENDING})"
        query = (
            f"SELECT 1 FROM images WHERE status = {DONE} AND (size, crc32c) IN {pending} LIMIT 1"
        )
        return self._db.execute(query).fetchone() is not None

    def compare_thumbnails(self, pages: Iterable[Iterable[str]]) -> tuple[list[int], list[str]]:
        """The slots of listed images that are done and have no thumbnail, and the thumbnails of no
        such image. `pages` has the identifiers of all thumbnails.
        """
        self._db.execute("CREATE TEMP TABLE thumbnails (identifier TEXT PRIMARY KEY) WITHOUT ROWID")
        try:
            for page in pages:
                names = [(name,) for name in page]
                self._db.executemany("INSERT OR IGNORE INTO thumbnails VALUES (?)", names)
            done = f"FROM images WHERE status = {DONE} AND split IS NOT NULL"
            missing = self._db.execute(
                f"SELECT slot {done} AND identifier NOT IN thumbnails"
            ).fetchall()
            unused = self._db.execute(
                f"SELECT identifier FROM thumbnails EXCEPT SELECT identifier {done}"
            ).fetchall()
            return [slot for (slot,) in missing], [name for (name,) in unused]
        finally:
            self._db.execute("DROP TABLE thumbnails")

    def found(self) -> Iterator[Found]:
        """The images that another ingest can use, or this one under other names, by slot."""
        for origin, failed, *values in self._db.execute(
            f"SELECT source, status = {FAILED}, slot, object, size, crc32c, imagenet_class, width, "
            f"height, vectors_crc32c, {COLUMNS} FROM images WHERE status <> {PENDING} ORDER BY slot"
        ):
            quality = Quality.known(*values[8:])
            yield Found._make((*values[:8], quality, origin, bool(failed)))

    # What goes into the index: slots are rows by then

    def vector_checksums(self) -> Generator[tuple[int, int | None], None, None]:
        """(slot, crc32c of its vectors) of the images that are done or failed, by slot."""
        yield from self._db.execute(
            f"SELECT slot, vectors_crc32c FROM images WHERE status <> {PENDING} ORDER BY slot"
        )

    def objects(self) -> Iterator[str]:
        """All object names, in row order."""
        for (name,) in self._db.execute(
            "SELECT object FROM images WHERE split IS NOT NULL ORDER BY split, object"
        ):
            yield name

    def identifiers(self, split: Split) -> Iterator[tuple[str, int]]:
        """(identifier, slot) of the images of a split, by slot."""
        yield from self._db.execute(
            "SELECT identifier, slot FROM images WHERE split = ? ORDER BY slot", (split,)
        )

    def imagenet_classes(self) -> Iterator[tuple[str, int]]:
        """(object name, ImageNet class) of the listed images that are done, by slot."""
        yield from self._db.execute(
            f"SELECT object, imagenet_class FROM images WHERE status = {DONE} "
            "AND split IS NOT NULL ORDER BY slot"
        )

    def manifest_rows(self) -> Generator[tuple[Any, ...], None, None]:
        """The columns of manifest.schema but the last for each listed image, by slot; the split as
        a number.
        """
        yield from self._db.execute(
            "SELECT object, identifier, split, size, generation, crc32c, width, height, "
            f"imagenet_class, reason, vectors_crc32c, {COLUMNS} FROM images "
            "WHERE split IS NOT NULL ORDER BY slot"
        )


def _free_slots(used: np.ndarray) -> Iterator[int]:
    """Slots that are not used: the gaps first, then those after the last, without end."""
    end = int(used.max()) + 1 if len(used) else 0
    yield from np.setdiff1d(np.arange(end), used, assume_unique=True).tolist()
    while True:
        yield end
        end += 1
