"""The rows of one ingest: which images are listed, and what became of each."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.names import IMAGE_SUFFIXES, encodable, identifier
from common.terminal import printable
from dataset.state.schema import (
    DONE,
    FAILED,
    LISTED,
    OUTCOME,
    PENDING,
    PENDING_AGAIN,
    REPLACED,
    ROWS,
    SET_OUTCOME,
    VANISHED,
)
from dataset.state.state_file import StateFile
from gcs import NO_CRC32C, ListedObject

TRAIN, VAL = 0, 1
SPLITS = {TRAIN: "training", VAL: "validation"}  # in messages
SPLIT_NAMES = {TRAIN: "train", VAL: "val"}  # in files
ROWS_PER_QUERY = 1000


class Row(NamedTuple):
    """One image: its row in the arrays and what the listing says of its object."""

    row: int
    listed: ListedObject


class Outcome(NamedTuple):
    """What became of one row: its ImageNet class and a checksum of its vectors, or a reason."""

    row: int
    imagenet_class: int | None
    reason: str | None  # why it failed
    vectors_crc32c: int | None = None  # of the vectors in the order of EMBEDDINGS
    width: int | None = None  # pixels
    height: int | None = None
    source: str | None = None  # of a reused row: INDEX_ID/ROW that it was copied from


class Counts(NamedTuple):
    """Images of one split, or of both."""

    images: int
    size: int  # bytes
    done: int
    failed: int


class Tally(NamedTuple):
    """What became of the images so far."""

    images: int
    training: int
    validation: int
    size: int  # bytes
    done: int  # embedded or reused
    failed: int
    pending: int
    reused: int  # of those that are done


class State(StateFile):
    """The state of one ingest: its file, and its rows.

    Made by `create` and `add`, then `number_rows`; afterwards rows change only by `record`.
    """

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
        shared = self._db.execute(
            "SELECT identifier, object FROM rows WHERE identifier IN "
            "(SELECT identifier FROM rows GROUP BY identifier HAVING count(*) > 1) "
            "ORDER BY identifier, row"
        )
        for name, group in itertools.groupby(shared, key=operator.itemgetter(0)):
            yield name, [o for _, o in group]

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

    def tally(self) -> Tally:
        """What became of the images so far, in one pass over the rows."""
        values = self._db.execute(
            f"SELECT count(*), total(split = {TRAIN}), total(split = {VAL}), total(size), "
            f"total(status = {DONE}), total(status = {FAILED}), total(status = {PENDING}), "
            "count(source) FROM rows"
        ).fetchone()
        return Tally(*(int(value) for value in values))

    def failure_reasons(self) -> list[tuple[str, int, str]]:
        """Why images failed: the reason, how many, and one of their objects."""
        return self._db.execute(
            f"SELECT reason, count(*), min(object) FROM rows WHERE status = {FAILED} "
            "GROUP BY reason ORDER BY 2 DESC, 1"
        ).fetchall()

    def reused(self) -> int:
        """How many rows were copied from another index."""
        query = "SELECT count(source) FROM rows"
        return int(self._db.execute(query).fetchone()[0])

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
                f"{SET_OUTCOME} WHERE row = :row",
                [{"status": DONE if o.reason is None else FAILED, **o._asdict()} for o in outcomes],
            )

    def reopen(self, rows: Iterable[int]) -> None:
        """Make rows pending again, durably: what was computed for them is lost."""
        with self._db:
            self._db.execute("BEGIN")
            values = ({**PENDING_AGAIN, "row": row} for row in rows)
            self._db.executemany(f"{SET_OUTCOME} WHERE row = :row", values)

    def vector_checksums(self) -> Generator[tuple[int, int | None], None, None]:
        """(row, crc32c of its vectors) of the rows that are done or failed, in row order."""
        yield from self._db.execute(
            "SELECT row, vectors_crc32c FROM rows WHERE status IN (1, 2) ORDER BY row"
        )

    def failed(self) -> list[tuple[str, str]]:
        """Objects that could not be embedded, with the reason, in row order."""
        return self._db.execute(
            "SELECT object, reason FROM rows WHERE status = 2 ORDER BY row"
        ).fetchall()

    def retry_failed(self) -> int:
        """Make the failed rows pending again; returns how many."""
        return self._db.execute(f"{SET_OUTCOME} WHERE status = 2", PENDING_AGAIN).rowcount

    def retry_given_up(self) -> None:
        """Make the rows pending again that failed because their object vanished or changed."""
        values = {**PENDING_AGAIN, "vanished": VANISHED, "replaced": REPLACED}
        which = "status = 2 AND reason IN (:vanished, :replaced)"
        self._db.execute(f"{SET_OUTCOME} WHERE {which}", values)

    def present(self, split: int) -> int:
        """How many images of a split did not vanish: what the server finds when it lists them."""
        query = "SELECT count(*) FROM rows WHERE split = ? AND reason IS NOT ?"
        return int(self._db.execute(query, (split, VANISHED)).fetchone()[0])

    def objects(self) -> Iterator[str]:
        """All object names, in row order."""
        for (name,) in self._db.execute("SELECT object FROM rows ORDER BY row"):
            yield name

    def identifiers(self, split: int) -> Iterator[tuple[str, int]]:
        """(identifier, row) of the images of a split, in row order; not of those that vanished."""
        yield from self._db.execute(
            "SELECT identifier, row FROM rows WHERE split = ? AND reason IS NOT ? ORDER BY row",
            (split, VANISHED),
        )

    def imagenet_classes(self) -> Iterator[tuple[str, int]]:
        """(object name, ImageNet class) of the rows that are done, in row order."""
        yield from self._db.execute(
            "SELECT object, imagenet_class FROM rows WHERE status = 1 ORDER BY row"
        )

    def manifest_rows(self) -> Generator[tuple[Any, ...], None, None]:
        """The columns of manifest.schema for each row, in row order; the split as a number."""
        yield from self._db.execute(
            "SELECT object, identifier, split, size, generation, crc32c, width, height, "
            "imagenet_class, reason, vectors_crc32c FROM rows ORDER BY row"
        )

    def take_replaced(self, listing: Path, *, other_bytes: bool = True) -> int:
        """Accept new versions of objects whose rows are not done; returns how many have new bytes.

        A new generation of the same bytes (size and crc32c) is accepted for every row, and alone
        if `other_bytes` is false. Only for a listing of the same paths: see changes.py.
        """
        accepted = "old.status <> 1" if other_bytes else "false"
        same = "new.size = old.size AND new.crc32c = old.crc32c"
        with self._attached(listing), self._db:
            self._db.execute("BEGIN")
            newer = self._db.execute(
                "SELECT new.size, new.crc32c, new.generation, "
                f"{same} OR old.status = 1, old.row FROM main.rows old "
                "JOIN new.rows new USING (split, object) "
                f"WHERE new.generation <> old.generation AND ({same} OR {accepted})"
            ).fetchall()
            for size, crc32c, generation, keeps_outcome, row in newer:
                self._db.execute(
                    "UPDATE rows SET size = ?, crc32c = ?, generation = ? WHERE row = ?",
                    (size, crc32c, generation, row),
                )
                if keeps_outcome:
                    self._db.execute(
                        f"UPDATE rows SET checksum = checksum({LISTED}, {OUTCOME}) WHERE row = ?",
                        (row,),
                    )
                else:
                    values = {**PENDING_AGAIN, "row": row}
                    self._db.execute(f"{SET_OUTCOME} WHERE row = :row", values)
            return sum(not keeps_outcome for *_, keeps_outcome, _ in newer)

    def compare_thumbnails(self, pages: Iterable[Iterable[str]]) -> tuple[list[int], list[str]]:
        """The rows that are done and whose identifier is in none of the pages of thumbnails, and
        the thumbnails of no row, or of one whose image vanished or changed.
        """
        self._db.execute("CREATE TEMP TABLE thumbnails (identifier TEXT PRIMARY KEY) WITHOUT ROWID")
        try:
            for page in pages:
                names = [(name,) for name in page]
                self._db.executemany("INSERT OR IGNORE INTO thumbnails VALUES (?)", names)
            missing = self._db.execute(
                "SELECT row FROM rows WHERE status = 1 AND identifier NOT IN thumbnails"
            ).fetchall()
            unused = self._db.execute(
                "SELECT identifier FROM thumbnails EXCEPT SELECT identifier FROM rows "
                "WHERE reason IS NULL OR reason NOT IN (?, ?)",
                (VANISHED, REPLACED),
            ).fetchall()
            return [row for (row,) in missing], [name for (name,) in unused]
        finally:
            self._db.execute("DROP TABLE thumbnails")

    @contextlib.contextmanager
    def _attached(self, listing: Path) -> Iterator[None]:
        """Another state, readable as `new` within a `with` block."""
        self._db.execute("ATTACH ? AS new", (str(listing),))
        try:
            yield
        finally:
            self._db.execute("DETACH new")


def _kind(name: str) -> str:
    """What a skipped object is, by its extension: ".JPG", ".txt", "directory", "no extension"."""
    if name.endswith("/"):
        return "directory"
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return f".{extension}" if dot and stem and len(extension) <= 20 else "no extension"
