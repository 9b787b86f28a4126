"""Uploading the index: large files in parts, every object verified."""

import asyncio
import json

import numpy as np
import pytest

import gcs
from common.errors import StorageError
from common.files import FileToUpload
from common.network import activity
from storage.uploads import upload_files
from tests.stand_in import Answer, Rule, StandIn

PART = 100_000  # bytes, instead of 32 MiB
NAME = "indexes/ID/local/clip/embeddings.npy"


@pytest.fixture
def bucket(make_bucket):
    return gcs.make_client().bucket(make_bucket())


@pytest.fixture
def front(bucket, emulator, monkeypatch):
    """A server before the emulator that notes every request from now on."""
    with StandIn(emulator) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        yield storage


def make_file(tmp_path, size, name=NAME, content_type="application/octet-stream"):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    return FileToUpload(path, name, content_type)


def upload(bucket, *files, min_part_bytes=PART, **sizes):
    client = gcs.make_client()
    sizes["min_part_bytes"] = min_part_bytes
    return asyncio.run(upload_files(client, bucket.name, files, **sizes))


def names(bucket):
    return sorted(blob.name for blob in bucket.list_blobs())


def sent(front):
    """How many bytes of content came in multipart uploads, which files up to 8 MB are."""
    uploaded = [asked.body for asked in front.asked if "uploadType=multipart" in asked.path]
    contents = [body.split(b"\r\n\r\n", 2)[2].rpartition(b"\r\n--")[0] for body in uploaded]
    return sum(map(len, contents))


def composed(front):
    return [asked for asked in front.asked if "/compose?" in asked.path]


@pytest.mark.parametrize(
    ("size", "parts"),
    [(0, 0), (1, 0), (2 * PART - 1, 0), (2 * PART, 2), (3 * PART + 1, 4), (40 * PART, 32)],
)
def test_a_file_arrives_whole_and_leaves_no_parts(bucket, front, tmp_path, size, parts):
    file = make_file(tmp_path, size)
    assert upload(bucket, file) == size
    assert names(bucket) == [NAME]
    blob = bucket.get_blob(NAME)
    assert blob.download_as_bytes() == file.path.read_bytes()
    assert blob.content_type == "application/octet-stream"
    sources = [json.loads(asked.body)["sourceObjects"] for asked in composed(front)]
    assert [len(source) for source in sources] == ([parts] if parts else [])
    assert sent(front) == size


def test_a_large_file_goes_in_a_resumable_upload(bucket, front, tmp_path):
    file = make_file(tmp_path, 9_000_001)
    upload(bucket, file, min_part_bytes=32 << 20, chunk_bytes=4 << 20)
    assert [asked for asked in front.asked if "uploadType=resumable" in asked.path]
    assert bucket.blob(NAME).download_as_bytes() == file.path.read_bytes()


def test_a_file_that_is_in_the_bucket_is_not_sent_again(bucket, front, tmp_path):
    files = [make_file(tmp_path, 3 * PART), make_file(tmp_path, 3 * PART, "small.json")]
    assert upload(bucket, *files) == 6 * PART
    del front.asked[:]
    assert upload(bucket, *files) == 6 * PART
    assert not [asked for asked in front.asked if asked.method in ("POST", "PUT", "PATCH")]


@pytest.mark.parametrize("size", [PART, 3 * PART])
def test_other_content_of_the_same_size_is_replaced(bucket, front, tmp_path, size):
    bucket.blob(NAME).upload_from_string(b"x" * size)
    file = make_file(tmp_path, size)
    upload(bucket, file)
    assert bucket.blob(NAME).download_as_bytes() == file.path.read_bytes()
    assert names(bucket) == [NAME]


def test_parts_of_an_interrupted_run_are_used(bucket, front, tmp_path):
    file = make_file(tmp_path, 4 * PART)
    data = file.path.read_bytes()
    bucket.blob(f"{NAME}.part-01-of-04").upload_from_string(data[:PART])
    bucket.blob(f"{NAME}.part-03-of-04").upload_from_string(b"of another file")
    upload(bucket, file)
    assert sent(front) == 3 * PART
    assert bucket.blob(NAME).download_as_bytes() == data
    assert names(bucket) == [NAME]


def test_parts_left_beside_the_whole_file_are_deleted(bucket, front, tmp_path):
    file = make_file(tmp_path, 2 * PART)
    upload(bucket, file)
    bucket.blob(f"{NAME}.part-02-of-02").upload_from_string(b"left by a run that was killed")
    upload(bucket, file)
    assert names(bucket) == [NAME]


@pytest.mark.parametrize("status", [403, 405, 501])
def test_without_compose_the_file_goes_in_one_stream(bucket, front, tmp_path, status):
    front.rules = [lambda asked: Answer(status) if "/compose?" in asked.path else None]
    file = make_file(tmp_path, 3 * PART)
    upload(bucket, file)
    assert len(composed(front)) == 1
    assert bucket.blob(NAME).download_as_bytes() == file.path.read_bytes()
    assert names(bucket) == [NAME]


def test_the_stored_object_is_compared_with_the_file(bucket, front, tmp_path):
    """A storage that says it holds something else than was sent is not believed."""

    def rule(asked):
        if asked.method == "GET" and "/o/small.json" in asked.path:
            stored = {"name": "small.json", "size": "1000", "crc32c": "AAAAAA=="}
            return Answer(200, json.dumps(stored).encode(), {"Content-Type": "application/json"})

    front.rules = [rule]
    with pytest.raises(StorageError, match=r"gs://\S+/small\.json is not what was sent"):
        upload(bucket, make_file(tmp_path, 1000, "small.json"))


def test_no_access_is_one_sentence(bucket, front, tmp_path):
    front.rules = [lambda asked: Answer(403) if "/upload/" in asked.path else None]
    with pytest.raises(StorageError, match=r"Writing gs://\S+/small\.json: access is denied"):
        upload(bucket, make_file(tmp_path, 1000, "small.json"))


RETAINED = (
    b'{"error": {"code": 403, "message": "Object is subject to the bucket retention policy."}}'
)


def test_parts_that_may_not_be_deleted_are_named_and_do_no_harm(bucket, front, tmp_path, capsys):
    front.rules = [lambda asked: Answer(403, RETAINED) if asked.method == "DELETE" else None]
    file = make_file(tmp_path, 3 * PART)
    assert upload(bucket, file) == 3 * PART
    assert bucket.blob(NAME).download_as_bytes() == file.path.read_bytes()
    said = capsys.readouterr().err
    assert "access is denied (403): Object is subject to the bucket retention policy. The" in said
    assert f"gs://{bucket.name}/{NAME}.part-01-of-03 to embeddings.npy.part-03-of-03." in said


def test_parts_that_cannot_be_deleted_for_other_reasons_stop(bucket, front, tmp_path):
    front.rules = [lambda asked: Answer(400) if asked.method == "DELETE" else None]
    with pytest.raises(StorageError, match=r"Deleting gs://\S+part-\d\d-of-03: HTTP 400\."):
        upload(bucket, make_file(tmp_path, 3 * PART))


def loses_sessions(front, status, times):
    """Answer `times` chunks of resumable uploads as if their session were lost."""
    lost = []

    def rule(asked):
        if asked.method == "PUT" and "upload_id=" in asked.path and len(lost) < times:
            lost.append(asked)
            return Answer(status)
        return None

    front.rules = [rule]


@pytest.mark.parametrize("status", [404, 410])
def test_a_lost_upload_session_is_begun_again(bucket, front, tmp_path, capsys, status):
    loses_sessions(front, status, times=2)
    file = make_file(tmp_path, 9_000_001)
    upload(bucket, file, min_part_bytes=32 << 20)
    assert bucket.blob(NAME).download_as_bytes() == file.path.read_bytes()
    assert capsys.readouterr().err.count(f"storage lost the upload ({status}); it is begun") == 2


def test_a_session_lost_three_times_stops(bucket, front, tmp_path):
    loses_sessions(front, 410, times=3)
    with pytest.raises(StorageError, match=r"Writing gs://\S+/embeddings\.npy: HTTP 410\."):
        upload(bucket, make_file(tmp_path, 9_000_001), min_part_bytes=32 << 20)
    begun = [asked for asked in front.asked if "uploadType=resumable" in asked.path]
    assert sum(asked.method == "POST" for asked in begun) == 3


@pytest.mark.parametrize(("kind", "faults"), [("503", 5), ("reset", 5), ("lost", 1)])
def test_a_failed_chunk_is_repeated(bucket, emulator, tmp_path, monkeypatch, kind, faults):
    """Not the whole part; but the emulator refuses a chunk of which the answer was lost."""
    chunk = 1 << 18
    file = make_file(tmp_path, 9_000_000)
    chunks = -(-9_000_000 // chunk)
    with StandIn(emulator) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        storage.rules = [
            Rule("PUT .*upload_id", kind, times=1, after=5 * number) for number in range(faults)
        ]
        upload(bucket, file, min_part_bytes=32 << 20, chunk_bytes=chunk)
        sent = storage.requests("PUT .*upload_id")
        begun = storage.requests("POST .*uploadType=resumable")
    assert sum(asked.fault == kind for asked in sent) == faults
    if kind == "lost":
        assert len(begun) == 2
    else:
        assert (len(begun), len(sent)) == (1, chunks + faults)
    assert bucket.blob(NAME).download_as_bytes() == file.path.read_bytes()


def test_every_request_of_an_upload_in_parts_is_counted(bucket, emulator, monkeypatch, tmp_path):
    """Also those of google-cloud-storage that are repeated, or get no answer."""
    file = make_file(tmp_path, 3 * PART + 1)
    rules = [Rule("POST /upload/", "lost", times=1), Rule("GET .*part-02", "503", times=2)]
    with StandIn(emulator, *rules) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        before = activity.activity()
        upload(bucket, file)
        counted = activity.activity_since(before).requests
        assert sum(number.requests for number in counted.values()) == len(proxy.asked)
    assert {kind: number[:2] for kind, number in counted.items()} == {
        **{"describe": (8, 2), "write": (5, 1), "compose": (1, 0), "delete": (4, 0)}
    }
    assert counted["write"].sent > 3 * PART
