"""What became of the images of one ingest: recorded, counted, read in order."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.database import VERSION, remove_database
from dataset.images import DONE, FAILED, IMAGES, LISTED, OUTCOME, PENDING, TABLES, Images
from dataset.listing import Split
from dataset.quality import COLUMNS, UNKNOWN, Quality
from gcs import ListedObject

ROWS_PER_QUERY = 1000
NEW_OUTCOME = ", ".join(f":{name}" for name in OUTCOME.split(", "))
SET_OUTCOME = (
    f"UPDATE images SET ({OUTCOME}, checksum) = ({NEW_OUTCOME}, checksum({LISTED}, {NEW_OUTCOME}))"
)
PENDING_AGAIN = {**dict.fromkeys(OUTCOME.split(", ")), "status": PENDING}
# Slots in row order get the numbers of their rows; images that are not listed are dropped.
NUMBER_ROWS = f"""
INSERT INTO images SELECT row, split, object, identifier, size, crc32c, generation, {OUTCOME},
    checksum(row, split, object, identifier, size, crc32c, generation, {OUTCOME})
FROM (SELECT row_number() OVER (ORDER BY split, object) - 1 AS row, * FROM unordered
    WHERE split IS NOT NULL)
ORDER BY row
"""
LISTED_IN_ORDER = "FROM images WHERE split IS NOT NULL ORDER BY split, object"
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


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Listed images, and what became of them so far."""

    images: int
    training: int
    validation: int
    size: int  # bytes
    done: int  # embedded or reused
    failed: int
    pending: int
    reused: int  # of those that are done


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


class State(Images):
    """The state of one ingest. Images change only by `take`, `record`, `reopen` and their like."""

    @classmethod
    def create(cls, path: Path) -> State:
        """A new state without images; what was there is removed."""
        remove_database(path)
        state = cls(path)
        state._db.executescript(TABLES)
        state._db.execute(f"PRAGMA user_version = {VERSION}")
        state.set_options({"images": "0"})
        return state

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
        return self._column(f"SELECT slot {LISTED_IN_ORDER}")

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

    def counts(self) -> Counts:
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
        return Counts(**dict(zip(columns, map(int, values), strict=True)))

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
        query = f"SELECT slot FROM images WHERE status = {PENDING} ORDER BY slot LIMIT ?"
        return np.fromiter(self._column(query, limit), np.int64)

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
            missing = self._column(f"SELECT slot {done} AND identifier NOT IN thumbnails")
            unused = f"SELECT identifier FROM thumbnails EXCEPT SELECT identifier {done}"
            return list(missing), list(self._column(unused))
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
        return self._column(f"SELECT object {LISTED_IN_ORDER}")

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
