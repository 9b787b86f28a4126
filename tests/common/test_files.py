"""Durable writes and checksums."""

import os

import pytest

from common.files import crc32c_of_bytes, crc32c_of_file, write_atomically


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
