"""The record on disk of what was sent and what was stored, so that no label is stored twice.

The first line says what the journal belongs to. One line per request follows, and a last line says
whether the run is finished. All lines are written before the first request is sent; later their
states are replaced in place. Each line has its number and a checksum that includes the checksum of
the first line. A line that is missing, repeated, damaged or from another journal is therefore
noticed, wherever the file was cut, and its request counts as uncertain.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import IngestError
from common.files import sync_directory
from common.terminal import count, printable
from labels.locking import lock_existing, lock_new
from labels.requests import LABELS, Request

FORMAT = 2
WAITING, SENT, STORED = "waiting", "sent", "stored"  # states of a request
UNFINISHED, FINISHED = "unfinished", "finished"  # states of the run
CHECK_LENGTH = 16  # hexadecimal digits of SHA-256


class Entry(NamedTuple):
    """What is known about one request."""

    key: str
    kind: str  # LABELS or BOXES
    labels: int
    state: str  # WAITING; SENT without an answer, which is uncertain; or STORED
    created: int  # how many labels the server stored


class Journal:
    """The journal at `path`, locked; a context manager.

    Nothing is changed on the disk before the first request is recorded.

    Attributes:
        entries: by request; before `begin`, those of an earlier run.
        finished: whether an earlier run of the same labels is finished.
        other_finished: whether the file is of a finished run of other labels.
        damaged: whether the file has missing or damaged lines.
    """

    def __init__(self, path: Path, belongs_to: dict[str, str]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.finished = self.other_finished = self.damaged = False
        self._belongs_to = belongs_to
        self._header: dict[str, Any] | None = None  # the first line, if it is readable
        self._start_bytes = 0  # its length, if the file has exactly the lines that it should
        self._new_path = path.with_name(path.name + ".new")
        self._file, self._is_new = self._open()
        if not self._is_new:
            with open(self._file, "rb", closefd=False) as file:
                self._read(file.read())

    def _open(self) -> tuple[int, bool]:
        """The locked file, and whether it is a new one under the temporary name."""
        while True:
            if (found := lock_existing(self.path)) is not None:
                return found, False
            new = lock_new(self._new_path)
            if new is not None and not os.path.lexists(self.path):
                return new, True
            if new is not None:  # meanwhile another run made the journal
                os.close(new)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_new:
            with contextlib.suppress(OSError):
                self._new_path.unlink()
        os.close(self._file)

    def _read(self, data: bytes) -> None:
        """Read what the file says about the earlier run."""
        first, *rest = data.splitlines(keepends=True) or [b""]
        header = _decoded(first, "")
        if header is None or header.get("format") != FORMAT:
            self.damaged = True
            return
        lines = [_decoded(line, header["check"]) for line in rest]
        known: dict[int, dict[str, Any]] = {}
        for fields in filter(None, lines):
            repeated = fields["line"] in known
            known[fields["line"]] = {} if repeated else fields
        number = header["requests"]
        self.entries = [_entry(known.get(place) or {}) for place in range(1, number + 1)]
        self._header = header
        if known.get(number + 1, {}).get("state") == FINISHED:
            self.other_finished = bool(self._differences())
            self.finished = not self.other_finished
        places = [fields["line"] if fields else 0 for fields in lines]
        self.damaged = places != list(range(1, number + 2))
        self._start_bytes = 0 if self.damaged else len(first)

    def _differences(self) -> str:
        """How the earlier run differs from this one, or ""."""
        earlier = self._header or {}
        return "; ".join(
            f"{key.replace('_', ' ')} {printable(earlier[key])!r}, now {printable(value)!r}"
            for key, value in self._belongs_to.items()
            if earlier[key] != value
        )

    def differs_in(self, *keys: str) -> bool:
        """Whether the earlier run belongs to something else in one of these respects."""
        earlier = self._header or {}
        return any(earlier.get(key) != self._belongs_to[key] for key in keys)

    def has(self, requests: Sequence[Request]) -> bool:
        """Whether the earlier run sent exactly these requests."""
        return (self._header or {}).get("requests_sha256") == _digest(_waiting(requests))

    def begin(self, requests: Sequence[Request], start_over: bool = False) -> None:
        """Prepare to send these requests: go on with the earlier run, or start over.

        After damage, a request is SENT unless its line is readable.

        Raises:
            IngestError: an unfinished run of other labels stored labels, or may have.
        """
        waiting = _waiting(requests)
        if self._is_new or start_over:
            self._start(waiting)
        elif self._header is None:
            self.entries = [entry._replace(state=SENT) for entry in waiting]
        elif self._differences() or not self.has(requests):
            self._refuse_to_replace()
            self._start(waiting)
        else:
            self.entries = [
                earlier if earlier.key else entry._replace(state=SENT)
                for earlier, entry in zip(self.entries, waiting, strict=True)
            ]

    def _start(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.finished = self.other_finished = self.damaged = False
        self._start_bytes = 0

    def _refuse_to_replace(self) -> None:
        """Raise IngestError unless the earlier run is finished or stored nothing."""
        if self.finished or self.other_finished or not self.possibly_stored():
            return
        differences, stored = self._differences(), self.possibly_stored()
        what = (
            f"belongs to something else: {differences}"
            if differences
            else "sent other requests than this run would (because of --skip_unknown, because one "
            "of the runs could not read the index, or because this program was updated)"
        )
        raise IngestError(
            f"An interrupted run left {printable(str(self.path))}, which {what}. That run stored, "
            f"or may have stored, {count(sum(stored.values()), 'label')}. Repeat it to finish "
            "it, or send all labels of this run with --restart."
        )

    def possibly_stored(self) -> Counter[str]:
        """How many labels and boxes were stored or may have been, by kind."""
        stored: Counter[str] = Counter()
        for entry in self.entries:
            if entry.state != WAITING:
                stored[entry.kind] += entry.labels or not entry.key  # at least one, if damaged
        return stored

    def uncertain(self) -> list[int]:
        """The numbers of the requests that may have been carried out."""
        return [n for n, entry in enumerate(self.entries) if entry.state == SENT]

    def sent(self, number: int) -> None:
        """Record that a request is about to be sent; `number` is its place in `entries`."""
        self._record(number, SENT, 0)

    def stored(self, number: int, created: int) -> None:
        """Record that the server stored `created` labels."""
        self._record(number, STORED, created)

    def refused(self, number: int) -> None:
        """Record that the server certainly stored nothing."""
        self._record(number, WAITING, 0)

    def finish(self) -> None:
        """Record that all requests are stored."""
        self.finished = True
        self._write(len(self.entries) + 1)

    def _record(self, number: int, state: str, created: int) -> None:
        self.entries[number] = self.entries[number]._replace(state=state, created=created)
        self._write(number + 1)

    def _write(self, place: int) -> None:
        """Write one line to the disk, or all of them if the file does not have them."""
        try:
            if not self._start_bytes:
                self._write_all()
                return
            line = self._line(place)
            offset = self._start_bytes + (place - 1) * len(self._line(1))
            _write_at(self._file, line, offset)
        except OSError as error:
            raise IngestError(
                f"Cannot write the journal {printable(str(self.path))} ({error.strerror}): "
                "nothing more is sent; the same command continues."
            ) from error

    def _write_all(self) -> None:
        """Write the journal under a temporary name, then rename it. Keeps the lock throughout."""
        header = {
            "line": 0,
            "format": FORMAT,
            "run": secrets.token_hex(8),
            **self._belongs_to,
            "requests": len(self.entries),
            "labels": sum(entry.labels for entry in self.entries),
            "requests_sha256": _digest(self.entries),
        }
        first = _encoded(json.dumps(header), "")
        self._header = _decoded(first, "")
        lines = [first, *(self._line(place) for place in range(1, len(self.entries) + 2))]
        new = self._file if self._is_new else lock_new(self._new_path)
        if new is None:
            raise OSError(errno.EAGAIN, "another process replaced it")
        os.ftruncate(new, 0)
        _write_at(new, b"".join(lines), 0)
        os.replace(self._new_path, self.path)
        sync_directory(self.path.parent)
        if not self._is_new:
            os.close(self._file)
        self._file, self._is_new, self.damaged = new, False, False
        self._start_bytes = len(first)

    def _line(self, place: int) -> bytes:
        """Line `place` of the file, after the first. The lines of requests have one length."""
        seal = (self._header or {})["check"]
        if place > len(self.entries):
            state = FINISHED if self.finished else UNFINISHED
            return _encoded(f'{{"line": {place:8}, "state": {_padded(state)}}}', seal)
        key, kind, labels, state, created = self.entries[place - 1]
        return _encoded(
            f'{{"line": {place:8}, "request": "{key}", "kind": {_padded(kind)}, "labels": '
            f'{labels:8}, "state": {_padded(state)}, "created": {created:10}}}',
            seal,
        )


def _padded(word: str) -> str:
    return f'"{word}"'.ljust(len(UNFINISHED) + 2)


def _write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of the data and wait until it is on the disk."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
    os.fsync(file)


def _encoded(text: str, seal: str) -> bytes:
    """A JSON object as a line that ends with a checksum; `seal` is the one of the first line."""
    return f'{text[:-1]}, "check": "{_check(text[:-1].encode(), seal)}"}}\n'.encode()


def _decoded(line: bytes, seal: str) -> dict[str, Any] | None:
    """The object in a line, or None if the checksum does not fit."""
    text, _, check = line.rpartition(b', "check": "')
    if check != f'{_check(text, seal)}"}}\n'.encode():
        return None
    fields: dict[str, Any] = json.loads(line)
    return fields


def _check(text: bytes, seal: str) -> str:
    return hashlib.sha256(seal.encode() + text).hexdigest()[:CHECK_LENGTH]


def _entry(fields: dict[str, Any]) -> Entry:
    """The entry of a line; without a readable line it is SENT and has no key."""
    return Entry(
        fields.get("request", ""),
        fields.get("kind", LABELS),
        fields.get("labels", 0),
        fields.get("state", SENT),
        fields.get("created", 0),
    )


def _waiting(requests: Sequence[Request]) -> list[Entry]:
    return [Entry(r.key(), r.kind, r.size(), WAITING, 0) for r in requests]


def _digest(entries: Iterable[Entry]) -> str:
    """A digest of what is sent."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.key.encode())
    return digest.hexdigest()
