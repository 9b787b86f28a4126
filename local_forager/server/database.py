"""Datasets, their images and their labels in SQLite, with the limits observed on real servers."""

import asyncio
import contextlib
import enum
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from common.names import MAX_IDENTIFIER_LENGTH, MAX_OBJECT_NAME_LENGTH, identifier
from common.terminal import printable
from local_forager.types import BoxText, LabelText, PageError

DATABASE_FILE = "forager.sqlite3"  # in a data directory
MAX_NAME_LENGTH = 50  # characters
MAX_TEXT_LENGTH = 300  # characters of a category, mode, e-mail address or index_id
MODES = ("POSITIVE", "NEGATIVE", "HARD_NEGATIVE", "UNSURE")  # others are custom modes
REMOVED_MODE = "TOMBSTONE"  # Forager stores this mode when a label is removed

SCHEMA = """
CREATE TABLE IF NOT EXISTS dataset (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, train_path TEXT NOT NULL,
    val_path TEXT NOT NULL, index_id TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS item (
    id INTEGER PRIMARY KEY, dataset INTEGER NOT NULL REFERENCES dataset, identifier TEXT NOT NULL,
    path TEXT NOT NULL, is_val INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS item_identifier ON item (dataset, identifier);
CREATE INDEX IF NOT EXISTS item_split ON item (dataset, is_val);
CREATE TABLE IF NOT EXISTS label (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES item, user TEXT NOT NULL,
    category TEXT NOT NULL, mode TEXT NOT NULL, created_by TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS label_item ON label (item, category);
CREATE TABLE IF NOT EXISTS box (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES item, user TEXT NOT NULL,
    category TEXT NOT NULL, mode TEXT NOT NULL, created_by TEXT NOT NULL,
    x1 REAL NOT NULL, y1 REAL NOT NULL, x2 REAL NOT NULL, y2 REAL NOT NULL
);
CREATE TEMP VIEW finite_box AS  -- JSON has no infinity; earlier versions stored it
    SELECT * FROM box WHERE max(abs(x1), abs(y1), abs(x2), abs(y2)) < 9e999;
"""
ADD_LABEL = "INSERT INTO label (item, user, category, mode, created_by) VALUES (?, ?, ?, ?, ?)"
ADD_BOX = """
    INSERT INTO box (item, user, category, mode, created_by, x1, y1, x2, y2)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
REMOVE_LABEL = "DELETE FROM label WHERE item = ? AND category = ?"

Result = TypeVar("Result")


class DataError(Exception):
    """The value does not fit its column; the message is worded as the database's own."""


class ServerGeneration(enum.Enum):
    """The generation of Forager servers that is imitated."""

    A = "A"  # keeps several images with one identifier, and appends labels
    B = "B"  # refuses such images, and replaces labels


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A row of the table; every image is in the bucket of train_path, as Forager's page has it."""

    id: int
    name: str
    train_path: str
    val_path: str
    index_id: str

    @property
    def bucket(self) -> str:
        return self.train_path.removeprefix("gs://").partition("/")[0]


class SplitCounts(NamedTuple):
    num_train: int
    num_val: int


class NewAnnotation(NamedTuple):
    item: int  # the id of its image
    category: str
    mode: str
    box: tuple[float, ...] | None = None  # x1, y1, x2, y2 in pixels; None for the whole image


def fit(what: str, value: object, length: int) -> str:
    """value as text of up to length characters; `what` names the column.

    Raises DataError, ValueError or sqlite3.IntegrityError where a real database would.
    """
    if value is None:
        raise sqlite3.IntegrityError(f"NOT NULL constraint failed: {what}")
    text = str(value)
    if "\0" in text:
        raise ValueError("A string literal cannot contain NUL (0x00) characters.")
    if len(text) > length:
        raise DataError(f"value too long for type character varying({length}): {what}")
    return text


def item_rows(
    dataset: int, train: Iterable[str], val: Iterable[str], unique: bool
) -> list[tuple[int, str, str, bool]]:
    """Rows of the item table for the object names of both splits; raises if one does not fit."""
    rows, seen = [], set()
    for names, is_val in ((train, False), (val, True)):
        for name in names:
            key = fit("identifier", identifier(name), MAX_IDENTIFIER_LENGTH)
            fit("path", name, MAX_OBJECT_NAME_LENGTH)
            if unique and key in seen:
                raise sqlite3.IntegrityError(
                    f"duplicate key value violates unique constraint: identifier {key!r}"
                )
            seen.add(key)
            rows.append((dataset, key, name, is_val))
    return rows


@contextlib.contextmanager
def usable(path: Path) -> Iterator[None]:
    """Raise PageError where the database at this path is damaged, locked or on a full disk."""
    try:
        yield
    except sqlite3.Error as error:
        way = "check your rights and its disk, restore a copy, or give another --data_dir"
        if "locked" in str(error):
            way = "end the other program that uses it, or try again later"
        raise PageError(500, f"{printable(str(path))} cannot be used ({error}): {way}.") from error


class Database:
    """One SQLite file in WAL mode, used from one thread; every public method is a coroutine."""

    def __init__(self, path: Path, generation: ServerGeneration) -> None:
        self.generation = generation
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        self._executor.shutdown()
        self._connection.close()

    async def _call(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        def transaction() -> Result:
            self._connection.execute("BEGIN")
            try:
                result = function(self._connection)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            return result

        return await asyncio.get_running_loop().run_in_executor(self._executor, transaction)

    async def _rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        return await self._call(lambda db: db.execute(statement, values).fetchall())

    async def create_dataset(self, name: object, train: object, val: object, index: object) -> int:
        """Create a dataset without images; returns its id."""
        values = (
            fit("name", name, MAX_NAME_LENGTH),
            fit("train_directory", train, MAX_OBJECT_NAME_LENGTH),
            fit("val_directory", val, MAX_OBJECT_NAME_LENGTH),
            fit("index_id", index, MAX_TEXT_LENGTH),
        )
        statement = "INSERT INTO dataset (name, train_path, val_path, index_id) VALUES (?, ?, ?, ?)"
        return await self._call(lambda db: int(db.execute(statement, values).lastrowid or 0))

    async def add_items(self, dataset: int, train: list[str], val: list[str]) -> None:
        """Add all images of a dataset, or none if one does not fit."""
        statement = "INSERT INTO item (dataset, identifier, path, is_val) VALUES (?, ?, ?, ?)"

        def insert(db: sqlite3.Connection) -> None:
            unique = self.generation is ServerGeneration.B
            db.executemany(statement, item_rows(dataset, train, val, unique))

        await self._call(insert)

    async def delete_dataset(self, dataset: int) -> None:
        """Delete a dataset with its images, labels and boxes, all or nothing."""
        of_items = "WHERE item IN (SELECT id FROM item WHERE dataset = ?)"

        def remove(db: sqlite3.Connection) -> None:
            db.execute(f"DELETE FROM label {of_items}", (dataset,))
            db.execute(f"DELETE FROM box {of_items}", (dataset,))
            db.execute("DELETE FROM item WHERE dataset = ?", (dataset,))
            db.execute("DELETE FROM dataset WHERE id = ?", (dataset,))
            # The id may be given again: another label_version says that kept labels are not its.
            db.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name IN ('label', 'box')")

        await self._call(remove)

    async def identifiers(self, dataset: int) -> list[str]:
        statement = "SELECT identifier FROM item WHERE dataset = ?"
        return [known for (known,) in await self._rows(statement, dataset)]

    async def names_of_index(self, index_id: str) -> list[str]:
        """The datasets that have this index."""
        statement = "SELECT name FROM dataset WHERE index_id = ? ORDER BY id"
        return [name for (name,) in await self._rows(statement, index_id)]

    async def count_annotations(self, dataset: int) -> int:
        """Labels and boxes that can be seen: per image and category one label, unless removed."""
        return len(await self.labels(dataset)) + len(await self.boxes(dataset))

    async def dataset_names(self) -> list[str]:
        return [name for (name,) in await self._rows("SELECT name FROM dataset ORDER BY id")]

    async def dataset(self, name: str) -> Dataset | None:
        statement = "SELECT id, name, train_path, val_path, index_id FROM dataset WHERE name = ?"
        rows = await self._rows(statement, name)
        return Dataset(**rows[0]) if rows else None

    async def counts(self, dataset: int) -> SplitCounts:
        """Number of images per split; takes 5 ms for 100,000 images."""
        statement = "SELECT is_val, count(*) FROM item WHERE dataset = ? GROUP BY is_val"
        found = {is_val: images for is_val, images in await self._rows(statement, dataset)}
        return SplitCounts(found.get(0, 0), found.get(1, 0))

    async def items(self, dataset: int, identifiers: Iterable[str]) -> list[tuple[int, str]]:
        """Id and identifier of the images with these identifiers, of those that are known."""
        wanted = json.dumps([str(text) for text in identifiers])
        statement = """
            SELECT id, identifier FROM item
            WHERE dataset = ? AND identifier IN (SELECT value FROM json_each(?))"""
        return [(item, known) for item, known in await self._rows(statement, dataset, wanted)]

    async def add_annotations(
        self, user: str, created_by: str, annotations: Sequence[NewAnnotation]
    ) -> None:
        """Store all annotations, or none. On B, a label replaces earlier ones of its category."""

        def insert(db: sqlite3.Connection) -> None:
            for item, category, mode, box in annotations:
                values = item, user, category, mode, created_by
                if box is not None:
                    db.execute(ADD_BOX, (*values, *box))
                    continue
                if self.generation is ServerGeneration.B:
                    db.execute(REMOVE_LABEL, (item, category))
                db.execute(ADD_LABEL, values)

        await self._call(insert)

    async def labels(self, dataset: int) -> list[tuple[str, LabelText]]:
        """(identifier, label): per image and category the newest one, unless it was removed."""
        statement = """
            SELECT item.identifier, label.category, label.mode, label.user
            FROM label JOIN item ON item.id = label.item
            WHERE label.id IN (SELECT max(label.id) FROM label JOIN item ON item.id = label.item
                               WHERE item.dataset = ? GROUP BY label.item, label.category)
              AND label.mode != ?
            ORDER BY label.id"""
        return [
            (known, {"category": category, "mode": mode, "user": user})
            for known, category, mode, user in await self._rows(statement, dataset, REMOVED_MODE)
        ]

    async def boxes(self, dataset: int) -> list[tuple[str, BoxText]]:
        """(identifier, box) of all boxes of a dataset, oldest first."""
        statement = """
            SELECT identifier, category, mode, user, x1, y1, x2, y2 FROM finite_box AS box
            JOIN item ON item.id = box.item WHERE dataset = ? ORDER BY box.id"""
        return [
            (known, BoxText(category=category, mode=mode, user=user, x1=x1, y1=y1, x2=x2, y2=y2))
            for known, category, mode, user, x1, y1, x2, y2 in await self._rows(statement, dataset)
        ]

    async def category_counts(self, dataset: int) -> dict[str, dict[str, int]]:
        """For each category the number of newest labels and boxes by mode.

        Generation A counts all custom modes together, as CUSTOM.
        """
        statement = f"""
            SELECT category, iif(? AND mode NOT IN {(*MODES, REMOVED_MODE)}, 'CUSTOM', mode),
                count(*) FROM
                (SELECT item, category, mode, max(id) FROM label GROUP BY item, category UNION ALL
                 SELECT item, category, mode, id FROM box)
            JOIN item ON item.id = item WHERE dataset = ? GROUP BY 1, 2"""
        counts: dict[str, dict[str, int]] = {}
        is_a = self.generation is ServerGeneration.A
        for category, mode, number in await self._rows(statement, is_a, dataset):
            counts.setdefault(category, {})[mode] = number
        return counts

    async def label_version(self) -> int:
        """A number that increases whenever labels or boxes are written."""
        statement = "SELECT total(seq) FROM sqlite_sequence WHERE name IN ('label', 'box')"
        return int((await self._rows(statement))[0][0])

    async def sample(self, dataset: int, count: int) -> list[str]:
        """Identifiers of up to count images, evenly spaced over the dataset."""
        # The images of a dataset are inserted in one transaction, so their ids are consecutive.
        statement = """
            SELECT DISTINCT item.id, identifier FROM json_each(?) AS step,
                (SELECT min(id) AS first, max(id) - min(id) AS span FROM item WHERE dataset = ?)
            JOIN item ON item.id = first + span * step.value / ? ORDER BY item.id"""
        steps = json.dumps(list(range(count)))
        return [known for _, known in await self._rows(statement, steps, dataset, count - 1)]
