"""Small objects: written, read and checked, whatever their names."""

import json
from base64 import b64encode

import pytest

import gcs
from gcs import ListedObject, StorageError
from storage.async_client import ObjectUnusable
from tests.front import Answer, Front
from tests.world import listing, put, with_objects

ODD_NAMES = [
    "t/a b.jpg",
    "t/#1?.jpg",
    "t/50%25.jpg",
    "t/été 😀.jpg",
    "t/<b>&'\".jpg",
    "t/a+b=c.jpg",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_written_listed_and_read(make_bucket, name):
    bucket = make_bucket()
    with_objects("put", bucket, name, b"content", "image/jpeg")
    (listed,) = listing(bucket)
    assert listed.name == name
    assert with_objects("fetch", bucket, listed) == b"content"
    assert with_objects("public_status", bucket, name) in (200, 206)
    assert gcs.read_bytes(bucket, name) == b"content"
    assert gcs.make_client().bucket(bucket).get_blob(name).content_type == "image/jpeg"


def test_a_deleted_object_is_unusable(make_bucket):
    listed = ListedObject("gone.jpg", 4, 0, 1)
    with pytest.raises(ObjectUnusable, match="deleted after it was listed"):
        with_objects("fetch", make_bucket(), listed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": 5}, "4 bytes came, 5 are listed"),
        ({"size": 3}, "more bytes came than the 3 that are listed"),
        ({"crc32c": 1}, "crc32c is not the listed one"),
    ],
)
def test_another_object_than_listed_is_unusable(make_bucket, change, reason):
    bucket = make_bucket()
    put(bucket, "a.jpg")
    (listed,) = listing(bucket)
    with pytest.raises(ObjectUnusable, match=f"{reason}: it changed since"):
        with_objects("fetch", bucket, listed._replace(**change))


def test_no_access_to_an_object_stops(monkeypatch):
    with Front(rule=lambda asked: Answer(403)) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        with pytest.raises(StorageError, match=r"Reading gs://b/a\.jpg: access is denied"):
            with_objects("fetch", "b", ListedObject("a.jpg", 4, 0, 1))
        assert len(storage.asked) == 1


def test_other_bytes_stored_than_sent_stops(monkeypatch):
    stored = {"size": "4", "crc32c": b64encode(b"\0\0\0\1").decode()}
    with Front(rule=lambda asked: Answer(200, json.dumps(stored).encode())) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        with pytest.raises(StorageError, match="storage holds other bytes than were sent"):
            with_objects("put", "bucket", "a.jpg", b"data", "image/jpeg")


@pytest.mark.parametrize("status", [200, 206, 403, 404])
def test_public_status_is_asked_without_credentials(monkeypatch, status):
    with Front(rule=lambda asked: Answer(status)) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        assert with_objects("public_status", "bucket", "a #.jpg") == status
        (asked,) = storage.asked
    assert (asked.method, asked.path) == ("GET", "/bucket/a%20%23.jpg")
    assert "authorization" not in asked.headers
