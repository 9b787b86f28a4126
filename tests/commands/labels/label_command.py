"""A local Forager with datasets to label, and faults before it."""

import contextlib
import sqlite3

from tests.stand_in import Rule, StandIn, in_order

IMAGES = ["t/a.jpg", "t/b.v1.png", "t/c.jpeg", "v/d.jpg", "v/é.jpg"]
GOOD = {
    "any/where/a.jpg": ["cat", {"category": "dog", "value": "NEGATIVE"}],
    "b.v1.png": [{"category": "cat", "mode": "far away"}],
    "é.jpg": ["cat"],
    "d.jpg": ["cat"],
}
STORED = [
    ("a", "cat", "POSITIVE"),
    ("a", "dog", "NEGATIVE"),
    ("b.v1", "cat", "far away"),
    ("d", "cat", "POSITIVE"),
    ("é", "cat", "POSITIVE"),
]


def box(category="cat", x2=40.5, **fields):
    corners = {"x1": 10, "y1": 20, "x2": x2, "y2": 60}
    return {"category": category, "is_box": True, **corners, **fields}


WITH_BOXES = GOOD | {
    "c.jpeg": [box(), box(x2=41), "cat", box("dog", mode="far away")],
    "d.jpg": ["cat", box(value="NEGATIVE")],
}
BOXES = [
    ("c", "cat", "POSITIVE", 10, 20, 40.5, 60),
    ("c", "cat", "POSITIVE", 10, 20, 41, 60),
    ("c", "dog", "far away", 10, 20, 40.5, 60),
    ("d", "cat", "NEGATIVE", 10, 20, 40.5, 60),
]


class Server:
    """A running local Forager with the datasets `birds`, with an index, and `noindex`."""

    def __init__(self, generation, url, data_dir):
        self.generation = generation
        self.url = url
        self.database = data_dir / "forager.sqlite3"

    def ask(self, query):
        with contextlib.closing(sqlite3.connect(self.database)) as database, database:
            return database.execute(query).fetchall()

    def stored(self):
        """(identifier, category, mode) of every label there is."""
        query = "SELECT identifier, category, mode FROM label JOIN item ON item.id = label.item"
        return sorted(self.ask(query))

    def boxes(self):
        """Every box there is, as a tuple."""
        columns = "identifier, category, mode, x1, y1, x2, y2"
        return sorted(self.ask(f"SELECT {columns} FROM box JOIN item ON item.id = box.item"))

    def emptied(self):
        """The server, without labels and boxes."""
        for table in ("label", "box"):
            self.ask(f"DELETE FROM {table}")
        return self


def failing(server, *faults):
    """What the requests that store labels meet before a server, in turn; the others pass."""
    return StandIn(server.url, Rule("POST /api/add_annotations", in_order(*faults, None)))
