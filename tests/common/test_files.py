"""Durable writes, checksums, and the errors of disks."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from common.errors import DiskError
from common.files import crc32c_of_bytes, crc32c_of_file, disk_errors, write_atomically


def test_a_file_is_written_whole(tmp_path):
    write_atomically(tmp_path / "a", iter([b"one ", b"two"]))
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def pieces():
        yield b"new"
        raise ValueError("no more")

    with pytest.raises(ValueError):
        write_atomically(tmp_path / "a", pieces())
    assert (tmp_path / "a").read_bytes() == b"old"


def test_crc32c_of_a_part_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before123456789after")
    assert crc32c_of_file(path, 6, 9) == 0xE3069283  # RFC 3720's check value
    assert crc32c_of_file(path) == crc32c_of_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "work/index/labels.json"),
            "Writing to work/index/labels.json failed (No space left on device): free space or "
            "repair the disk; the same command then continues where this one stopped.",
        ),
        (
            sqlite3.OperationalError("database or disk is full"),
            "Writing to work failed (database or disk is full): free space or repair the disk; the "
            "same command then continues where this one stopped.",
        ),
        (
            sqlite3.DatabaseError("database disk image is malformed"),
            "The state in work is damaged (database disk image is malformed): remove that "
            "directory, or choose another with --work_dir. What it uploaded stays in the index "
            "bucket.",
        ),
    ],
)
def test_errors_of_the_disk_are_one_sentence_with_the_next_step(error, advice):
    with pytest.raises(DiskError) as caught, disk_errors(Path("work")):
        raise error
    assert caught.value.message == advice
