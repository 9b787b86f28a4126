"""A part of a file that reads as a file of its own."""

from storage.uploads import FileSlice


def test_a_slice_reads_and_seeks_within_its_bounds(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with FileSlice(tmp_path / "file", 2, 5) as part:
        assert (part.read(3), part.tell(), part.read(9), part.read(1)) == (b"234", 3, b"56", b"")
        assert (part.seek(-2, 2), part.read(-1)) == (3, b"56")
        assert (part.seek(1), part.seek(1, 1), part.read(1)) == (1, 2, b"4")
