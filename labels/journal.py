"""The record on disk of what was sent and what was stored, so that no label is stored twice.

It is a SQLite file. One row says what the journal belongs to, and one row per request what became
of that request, each with a checksum. All rows are on the disk before the first request is sent; a
request is SENT there before it is sent. So after a crash or a power cut it is known which requests
may have been carried out. A row that is damaged, missing or from another journal makes its request
uncertain, and damage that SQLite finds makes all of them uncertain.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import secrets
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.errors import IngestError
from common.files import checksum, locked, sync_directory
from common.process import close_database
from common.terminal import printable
from forager.generation import Kind, amount
from labels.plan import Plan

FORMAT = 3
LINES = b'{"line": 0, "format": '  # so the journals of formats 1 and 2 begin
SCHEMA = """
CREATE TABLE header (fields TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE requests (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, labels INTEGER NOT NULL, state TEXT NOT NULL,
    created INTEGER NOT NULL, checksum INTEGER NOT NULL
);
"""
WRITE_ROW = "REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?)"


class State(enum.Enum):
    """Of a request."""

    WAITING = "waiting"
    SENT = "sent"  # without an answer so far: the server may or may not have carried it out
    STORED = "stored"


@dataclass(frozen=True)
class Entry:
    """What is known about one request."""

    kind: Kind
    labels: int
    state: State = State.WAITING
    created: int = 0  # how many labels the server stored


UNREADABLE = Entry(Kind.LABELS, 1, State.SENT)  # at least one label, which may be stored


class Journal:
    """The journal at `path`, locked; a context manager.

    Nothing is changed on the disk before the first request is recorded.

    Args:
        belongs_to: what the run is about; a journal of anything else is not continued.
        start_over: whether the earlier run does not matter, except for warnings.
        label_file: which file the labels are from, for `is_of_another_file`.

    Attributes:
        entries: by request; before `begin`, those of an earlier run.
        damaged: whether rows are missing or damaged.

    Raises:
        IngestError: the file is in use, is no file, or is of an earlier version.
    """

    def __init__(
        self,
        path: Path,
        belongs_to: dict[str, str],
        start_over: bool = False,
        label_file: Path | None = None,
    ) -> None:
        self.path = path
        self._label_file = str(label_file)
        self.entries: list[Entry] = []
        self.damaged = False
        self._belongs_to = belongs_to
        self._start_over = start_over
        self._header: dict[str, Any] = {}  # of the earlier run, if it is readable
        self._db: sqlite3.Connection | None = None  # if the file has the rows of this run
        self._lock = _locked(path)  # None: there is no file
        if self._lock is None:
            return
        if not start_over and os.pread(self._lock, len(LINES), 0) == LINES:
            self.close()
            raise IngestError(
                f"{printable(str(path))} was written by an earlier version of this program: finish "
                "that run with that version, or move the file away if nothing more is to be sent "
                "of it. To send all labels now, whatever is stored, add --restart."
            )
        self._read()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give up its lock."""
        if self._db is not None:
            close_database(self._db)
        if self._lock is not None:
            os.close(self._lock)
        self._db = self._lock = None

    def _read(self) -> None:
        """Read what the file says about the earlier run."""
        try:
            with contextlib.closing(_connect(self.path)) as db:
                if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("damaged")
                ((fields, recorded),) = db.execute("SELECT fields, checksum FROM header")
                if recorded != checksum(fields):
                    raise sqlite3.DatabaseError("damaged")
                header = json.loads(fields)
                entries = [UNREADABLE] * header["requests"]
                for number, *values, recorded in db.execute("SELECT * FROM requests"):
                    if recorded == checksum(header["run"], number, *values):
                        kind, labels, state, created = values
                        entries[number] = Entry(Kind(kind), labels, State(state), created)
        except (sqlite3.Error, ValueError):
            self.damaged = True
        else:
            self._header, self.entries = header, entries
            self.damaged = any(entry is UNREADABLE for entry in entries)

    @property
    def finished(self) -> bool:
        """Whether the file is of a finished run, be it of these labels or of others."""
        return bool(self._header) and not self.numbers(State.WAITING, State.SENT)

    def differences(self) -> dict[str, tuple[str, str]]:
        """What the earlier run belonged to, and this one, where they differ."""
        return {
            name: (self._header[name], value)
            for name, value in self._belongs_to.items()
            if self._header and self._header[name] != value
        }

    def has(self, plan: Plan) -> bool:
        """Whether the earlier run sent exactly these requests."""
        return self._header.get("requests_sha256") == plan.digest

    def begin(self, plan: Plan) -> None:
        """Prepare to send the plan: go on with the earlier run, or start over.

        After damage, a request is SENT unless its row is readable.

        Raises:
            IngestError: an unfinished run of other labels stored labels, or may have.
        """
        entries = [Entry(request.kind, request.size) for request in plan.requests]
        if self._lock is None or self._start_over:
            self.damaged = False
        elif not self._header:
            entries = [replace(entry, state=State.SENT) for entry in entries]
        elif self.differences() or not self.has(plan):
            self._refuse_to_replace()
            self.damaged = False
        else:
            entries = [
                replace(entry, state=State.SENT) if known is UNREADABLE else known
                for known, entry in zip(self.entries, entries, strict=True)
            ]
        self.entries = entries
        self._digest = plan.digest

    def _refuse_to_replace(self) -> None:
        """Raise IngestError unless the earlier run is finished or stored nothing."""
        stored = self.sizes(State.SENT, State.STORED)
        if self.finished or not stored:
            return
        what = "; ".join(
            f"{name.replace('_', ' ')} {printable(earlier)!r}, now {printable(now)!r}"
            for name, (earlier, now) in self.differences().items()
        )
        what = what or "other requests, because of --skip_unknown, an unreadable index or an update"
        raise IngestError(
            f"An interrupted run left {printable(str(self.path))}, which belongs to something "
            f"else: {what}. That run stored, or may have stored, {amount(stored)}. Repeat it to "
            "finish it, or send all labels of this run with --restart."
        )

    def sizes(self, *states: State) -> Counter[Kind]:
        """How many labels and boxes the requests in these states have."""
        sizes: Counter[Kind] = Counter()
        for number in self.numbers(*states):
            sizes[self.entries[number].kind] += self.entries[number].labels
        return sizes

    def created(self) -> list[int]:
        """How many labels the server stored of each request."""
        return [entry.created for entry in self.entries]

    def numbers(self, *states: State) -> list[int]:
        """The places in `entries` of the requests in these states."""
        return [number for number, entry in enumerate(self.entries) if entry.state in states]

    def record(self, number: int, state: State, created: int = 0) -> None:
        """Write to the disk what became of a request; `number` is its place in `entries`.

        Raises:
            IngestError: the disk is full or fails, or another process made a journal meanwhile.
        """
        self.entries[number] = replace(self.entries[number], state=state, created=created)
        try:
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):  # a failing disk: a new file may do
                    self._db.execute(WRITE_ROW, self._row(number))
                    return
            self._write_all()
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise IngestError(
                f"Cannot write the journal {printable(str(self.path))} ({reason}): nothing more is "
                "sent; the same command continues."
            ) from error

    def _write_all(self) -> None:
        """Write all rows to a new file, locked from its beginning, and rename it."""
        new_path = self.path.with_name(self.path.name + ".new")
        new = _locked(new_path, os.O_CREAT)
        assert new is not None
        try:
            if self._lock is None and os.path.lexists(self.path):
                raise _in_use(self.path)
            os.ftruncate(new, 0)
            self._write_rows(new_path)
            os.fsync(new)
            # What SQLite left beside a damaged file would be rolled back into the new one.
            Path(f"{self.path}-journal").unlink(missing_ok=True)
            os.replace(new_path, self.path)
            sync_directory(self.path.parent)
        except BaseException:
            os.close(new)
            raise
        self.close()
        self._lock, self._db, self.damaged = new, _connect(self.path), False

    def _write_rows(self, path: Path) -> None:
        """Write everything into an empty file."""
        self._header = {
            "format": FORMAT,
            "run": secrets.token_hex(8),
            **self._belongs_to,
            "label_file": self._label_file,
            "requests": len(self.entries),
            "requests_sha256": self._digest,
        }
        fields = json.dumps(self._header)
        with contextlib.closing(_connect(path)) as db:
            db.execute("PRAGMA journal_mode=OFF")  # the file is of no use before it is complete
            db.executescript(f"BEGIN; {SCHEMA}")
            db.execute("INSERT INTO header VALUES (?, ?)", (fields, checksum(fields)))
            db.executemany(WRITE_ROW, map(self._row, range(len(self.entries))))
            db.execute("COMMIT")

    def _row(self, number: int) -> tuple[int, str, int, str, int, int]:
        """The row of a request, with a checksum that fits this run and this place alone."""
        entry = self.entries[number]
        values = number, entry.kind.value, entry.labels, entry.state.value, entry.created
        return *values, checksum(self._header["run"], *values)


def is_of_another_file(path: Path, label_file: Path, digest: str) -> bool:
    """Whether the journal at `path` is of a label file elsewhere, with other content than `digest`.

    False where there is no journal, or none that says this.
    """
    if not os.path.isfile(path):  # SQLite would wait for the other end of a named pipe
        return False
    uri = f"file://{quote(os.fsencode(path.absolute()))}?mode=ro&nolock=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
            header = json.loads(db.execute("SELECT fields FROM header").fetchone()[0])
    except (sqlite3.Error, ValueError, TypeError):
        return False
    known = header.get("label_file")
    is_same = known in (None, str(label_file.absolute()))
    return not is_same and header.get("label_file_sha256") != digest


def _connect(path: Path) -> sqlite3.Connection:
    """The database in a file that is locked already."""
    # SQLite's own locks (fcntl) are off: on some systems they conflict with the one that is held.
    uri = f"file://{quote(os.fsencode(path.absolute()))}?mode=rw&nolock=1"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    # The rollback journal is kept from one commit to the next, which saves a third of the time.
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    # EXTRA is FULL, and also syncs the directory after the rollback journal is deleted: otherwise a
    # power cut could bring it back, and with it the state before.
    db.execute("PRAGMA synchronous=EXTRA")
    return db


def _locked(path: Path, flags: int = 0) -> int | None:
    """A descriptor of the locked file, or None if there is none.

    Raises:
        IngestError: it is not a regular file, cannot be opened, or another process has it.
    """
    try:
        return locked(path, flags)
    except BlockingIOError:
        raise _in_use(path) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not flags & os.O_CREAT:
            return None
        raise IngestError(
            f"Cannot write the journal {printable(str(path))} ({error.strerror}): name a directory "
            "for it with --work_dir."
        ) from error


def _in_use(path: Path) -> IngestError:
    return IngestError(
        f"Another ingest_labels.py is sending these labels: it holds {printable(str(path))}."
    )
