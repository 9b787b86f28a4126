"""A local Forager with datasets to label, and a proxy that fails before it."""

import asyncio
import json
import sqlite3
from contextlib import contextmanager

from forager.client import Forager
from testing.servers.processes import local_forager
from tests.stand_in import Answer, Rule, StandIn

LABELS = "add_annotations_by_internal_identifiers_v2"
MULTI = "add_annotations_multi_v2"
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

    def __init__(self, generation, data_dir, bucket):
        self.generation = generation
        self.data_dir = data_dir
        self.bucket = bucket

    def __enter__(self):
        options = "--generation", self.generation
        self.service = local_forager(self.data_dir, self.data_dir / "log", *options)
        self.url = self.service.url
        asyncio.run(self.create())
        return self

    async def create(self):
        async with Forager(self.url) as client:
            paths = [f"gs://{self.bucket}/t/", f"gs://{self.bucket}/v/"]
            await client.create_dataset("birds", *paths, "i", 3, 2)
            await client.create_dataset("noindex", *paths, "none", 3, 2)

    def __exit__(self, *exception):
        self.service.stop()

    def ask(self, query):
        database = sqlite3.connect(self.data_dir / "forager.sqlite3")
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()

    def count(self):
        return self.ask("SELECT count(*) FROM label")[0][0]

    def duplicates(self):
        """Labels that are stored more than once."""
        return self.ask(
            "SELECT item, category, mode FROM label GROUP BY item, category, mode"
            " HAVING count(*) > 1"
        )

    def stored(self):
        """(identifier, category, mode) of every label there is, and the labels are removed."""
        rows = self.ask(
            "SELECT identifier, category, mode FROM label JOIN item ON item.id = label.item"
        )
        self.remove("label")
        return sorted(rows)

    def boxes(self):
        """Every box there is, as a tuple, and the boxes are removed."""
        rows = self.ask(
            "SELECT identifier, category, mode, x1, y1, x2, y2"
            " FROM box JOIN item ON item.id = box.item"
        )
        self.remove("box")
        return sorted(rows)

    def remove(self, table):
        database = sqlite3.connect(self.data_dir / "forager.sqlite3")
        with database:
            database.execute(f"DELETE FROM {table}")
        database.close()


class Proxy:
    """Before a server; `faults` says what happens to label requests, in their order.

    "reset" breaks the connection at once, "lost" after the server's answer. "hang" keeps the
    request, "kept" the answer. A number is a status. Past the end of the list all goes through.
    """

    def __init__(self, target, faults):
        self.faults = list(faults)
        self.bodies = []
        self.handle = StandIn(target, Rule(f"POST /api/({LABELS}|{MULTI})", self.next_fault))
        self.hanging = self.handle.holding

    def next_fault(self, asked):
        self.bodies.append(json.loads(asked.body))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return Answer(fault, "<title>fault</title>")
        return "hold" if fault == "hang" else fault


@contextmanager
def serve(server):
    """A server behind a port of this machine."""
    with server:
        yield server.url
