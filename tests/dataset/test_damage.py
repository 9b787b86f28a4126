"""A state whose bytes changed on the disk is found to be damaged, or nothing of it differs."""

import random
import shutil
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import DamagedState, IngestError
from common.files import disk_errors
from dataset.database import VERSION, index_id_on_disk
from dataset.state import Outcome, State
from gcs import ListedObject
from tests.dataset.states import state_of

INDEX_ID = str(uuid.UUID(int=2**127 + 5, version=4))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A state of 300 images, two thirds of them done or failed, and everything that is in it."""
    state = state_of(
        tmp_path_factory.mktemp("sound"),
        [ListedObject(f"t/{i:03}.jpg", 10 + i, 2**31 + i, 7) for i in range(250)],
        [ListedObject(f"v/{i:03}.png", 20 + i, i, 8) for i in range(50)],
    )
    state.set_options({"dataset": "birds", "index_id": INDEX_ID, "bucket": "foragerml"})
    state.record(Outcome(row, row % 1000, None, row * 7) for row in range(150))
    state.record(Outcome(row, None, "truncated") for row in range(150, 200))
    state._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    state.close()
    return state.path


def content(path):
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return [
            db.execute(f"SELECT * FROM {t} ORDER BY 1").fetchall() for t in ("options", "images")
        ]


def changed(sound, directory, statement):
    """A copy in which something else executed this statement."""
    path = Path(shutil.copy(sound, directory))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)
    return path


def damaged(sound, path, seed):
    """A copy with some bytes changed at random places."""
    shutil.copy(sound, path)
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def try_damage(sound, tmp_path, seed):
    path = tmp_path / "state.sqlite"
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    damaged(sound, path, seed)
    try:
        with disk_errors(tmp_path):
            state = State.open_checked(path)
    except IngestError as error:
        what = (
            "was written by another version" if "its tables have" in error.message else "is damaged"
        )
        assert error.message.startswith(f"The state in {tmp_path} {what}"), seed
        assert "What it uploaded stays in the index bucket; its index id " in error.message
        return True
    state.close()
    assert content(path) == content(sound), seed
    return False


def test_damage_is_found_or_changes_nothing(sound, tmp_path):
    found = sum(try_damage(sound, tmp_path, seed) for seed in range(60))
    assert 30 < found < 60


@pytest.mark.soak
def test_damage_is_found_or_changes_nothing_500_times(sound, tmp_path):
    for seed in range(1000, 1500):
        try_damage(sound, tmp_path, seed)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE options SET value = 'cats' WHERE name = 'dataset'", "options do not match"),
        ("DELETE FROM options WHERE name = 'index_id'", "options do not match"),
        ("UPDATE images SET identifier = 'other' WHERE slot = 7", "image 7 does not match"),
        ("UPDATE images SET imagenet_class = 5 WHERE slot = 8", "image 8 does not match"),
        ("UPDATE images SET status = 1 WHERE slot = 299", "image 299 does not match"),
        ("UPDATE images SET size = 'many' WHERE slot = 9", "image 9 does not match"),
        ("DELETE FROM images WHERE slot = 10", "299 images, where it recorded 300"),
        ("DROP TABLE skipped", "its tables are not those of an ingest"),
    ],
)
def test_what_is_wrong_is_named_with_the_index_id(sound, tmp_path, statement, said):
    path = changed(sound, tmp_path, statement)
    with pytest.raises(DamagedState, match=said) as caught:
        State.open_checked(path)
    assert "index_id" in statement or f"its index id is {INDEX_ID}" in caught.value.message


def test_a_state_of_another_version_is_told_in_full(sound, tmp_path):
    path = changed(sound, tmp_path, "PRAGMA user_version = 3")
    with pytest.raises(DamagedState) as caught:
        State.open_checked(path)
    assert caught.value.message == (
        f"The state in {tmp_path} was written by another version of this program (its tables have "
        f"version 3, this program's have {VERSION}): continue it with that version, "
        "or start over: remove that directory, or choose another with --work_dir. What it uploaded "
        f"stays in the index bucket; its index id is {INDEX_ID}."
    )


def test_the_index_id_is_read_from_a_file_that_is_no_database_any_more(sound, tmp_path):
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"x" * 100 + sound.read_bytes()[100:])
    assert index_id_on_disk(path) == INDEX_ID
    path.write_bytes(b"")
    assert index_id_on_disk(path) is None and index_id_on_disk(tmp_path / "none") is None
