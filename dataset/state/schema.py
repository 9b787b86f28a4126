"""The tables of a state in SQLite, and the checks that find damage in them.

What SQLite does not notice, such as a byte that changes inside a value, is found by checksums: one
over the options, and one per row.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import re
import sqlite3
import zlib
from pathlib import Path

from common.errors import DamagedState, OtherVersion
from common.terminal import printable

PENDING, DONE, FAILED = 0, 1, 2  # what status is
# Reasons of rows that failed because the ingest keeps its list while the bucket changes.
VANISHED = "it vanished from the bucket after it was listed"
REPLACED = "it was replaced in the bucket after it was listed"
VERSION = 4  # of the tables, as SQLite's user_version
OPTIONS_CHECKSUM = "checksum"  # the option that holds the checksum over all others
INDEX_ID_ON_DISK = re.compile(rb"index_id([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
# No table has an index beside it, in which damage would go unnoticed.
SCHEMA = """
CREATE TABLE options (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE skipped (
    kind TEXT PRIMARY KEY, objects INTEGER NOT NULL, example TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE listed (
    split INTEGER NOT NULL, object TEXT NOT NULL, identifier TEXT NOT NULL,
    size INTEGER NOT NULL, crc32c INTEGER NOT NULL, generation INTEGER NOT NULL
);
"""
ROWS = """
CREATE TABLE rows (
    row INTEGER PRIMARY KEY, split INTEGER NOT NULL, object TEXT NOT NULL,
    identifier TEXT NOT NULL, size INTEGER NOT NULL, crc32c INTEGER NOT NULL,
    generation INTEGER NOT NULL, status INTEGER NOT NULL DEFAULT 0,
    imagenet_class INTEGER, reason TEXT, vectors_crc32c INTEGER, width INTEGER, height INTEGER,
    source TEXT, checksum INTEGER NOT NULL
);
INSERT INTO rows
    SELECT *, 0, NULL, NULL, NULL, NULL, NULL, NULL, checksum(row, split, object, identifier, size,
        crc32c, generation, 0, NULL, NULL, NULL, NULL, NULL, NULL)
    FROM (SELECT row_number() OVER (ORDER BY split, object) - 1 AS row, * FROM listed)
    ORDER BY row;
DROP TABLE listed;
"""
LISTED = "row, split, object, identifier, size, crc32c, generation"
OUTCOME = "status, imagenet_class, reason, vectors_crc32c, width, height, source"
NEW_OUTCOME = ", ".join(f":{name}" for name in OUTCOME.split(", "))
SET_OUTCOME = (
    f"UPDATE rows SET ({OUTCOME}, checksum) = ({NEW_OUTCOME}, checksum({LISTED}, {NEW_OUTCOME}))"
)
PENDING_AGAIN = {**dict.fromkeys(OUTCOME.split(", ")), "status": PENDING}
WRONG_ROW = f"checksum IS NOT checksum({LISTED}, {OUTCOME})"


def damaged_state(path: Path, reason: str, *, other_version: bool = False) -> DamagedState:
    """The error for a state that cannot be used; `reason` says what is wrong with it."""
    index_id = index_id_on_disk(path)
    uploaded = f"its index id is {index_id}" if index_id else "its index id cannot be read"
    shown = printable(reason)
    what, ways_out = "is damaged", "remove that directory, or choose another with --work_dir"
    if other_version:
        what = "was written by another version of this program"
        ways_out = f"continue it with that version, or start over: {ways_out}"
    return (OtherVersion if other_version else DamagedState)(
        f"The state in {path.parent} {what} ({shown}): {ways_out}. What it uploaded stays in the "
        f"index bucket; {uploaded}.",
        shown,
    )


def other_version_of(db: sqlite3.Connection) -> str:
    """Which version of the tables a state has that another version of this program wrote; or ""."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version in (0, VERSION):  # no program writes 0
        return ""
    return f"its tables have version {version}, and those of this program version {VERSION}"


def problem_of(db: sqlite3.Connection) -> str:
    """What is wrong with the content of a state, or ""."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        return str(found)
    if _schema_of(db) != _expected_schema():
        return "its tables are not those of an ingest"
    options = dict(db.execute("SELECT name, value FROM options"))
    if options.pop(OPTIONS_CHECKSUM, None) != options_checksum(options):
        return "its options do not match their checksum"
    count, last = db.execute("SELECT count(*), max(row) FROM rows").fetchone()
    if count and last != count - 1:
        return f"{count:,} rows, the last of them {last:,}"
    wrong = db.execute(f"SELECT row FROM rows WHERE {WRONG_ROW} LIMIT 1").fetchone()
    return f"row {wrong[0]:,} does not match its checksum" if wrong else ""


def index_id_on_disk(path: Path) -> str | None:
    """The index id in the bytes of a state's files, however damaged they are; None without one."""
    for suffix in ("", "-wal"):
        with (
            contextlib.suppress(OSError, ValueError),  # it is not there, or empty
            open(f"{path}{suffix}", "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if found := INDEX_ID_ON_DISK.search(content):
                return found[1].decode()
    return None


def row_checksum(*values: object) -> int:
    """CRC-32 of some values of SQLite."""
    return zlib.crc32(repr(values).encode(errors="replace"))


def options_checksum(options: dict[str, str]) -> str:
    return str(row_checksum(*sorted(options.items())))


@functools.cache
def _expected_schema() -> list[tuple[str, str]]:
    """What `_schema` gives for a state whose rows are numbered."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.create_function("checksum", -1, row_checksum, deterministic=True)
        db.executescript(SCHEMA)
        db.executescript(ROWS)
        return _schema_of(db)


def _schema_of(db: sqlite3.Connection) -> list[tuple[str, str]]:
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    return db.execute(query).fetchall()
