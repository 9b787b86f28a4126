"""Deleting objects, and everything an ingest uploaded."""

import asyncio
import uuid

import pytest

import gcs
from common.errors import StorageError
from storage.bucket import Bucket
from tests.stand_in import Answer, StandIn


@pytest.fixture
def bucket(make_bucket):
    with Bucket(gcs.make_client(), make_bucket()) as calls:
        yield calls


def names(bucket):
    return sorted(blob.name for blob in bucket.handle.list_blobs())


def test_delete_index_deletes_one_index_only(bucket):
    index_id, other = str(uuid.uuid4()), str(uuid.uuid4())
    names_of = ["aux_labels/{}/imagenet.pickle", "indexes/{}/labels.json", "thumbnails/{}/#?.jpg"]
    for name in names_of:
        for owner in (index_id, other):
            bucket.handle.blob(name.format(owner)).upload_from_string(b"x")
    assert asyncio.run(bucket.delete_index(index_id)) == 3
    assert names(bucket) == [name.format(other) for name in names_of]


@pytest.mark.parametrize("index_id", ["", "..", "ID"])
def test_a_malformed_index_id_deletes_nothing(bucket, index_id):
    bucket.handle.blob("indexes//labels.json").upload_from_string(b"x")
    with pytest.raises(ValueError, match="is no index id"):
        asyncio.run(bucket.delete_index(index_id))
    assert names(bucket) == ["indexes//labels.json"]


def test_deleting_an_object_that_is_gone_is_no_error(bucket):
    asyncio.run(bucket.delete(["gone.jpg"]))


def test_a_refused_deletion_is_one_sentence(emulator, make_bucket, monkeypatch):
    name = make_bucket()
    with StandIn(
        emulator, lambda asked: Answer(403) if asked.method == "DELETE" else None
    ) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        with Bucket(gcs.make_client(), name) as calls, pytest.raises(StorageError) as caught:
            asyncio.run(calls.delete(["a.jpg"]))
    assert caught.value.status == 403
    assert caught.value.message.startswith(f"Deleting gs://{name}/a.jpg: access is denied (403)")
