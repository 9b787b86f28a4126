"""Uploading the index: large files in parts, every object verified."""

import asyncio
import json
import re

import numpy as np
import pytest

import gcs
from common.errors import StorageError
from common.files import FileToUpload
from storage import uploads
from tests.stand_in import Answer, Rule
from tests.storage.test_async_client import RETAINED

PART = 100_000  # bytes, instead of 32 MiB
NAME = "indexes/ID/local/clip/embeddings.npy"


@pytest.fixture
def bucket(make_bucket, monkeypatch):
    monkeypatch.setattr(uploads, "MIN_PART_BYTES", PART)
    return gcs.make_client().bucket(make_bucket())


@pytest.fixture
def front(bucket, emulator, serve):
    """A server before the emulator that notes every request from now on."""
    return serve(lambda asked: None, emulator)


def make_file(tmp_path, size, name=NAME, content_type="application/octet-stream"):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    return FileToUpload(path, name, content_type)


def upload(bucket, *files):
    return asyncio.run(uploads.upload_files(gcs.make_client(), bucket.name, files))


def names(bucket):
    return sorted(blob.name for blob in bucket.list_blobs())


def sent(front):
    """How many bytes of content came in multipart uploads, which files up to 8 MB are."""
    uploaded = [asked.body for asked in front.asked if "uploadType=multipart" in asked.path]
    contents = [body.split(b"\r\n\r\n", 2)[2].rpartition(b"\r\n--")[0] for body in uploaded]
    return sum(map(len, contents))


def assert_arrived(bucket, file):
    """The file is in the bucket, and no part of it."""
    assert names(bucket) == [NAME]
    assert bucket.blob(NAME).download_as_bytes() == file.path.read_bytes()


def composed(front):
    return [asked for asked in front.asked if "/compose?" in asked.path]


@pytest.mark.parametrize(
    ("size", "parts"),
    [(0, 0), (1, 0), (2 * PART - 1, 0), (2 * PART, 2), (3 * PART + 1, 4), (40 * PART, 32)],
)
def test_a_file_arrives_whole_and_leaves_no_parts(bucket, front, tmp_path, size, parts):
    file = make_file(tmp_path, size)
    assert upload(bucket, file) == size
    assert_arrived(bucket, file)
    assert bucket.get_blob(NAME).content_type == "application/octet-stream"
    sources = [json.loads(asked.body)["sourceObjects"] for asked in composed(front)]
    assert [len(source) for source in sources] == ([parts] if parts else [])
    assert sent(front) == size


def test_a_file_that_is_in_the_bucket_is_not_sent_again(bucket, front, tmp_path):
    """A part that a killed run left beside it is deleted."""
    files = [make_file(tmp_path, 3 * PART), make_file(tmp_path, 3 * PART, "small.json")]
    assert upload(bucket, *files) == 6 * PART
    bucket.blob(f"{NAME}.part-02-of-03").upload_from_string(b"left by a run that was killed")
    del front.asked[:]
    assert upload(bucket, *files) == 6 * PART
    assert not [asked for asked in front.asked if asked.method in ("POST", "PUT", "PATCH")]
    assert names(bucket) == [NAME, "small.json"]


@pytest.mark.parametrize("size", [PART, 3 * PART])
def test_other_content_of_the_same_size_is_replaced(bucket, front, tmp_path, size):
    bucket.blob(NAME).upload_from_string(b"x" * size)
    file = make_file(tmp_path, size)
    upload(bucket, file)
    assert_arrived(bucket, file)


def test_parts_of_an_interrupted_run_are_used(bucket, front, tmp_path):
    file = make_file(tmp_path, 4 * PART)
    data = file.path.read_bytes()
    bucket.blob(f"{NAME}.part-01-of-04").upload_from_string(data[:PART])
    bucket.blob(f"{NAME}.part-03-of-04").upload_from_string(b"of another file")
    upload(bucket, file)
    assert sent(front) == 3 * PART
    assert_arrived(bucket, file)


@pytest.mark.parametrize("status", [403, 405, 501])
def test_without_compose_the_file_goes_in_one_stream(bucket, front, tmp_path, status):
    front.rules = [lambda asked: Answer(status) if "/compose?" in asked.path else None]
    file = make_file(tmp_path, 3 * PART)
    upload(bucket, file)
    assert len(composed(front)) == 1
    assert_arrived(bucket, file)


def test_the_stored_object_is_compared_with_the_file(bucket, front, tmp_path):
    """A storage that says it holds something else than was sent is not believed."""

    def rule(asked):
        if asked.method == "GET" and "/o/small.json" in asked.path:
            stored = {"name": "small.json", "size": "1000", "crc32c": "AAAAAA=="}
            return Answer(200, json.dumps(stored).encode(), {"Content-Type": "application/json"})

    front.rules = [rule]
    with pytest.raises(StorageError, match=r"gs://\S+/small\.json is not what was sent"):
        upload(bucket, make_file(tmp_path, 1000, "small.json"))


def lost_then_held(front, pattern):
    """The first request of each kind is carried out and its answer lost; then it is refused."""
    made = set()

    def rule(asked):
        if not re.search(pattern, f"{asked.method} {asked.path}"):
            return None
        name = re.search(rb'"name": ?"([^"]+)"', asked.body)
        if (asked.path, name and name[1]) in made:
            return Answer(403, RETAINED)
        made.add((asked.path, name and name[1]))
        return "lost"

    front.rules = [rule]


@pytest.mark.parametrize(
    ("size", "pattern"),
    [(PART, "POST /upload/"), (3 * PART, "POST /upload/"), (3 * PART, "POST .*/compose")],
)
def test_a_held_object_with_the_same_bytes_counts_as_sent(bucket, front, tmp_path, size, pattern):
    """With a retention policy, what was written before the answer was lost is not overwritten."""
    file = make_file(tmp_path, size)
    lost_then_held(front, pattern)
    assert upload(bucket, file) == size
    assert_arrived(bucket, file)
    assert sent(front) == (size if "compose" in pattern else 2 * size)


@pytest.mark.parametrize("held", [NAME, f"{NAME}.part-02-of-03"])
def test_a_held_object_with_other_bytes_is_named(bucket, front, tmp_path, held):
    bucket.blob(held).upload_from_string(b"other")

    def rule(asked):
        writes = asked.method == "POST" and f'"{held}"'.encode() in asked.body
        return Answer(403, RETAINED) if writes or "/compose" in asked.path else None

    front.rules = [rule]
    said = rf"gs://\S+{held}: .* Object is subject to .* is held there and must not be replaced"
    with pytest.raises(StorageError, match=said):
        upload(bucket, make_file(tmp_path, 3 * PART))


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


@pytest.fixture
def whole(monkeypatch, tmp_path):
    """A file that is sent in one resumable upload."""
    monkeypatch.setattr(uploads, "MIN_PART_BYTES", 32 << 20)
    return make_file(tmp_path, 9_000_001)


@pytest.mark.parametrize(("status", "times"), [(404, 2), (410, 2), (410, 3)])
def test_a_lost_upload_session_is_begun_again_twice(bucket, front, whole, capsys, status, times):
    front.rules = [Rule("PUT .*upload_id=", str(status), times=times)]
    if times == 2:
        upload(bucket, whole)
        assert_arrived(bucket, whole)
    else:
        with pytest.raises(StorageError, match=r"Writing gs://\S+/embeddings\.npy: HTTP 410"):
            upload(bucket, whole)
    assert capsys.readouterr().err.count(f"storage lost the upload ({status}); it is begun") == 2
    assert len(front.requests("POST .*uploadType=resumable")) == 3


@pytest.mark.parametrize(("kind", "faults"), [("503", 5), ("reset", 5), ("lost", 1)])
def test_a_failed_chunk_is_repeated(bucket, front, whole, monkeypatch, kind, faults):
    """Not the whole part; but the emulator refuses a chunk of which the answer was lost."""
    chunk = 1 << 18
    monkeypatch.setattr(uploads, "CHUNK_BYTES", chunk)
    front.rules = [
        Rule("PUT .*upload_id", kind, times=1, after=5 * number) for number in range(faults)
    ]
    upload(bucket, whole)
    sent = front.requests("PUT .*upload_id")
    begun = front.requests("POST .*uploadType=resumable")
    assert sum(asked.fault == kind for asked in sent) == faults
    if kind == "lost":
        assert len(begun) == 2
    else:
        assert (len(begun), len(sent)) == (1, -(-9_000_001 // chunk) + faults)
    assert_arrived(bucket, whole)
