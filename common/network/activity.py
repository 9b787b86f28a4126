"""What this process asked of servers and warned of, counted where it happens, for report.json.

There is one count for the whole process: requests are made in several threads and event loops.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from common.terminal import say

LIST, READ, DESCRIBE, PERMISSIONS = "list", "read", "describe", "permissions"
WRITE, CHUNK, COMPOSE, COPY, DELETE = "write", "chunk", "compose", "copy", "delete"
SERVER = "server"  # a request to the Forager server; all others are to Cloud Storage
KINDS = (LIST, READ, DESCRIBE, PERMISSIONS, WRITE, CHUNK, COMPOSE, COPY, DELETE, SERVER)
# How Cloud Storage bills a kind. The other kinds are free: a chunk is a part of its write.
CLASSES = {
    **dict.fromkeys((LIST, WRITE, COMPOSE, COPY), "A"),
    **dict.fromkeys((READ, DESCRIBE, PERMISSIONS), "B"),
}


class Requests(NamedTuple):
    """Requests of one kind."""

    requests: int = 0  # as Cloud Storage bills them: each copy in a batch is one
    retries: int = 0  # those of them that repeat a failed one
    sent: int = 0  # bytes of bodies
    received: int = 0

    def plus(self, other: Requests) -> Requests:
        return Requests(  # written out: it is called for every request
            self.requests + other.requests,
            self.retries + other.retries,
            self.sent + other.sent,
            self.received + other.received,
        )

    def minus(self, other: Requests) -> Requests:
        return Requests(*(a - b for a, b in zip(self, other, strict=True)))


class Activity(NamedTuple):
    """Requests by kind, and warnings."""

    requests: dict[str, Requests]
    warnings: list[str]


_lock = threading.Lock()
_requests: dict[str, Requests] = {}
_warnings: list[str] = []


def count(kind: str, requests: Requests) -> None:
    """Add requests that were made."""
    with _lock:
        _requests[kind] = _requests.get(kind, Requests()).plus(requests)


def as_numbers(requests: Mapping[str, Requests]) -> list[int]:
    """Requests by kind for another process, which gives them to `count_numbers`."""
    return [number for kind in KINDS for number in requests.get(kind, Requests())]


def count_numbers(numbers: Sequence[int]) -> None:
    """Add the requests of another process."""
    size = len(Requests._fields)
    for place, kind in enumerate(KINDS):
        count(kind, Requests(*numbers[place * size : (place + 1) * size]))


def warn(message: str) -> None:
    """Print a message that belongs into the report too: something is not as it should be."""
    say(message)
    with _lock:
        _warnings.append(message)


def activity() -> Activity:
    """Everything so far."""
    with _lock:
        return Activity(dict(_requests), list(_warnings))


def activity_since(start: Activity) -> Activity:
    """What came after an earlier `activity()`."""
    return _between(start, activity())


class RequestsToTell:
    """The requests of this process, for another one that counts them: each is told once."""

    def __init__(self) -> None:
        self._told = activity()

    def numbers(self) -> list[int]:
        """Those since the last call, as `count_numbers` takes them."""
        before, self._told = self._told, activity()
        return as_numbers(_between(before, self._told).requests)


def _between(start: Activity, now: Activity) -> Activity:
    requests = {
        kind: number.minus(start.requests.get(kind, Requests()))
        for kind, number in now.requests.items()
    }
    made = {kind: requests[kind] for kind in KINDS if any(requests.get(kind, ()))}
    return Activity(made, now.warnings[len(start.warnings) :])


def kind_of(method: str, address: str) -> str:
    """The kind of a request to Cloud Storage, by the routes of its JSON API."""
    path, _, query = address.partition("?")
    if method == "DELETE":
        return DELETE
    if method == "PUT":
        return CHUNK
    if method == "POST":
        if path.endswith("/compose"):
            return COMPOSE
        return COPY if "/copyTo/" in path or "/batch/" in path else WRITE
    if "alt=media" in query or "/storage/v1/" not in path:  # the latter is a browser's address
        return READ
    if path.endswith("/o"):
        return LIST
    return PERMISSIONS if path.endswith("/iam/testPermissions") else DESCRIBE
