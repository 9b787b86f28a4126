"""The index on disk: the bytes that the server opens."""

import errno
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DiskError
from common.files import crc32c_of_file
from dataset.arrays import (
    BYTES_PER_ROW,
    DIMENSIONS,
    Arrays,
    array_path,
    arrays_complete,
    put_in_order,
    verify_arrays,
)
from dataset.lists import index_files, pickled_dict, thumbnail_name, write_lists
from dataset.state import Outcome
from tests.dataset.states import INDEX_ID, images, listed, take, vectors


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_arrays_are_headerless_little_endian_float32(tmp_path):
    rows = [vectors(seed) for seed in range(3)]
    with Arrays(tmp_path, 3) as arrays:
        for row in (2, 0, 1):
            arrays.write(row, rows[row])
        arrays.sync()
    for number, (name, dimension) in enumerate(DIMENSIONS.items()):
        path = tmp_path / "index" / "local" / name / "embeddings.npy"
        assert path.stat().st_size == 3 * dimension * 4
        mapped = np.memmap(path, dtype="<f4", mode="r", shape=(3, dimension))
        assert (mapped == np.stack([row[number] for row in rows])).all()


def test_float64_and_strided_vectors_are_written_as_float32(tmp_path):
    (*_, (last, dimension)) = DIMENSIONS.items()
    strided = np.arange(2 * dimension, dtype=np.float64)[::2]
    with Arrays(tmp_path, 1) as arrays:
        arrays.write(0, [*vectors(0)[:-1], strided])
        with pytest.raises(ValueError, match="are not the vectors of an image"):
            arrays.write(0, [*vectors(0)[:-1], strided[1:]])
    assert (np.fromfile(array_path(tmp_path, last), "<f4") == strided).all()


def test_new_arrays_take_their_space_at_once_and_hold_zeros(tmp_path):
    with Arrays(tmp_path, 100):
        paths = [array_path(tmp_path, name) for name in DIMENSIONS]
        assert sum(path.stat().st_size for path in paths) == 100 * BYTES_PER_ROW
        assert sum(path.stat().st_blocks * 512 for path in paths) >= 100 * BYTES_PER_ROW
        assert not any(path.read_bytes().strip(b"\0") for path in paths)


def test_arrays_complete(tmp_path):
    assert not arrays_complete(tmp_path, 2)
    with Arrays(tmp_path, 2):
        pass
    assert arrays_complete(tmp_path, 2)
    assert not arrays_complete(tmp_path, 3)
    os.truncate(array_path(tmp_path, "clip"), 100)
    assert not arrays_complete(tmp_path, 2)


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskError, match=r"needs 0\.8 GB \(No space left on device\).*--work_dir"):
        Arrays(tmp_path, 100_000)


def test_lists(make_state, tmp_path):
    state = make_state(["t/b.v1.jpg", "t/a.png"], ["v/é.jpeg"])
    state.record([Outcome(0, 7, None), Outcome(1, None, "bad"), Outcome(2, 999, None)])
    write_lists(state, tmp_path)
    read = {
        name: json.loads((tmp_path / "index" / f"{name}.json").read_bytes())
        for name in ("labels", "identifiers", "val_identifiers")
    }
    assert read["labels"] == ["t/a.png", "t/b.v1.jpg", "v/é.jpeg"]
    assert read["identifiers"] == {"a": 0, "b.v1": 1}
    assert read["val_identifiers"] == {"é": 2}
    classes = pickle.loads((tmp_path / "aux" / "imagenet.pickle").read_bytes())
    assert classes == {"a.png": 7, "é.jpeg": 999}


def test_files_become_the_objects_of_the_specification(tmp_path):
    files = {file.object_name: file.path for file in index_files(tmp_path, INDEX_ID)}
    assert files == {
        **{
            f"indexes/{INDEX_ID}/local/{name}/embeddings.npy": array_path(tmp_path, name)
            for name in DIMENSIONS
        },
        f"indexes/{INDEX_ID}/manifest.parquet": tmp_path / "index" / "manifest.parquet",
        f"indexes/{INDEX_ID}/labels.json": tmp_path / "index" / "labels.json",
        f"indexes/{INDEX_ID}/identifiers.json": tmp_path / "index" / "identifiers.json",
        f"indexes/{INDEX_ID}/val_identifiers.json": tmp_path / "index" / "val_identifiers.json",
        f"aux_labels/{INDEX_ID}/imagenet.pickle": tmp_path / "aux" / "imagenet.pickle",
    }
    assert thumbnail_name(INDEX_ID, "t/x/b.v1.jpg") == f"thumbnails/{INDEX_ID}/b.v1.jpg"


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_pickle_of_any_length(count):
    expected = {f"{number}.jpg": number for number in range(count)}
    assert pickle.loads(b"".join(pickled_dict(expected.items()))) == expected


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(0, 999)))
def test_pickle_of_any_names(expected):
    assert pickle.loads(b"".join(pickled_dict(expected.items()))) == expected


def test_every_row_that_differs_is_found(tmp_path):
    with Arrays(tmp_path, 2100) as arrays:
        written = {row: arrays.write(row, vectors(row)) for row in (0, 5, 1000, 2099)}
    path = array_path(tmp_path, "imagenet_early")
    with open(path, "r+b") as file:
        file.seek(1000 * 1024 * 4 + 17)
        file.write(b"\1")
    found = verify_arrays(tmp_path, 2100, iter(written.items()))
    assert found.damaged == [1000]
    assert found.checksums == {n: crc32c_of_file(array_path(tmp_path, n)) for n in DIMENSIONS}
    assert verify_arrays(tmp_path, 2100, iter([(3, 1), (2099, None)])).damaged == [3, 2099]


@pytest.mark.parametrize("index_id", ["", "ID", "../x", INDEX_ID.upper(), INDEX_ID + "/"])
def test_a_malformed_index_id_is_never_part_of_a_name(tmp_path, index_id):
    with pytest.raises(ValueError, match="is no index id"):
        index_files(tmp_path, index_id)
    with pytest.raises(ValueError, match="is no index id"):
        thumbnail_name(index_id, "t/a.jpg")


@pytest.fixture
def out_of_order(make_state):
    """Four images whose slots are not their rows, and a fifth that is not listed any more."""
    contents = {name: number for number, name in enumerate("bdfgh")}
    state = make_state([listed(f"{n}.jpg", crc32c=i) for n, i in contents.items()])
    contents |= {"a": 7, "e": 8}
    write_pending(state, contents)
    take(state, [listed(f"{n}.jpg", crc32c=contents[n]) for n in "adeh"])
    write_pending(state, contents)
    return state, [contents[n] for n in "adeh"]


def write_pending(state, contents):
    """Embed what is pending; the vectors are those of the image's content."""
    with Arrays(state.directory, state.slots()) as arrays:
        for slot, image in list(state.pending()):
            checksum = arrays.write(slot, vectors(contents[image.name.removesuffix(".jpg")]))
            state.record([Outcome(slot, 1, None, checksum)])


def assert_in_order(state, contents):
    for number, (name, dimension) in enumerate(DIMENSIONS.items()):
        found = np.fromfile(array_path(state.directory, name), "<f4").reshape(-1, dimension)
        np.testing.assert_array_equal(found, [vectors(c)[number] for c in contents])
        assert not list(array_path(state.directory, name).parent.glob("*.ordered"))
    assert [slot for slot, _ in images(state).values()] == list(range(len(contents)))
    assert verify_arrays(state.directory, len(contents), state.vector_checksums()).damaged == []


def test_a_disk_that_has_no_space_for_an_array_twice_is_one_sentence(out_of_order, monkeypatch):
    state, contents = out_of_order
    with monkeypatch.context() as patched, pytest.raises(DiskError, match="a second time"):
        patched.setattr(os, "fsync", full)
        put_in_order(state)
    put_in_order(state)
    assert_in_order(state, contents)


def test_images_that_are_not_listed_cost_no_copy(make_state, tmp_path):
    state = make_state([listed(f"{n}.jpg", crc32c=n) for n in range(3)])
    write_pending(state, {str(n): n for n in range(3)})
    take(state, [listed(f"{n}.jpg", crc32c=n) for n in range(2)])
    before = array_path(tmp_path, "clip").stat().st_ino
    put_in_order(state)
    assert_in_order(state, [0, 1])
    assert array_path(tmp_path, "clip").stat().st_ino == before
