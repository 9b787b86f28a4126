"""Durable writes, checksums, and the errors of disks."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from common.errors import DiskError
from common.files import (
    crc32c_of_bytes,
    crc32c_of_file,
    disk_errors,
    write_atomically,
    written_whole,
)


def test_a_file_is_written_whole(tmp_path):
    write_atomically(tmp_path / "a", iter([b"one ", b"two"]))
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error), written_whole(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
        raise error
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["a", "a.tmp"])
def test_what_is_no_regular_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DiskError, match=f"{name} is a FIFO, not a regular file: remove it"):
        write_atomically(tmp_path / "a", [b"new"])
    assert os.listdir(tmp_path) == [name]


def test_crc32c_of_a_part_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before123456789after")
    assert crc32c_of_file(path, 6, 9) == 0xE3069283  # RFC 3720's check value
    assert crc32c_of_file(path) == crc32c_of_bytes(path.read_bytes())


CONTINUES = "free space or repair the disk; the same command then continues where this one stopped."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "x", "w/a"), f"Writing to w/a failed (x): {CONTINUES}"),
        (
            sqlite3.OperationalError("database or disk is full"),
            f"Writing to work failed (database or disk is full): {CONTINUES}",
        ),
        (
            sqlite3.DatabaseError("database disk image is malformed"),
            "The state in work is damaged (database disk image is malformed): remove that "
            "directory, or choose another with --work_dir. What it uploaded stays in the index "
            "bucket.",
        ),
    ],
)
def test_errors_of_the_disk_are_one_sentence_with_the_next_step(error, sentence):
    with pytest.raises(DiskError) as caught, disk_errors(Path("work")):
        raise error
    assert caught.value.message == sentence
