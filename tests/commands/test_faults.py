"""Requests that fail: the same result where they can be repeated, a clear end where they cannot."""

import asyncio
import os
import re

import pytest

import gcs
from common.errors import ImageError, StorageError
from common.files import FileToUpload
from storage import uploads
from testing.photographs import picture
from tests.commands.test_stops import CREATE, DOWNLOAD, FILE, THUMBNAIL
from tests.harness import TRAIN, VAL, Emulated, ended, has_only_a_report, listing, start
from tests.harness import with_objects as objects
from tests.stand_in import KINDS, Rule, StandIn

CHUNK = r"PUT /upload/.*upload_id"


@pytest.mark.parametrize("kind", KINDS)
def test_faults_in_one_request_of_ten_change_nothing(undisturbed, fresh, kind):
    with (
        StandIn(fresh.storage.url, share=0.1, kinds=[kind], seed=1) as storage,
        StandIn(fresh.server, share=0.1, kinds=[kind], seed=1) as server,
    ):
        fresh.ingest(storage=storage, server=server)
    assert storage.counts[kind] >= 3
    fresh.assert_same(undisturbed)


@pytest.mark.parametrize("generation", "AB")
def test_create_is_not_repeated_when_its_answer_is_lost(fresh, servers, generation):
    with StandIn(servers[generation], Rule(CREATE, "lost", times=1)) as server:
        fresh.ingest(server=server)
        assert [asked.fault for asked in server.requests(CREATE)] == ["lost"]
    assert fresh.registered(servers[generation]) == (fresh.index_id(), TRAIN, VAL)


@pytest.mark.parametrize(
    ("pattern", "kind", "said"),
    [
        (" ", "503", r"Listing gs://bucket-\w+/train/: HTTP 503 \(fault\)"),
        (" ", "reset", r"Listing gs://bucket-\w+/train/: Connection reset by peer"),
        (DOWNLOAD, "truncate", r"Reading gs://bucket-\w+/\w+/\w+\.\w+: the connection was closed"),
        (DOWNLOAD, "flip", r"24 of 24 images cannot be embedded(.|\n)*crc32c is not the listed"),
        (THUMBNAIL, "lost", r"Writing gs://bucket-\w+/thumbnails/\S+\.jpg: "),
        (THUMBNAIL, "flip", r"Writing gs://\S+\.jpg: storage holds other bytes than were sent"),
        (FILE, "429", r"Writing gs://bucket-\w+/indexes/\S+/embeddings\.npy: .*429"),
        (FILE, "flip", r"Writing gs://bucket-\w+/indexes/\S+/embeddings\.npy: storage received"),
    ],
)
def test_storage_that_always_fails_ends_the_run(fresh, pattern, kind, said):
    with StandIn(fresh.storage.url, Rule(pattern, kind)) as storage:
        done = fresh.run(storage=storage)
        assert storage.counts[kind] >= 8
    assert done.exit_code == 1 and re.search(said, done.error), done.stderr


@pytest.mark.parametrize("kind", ["503", "reset", "truncate"])
def test_server_that_always_fails_is_named_before_any_work(fresh, kind):
    with StandIn(fresh.server, share=1, kinds=[kind]) as server:
        fresh.run(server=server).failed(f"The Forager server at {server.url} failed to answer")
        assert 3 <= len(server.asked) <= 16  # aiohttp asks twice after a reset
    assert not fresh.left_behind() and has_only_a_report(fresh.work)


def test_server_that_fails_after_the_upload_loses_nothing(fresh):
    rule = Rule(r"GET /api/get_dataset_info", "503", after=1)
    with StandIn(fresh.server, rule) as server:
        fresh.run(server=server).failed("the same command then goes on with the registration.")
    assert not fresh.ingest().stderr.count("Embedding on")


def test_too_few_open_files_stop_the_run_and_make_no_image_bad(undisturbed, fresh):
    limited = ["bash", "-c", 'ulimit -n 30 && exec "$@"', "-"]
    stopped = ended(start([*limited, *fresh.command("--skip_bad_images")], dict(os.environ)))
    stopped.failed("Too many open files. This process can open up to 30: raise")
    assert "Failed: " not in stopped.stderr
    fresh.ingest("--skip_bad_images")
    assert fresh.left_behind() == undisturbed.left_behind()


# The parts of storage alone


@pytest.fixture
def store(emulator, make_bucket, monkeypatch):
    """A bucket behind a proxy: (proxy, bucket, the one object in it as it is listed)."""
    bucket = make_bucket()
    Emulated(emulator).put(bucket, "a.jpg", picture(1))
    with StandIn(emulator) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        (listed,) = listing(bucket)
        proxy.asked.clear()
        yield proxy, bucket, listed


def upload_file(bucket, path):
    file = FileToUpload(path, "array.npy", "application/octet-stream")
    return asyncio.run(uploads.upload_files(gcs.make_client(), bucket, [file]))


@pytest.mark.parametrize("status", ["401", "403", "404", "412"])
@pytest.mark.parametrize("what", ["fetch", "put", "list", "upload"])
def test_refusals_are_not_repeated(store, tmp_path, what, status):
    proxy, bucket, listed = store
    proxy.rules.append(Rule(r"a\.jpg|/o\?|array\.npy|upload_id", status))
    (tmp_path / "array").write_bytes(b"content")
    calls = {
        "fetch": lambda: objects("fetch", bucket, listed),
        "put": lambda: objects("put", bucket, "b.jpg", b"data", "image/jpeg"),
        "list": lambda: listing(bucket),
        "upload": lambda: upload_file(bucket, tmp_path / "array"),
    }
    with pytest.raises((StorageError, ImageError)):
        calls[what]()
    refused = [asked.path for asked in proxy.asked if asked.fault]
    assert len(refused) == len(set(refused)) >= 1


@pytest.mark.parametrize("what", ["fetch", "list"])
def test_retry_after_is_waited_for(store, what):
    proxy, bucket, listed = store
    proxy.retry_after = "1"
    proxy.rules.append(Rule(r"alt=media|/o\?", "429", times=1))
    if what == "fetch":
        assert objects("fetch", bucket, listed) == picture(1)
    else:
        assert listing(bucket) == [listed]
    first, second = proxy.requests(r"alt=media|/o\?")
    assert first.fault == "429" and second.at - first.at >= 1


@pytest.mark.parametrize(("size", "requests"), [(256_000, FILE), (9 << 20, CHUNK)])
def test_flipped_bits_in_an_array_are_found_and_sent_again(store, tmp_path, size, requests):
    proxy, bucket, _ = store
    proxy.rules.append(Rule(requests, "flip", times=2))
    data = bytes(range(256)) * (size // 256)
    (tmp_path / "array").write_bytes(data)
    assert upload_file(bucket, tmp_path / "array") == size
    assert proxy.counts["flip"] == 2 and len(proxy.requests(requests)) > 2
    assert Emulated(proxy.url).get(bucket, "array.npy") == data


def test_parts_survive_faults_and_leave_nothing_beside_the_file(store, tmp_path, monkeypatch):
    proxy, bucket, _ = store
    data = bytes(range(256)) * 4000
    (tmp_path / "array").write_bytes(data)
    proxy.share = 0.2
    for constant in ("MIN_PART_BYTES", "CHUNK_BYTES"):
        monkeypatch.setattr(uploads, constant, 1 << 18)
    upload_file(bucket, tmp_path / "array")
    proxy.share = 0
    assert Emulated(proxy.url).get(bucket, "array.npy") == data
    assert sorted(Emulated(proxy.url).contents(bucket)) == ["a.jpg", "array.npy"]
