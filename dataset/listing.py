"""One listing of both directories: the images, and what else lies there, by kind.

It is in a database of its own that ends with the run. State.take makes it the images of an ingest.
"""

from __future__ import annotations

import enum
import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.names import IMAGE_SUFFIXES, encodable, identifier
from common.terminal import printable
from dataset.database import SKIPPED, Scratch
from gcs import NO_CRC32C, ListedObject

TABLES = f"""
{SKIPPED}
CREATE TABLE listed (
    split INTEGER NOT NULL, object TEXT NOT NULL, identifier TEXT NOT NULL,
    size INTEGER NOT NULL, crc32c INTEGER NOT NULL, generation INTEGER NOT NULL
);
"""


class Split(enum.IntEnum):
    """Where an image belongs. Rows are in this order."""

    TRAIN = 0
    VAL = 1

    @property
    def word(self) -> str:
        """In messages."""
        return ("training", "validation")[self]

    @property
    def short(self) -> str:
        """In files."""
        return ("train", "val")[self]


class Listed(NamedTuple):
    """Images of one split, or of both, and their bytes."""

    images: int
    size: int


class Listing(Scratch):
    """What is in both directories now."""

    TABLES = TABLES

    def add(self, split: Split, objects: Iterable[ListedObject]) -> None:
        """Add a page of a listing: images are listed, everything else is counted by kind."""
        images, others = [], []
        for o in objects:
            if not encodable(o.name):
                others.append(("name that is no valid text", printable(o.name)))
            elif o.name.endswith(IMAGE_SUFFIXES):
                images.append((split, o.name, identifier(o.name), *o[1:]))
            else:
                others.append((_kind(o.name), o.name))
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?)", images)
        self._db.executemany(
            "INSERT INTO skipped VALUES (?, 1, ?) "
            "ON CONFLICT (kind) DO UPDATE SET objects = objects + 1",
            others,
        )
        self._db.execute("COMMIT")

    def counts(self, split: Split | None = None) -> Listed:
        """The images of one split, or of both."""
        query = "SELECT count(*), total(size) FROM listed WHERE ?1 IS NULL OR split = ?1"
        images, size = self._db.execute(query, (split,)).fetchone()
        return Listed(images, int(size))

    def images(self) -> Iterator[tuple[Split, ListedObject]]:
        """All images in row order: training sorted by object name, then validation likewise."""
        for split, *listed in self._db.execute(
            "SELECT split, object, size, crc32c, generation FROM listed ORDER BY split, object"
        ):
            yield Split(split), ListedObject(*listed)

    def first(self, split: Split) -> ListedObject | None:
        """The first image of a split that is not an empty file, or None."""
        found = self._db.execute(
            "SELECT object, size, crc32c, generation FROM listed WHERE split = ? AND size > 0 "
            "ORDER BY object LIMIT 1",
            (split,),
        ).fetchone()
        return found and ListedObject(*found)

    def duplicates(self) -> Iterator[tuple[str, list[str]]]:
        """Each identifier that several objects share, with those objects."""
        shared = self._db.execute(
            "SELECT identifier, object FROM listed WHERE identifier IN "
            "(SELECT identifier FROM listed GROUP BY identifier HAVING count(*) > 1) "
            "ORDER BY identifier, split, object"
        )
        for name, group in itertools.groupby(shared, key=operator.itemgetter(0)):
            yield name, [o for _, o in group]

    def longer_than(self, identifier_length: int, object_length: int) -> list[str]:
        """Objects whose identifier or name has more characters than the server takes."""
        return self._objects(
            "length(identifier) > ? OR length(object) > ?", identifier_length, object_length
        )

    def without_crc32c(self) -> list[str]:
        """Images whose checksum the listing does not give, in row order."""
        return self._objects("crc32c = ?", NO_CRC32C)

    def _objects(self, where: str, *values: int) -> list[str]:
        query = f"SELECT object FROM listed WHERE {where} ORDER BY split, object"
        return [name for (name,) in self._db.execute(query, values)]

    def skipped(self) -> list[tuple[str, int, str]]:
        """What is not taken as an image: kind (".JPG", ".txt"), how many, and one of them."""
        return self._db.execute("SELECT * FROM skipped ORDER BY objects DESC, kind").fetchall()


def _kind(name: str) -> str:
    """What a skipped object is, by its extension: ".JPG", ".txt", "directory", "no extension"."""
    if name.endswith("/"):
        return "directory"
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return f".{extension}" if dot and stem and len(extension) <= 20 else "no extension"
