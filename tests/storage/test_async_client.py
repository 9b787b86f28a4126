"""Small objects: written, read and checked, whatever their names."""

import itertools
import json
import re
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest

import gcs
from common import retries
from common.errors import ImageChanged, StorageError, TransientError
from gcs import ListedObject
from storage import session
from tests.harness import listing, put, with_objects
from tests.stand_in import Answer, StandIn

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
    assert with_objects("public_refusal", bucket, name) is None
    assert gcs.read_bytes(bucket, name) == b"content"
    assert gcs.make_client().bucket(bucket).get_blob(name).content_type == "image/jpeg"


@pytest.mark.parametrize("change", [{"name": "b.jpg"}, {"size": 5}, {"size": 3}, {"crc32c": 1}])
def test_a_changed_object_is_found_at_the_first_sign(make_bucket, capsys, change):
    """The emulator ignores generations: other bytes arrive than were listed, or none."""
    bucket = make_bucket()
    put(bucket, "a.jpg")
    (listed,) = listing(bucket)
    what = "deleted" if "name" in change else "replaced"
    with pytest.raises(ImageChanged, match=f"it was {what} after it was listed"):
        with_objects("fetch", bucket, listed._replace(**change))
    assert "attempt" not in capsys.readouterr().err


@pytest.fixture
def versions(make_bucket, emulator, serve):
    """A bucket of a server that serves current generations only, as Google's does."""

    def rule(asked):
        query = parse_qs(urlsplit(asked.path).query)
        if "generation" not in query:
            return None
        metadata = urlopen(f"{emulator}{urlsplit(asked.path).path}").read()
        if query["generation"] != [json.loads(metadata)["generation"]]:
            return Answer(404, b"No such object")
        return None

    bucket = make_bucket()
    storage = serve(rule, emulator)
    storage.bucket = bucket
    return storage


def test_a_replaced_object_is_not_tried_again(versions, capsys):
    put(versions.bucket, "a.jpg")
    (listed,) = listing(versions.bucket)
    put(versions.bucket, "a.jpg", data=b"other")
    before = len(versions.asked)
    with pytest.raises(ImageChanged, match="it was replaced after it was listed"):
        with_objects("fetch", versions.bucket, listed)
    assert len(versions.asked) - before == 2  # the object, then its metadata
    assert capsys.readouterr().err == ""


def test_the_same_bytes_written_again_are_the_same_image(versions):
    put(versions.bucket, "a.jpg")
    (listed,) = listing(versions.bucket)
    assert with_objects("fetch", versions.bucket, listed) == b"data"
    assert f"alt=media&generation={listed.generation}" in versions.asked[-1].path
    put(versions.bucket, "a.jpg")
    assert listing(versions.bucket)[0].generation != listed.generation
    assert with_objects("fetch", versions.bucket, listed) == b"data"


CHUNKED = b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


@pytest.mark.parametrize(
    ("head", "piece", "pause_s", "limits", "said"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            b"x",
            0.01,
            {"TOTAL_S": 0.2, "MIN_BYTES_PER_S": 20_000},
            "slower than 20,000 bytes/s: 1,000 bytes took more than 0.2 s.",
        ),
        (b"", b"HTTP/1.1 200 OK\r\n", 60, {"SILENCE_S": 0.1}, "no answer in time."),
        (CHUNKED % b"403 No", CHUNK, 0, {}, "access is denied (403): xxx"),
        (CHUNKED % b"200 OK", CHUNK, 0, {}, "the answer is not JSON."),  # of its metadata
    ],
)
def test_an_answer_without_an_end_stops(monkeypatch, head, piece, pause_s, limits, said):
    """After `head` the server sends the piece again and again."""
    for name, value in limits.items():
        monkeypatch.setattr(session, name, value)
    monkeypatch.setattr(retries, "from_environment", lambda: retries.Retries(2, 0.001))
    pieces = [head, piece] if head else [piece]
    with (
        StandIn(
            None, lambda _: itertools.chain(pieces, itertools.repeat(piece)), delay_s=pause_s
        ) as server,
        pytest.raises(StorageError) as caught,
    ):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        with_objects("fetch", "b", ListedObject("a.jpg", 1000, 0, 1))
    assert caught.value.message.startswith(f"Reading gs://b/a.jpg: {said}")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        *((status, None) for status in (200, 206, 416)),  # 416: an object without bytes
        *((status, "No billing") for status in (400, 403, 404)),
    ],
)
def test_a_public_object_is_asked_for_without_credentials(serve, status, reason):
    body = b"<?xml version='1.0'?><Error><Code>X</Code><Message>No billing.</Message></Error>"
    storage = serve(lambda asked: Answer(status, body if reason else b""))
    refused = with_objects("public_refusal", "bucket", "a #.jpg")
    assert (refused and (refused.status, str(refused))) == (reason and (status, reason))
    (asked,) = storage.asked
    assert (asked.method, asked.path) == ("GET", "/bucket/a%20%23.jpg")
    assert "authorization" not in asked.headers


def answer(*statuses, ids=True):
    parts = [
        "--b\r\nContent-Type: application/http\r\n"
        + (f"Content-ID: <response-{number}>\r\n" if ids else "")
        + f"\r\nHTTP/1.1 {status} Words\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
        for number, status in statuses
    ]
    return ("".join(parts) + "--b--").encode()


def test_answers_have_the_order_of_the_calls():
    found = session.batch_answers(answer((1, 404), (0, 200)), 2)
    assert [status for status, _ in found] == [200, 404]
    found = session.batch_answers(b"\r\n" + answer((0, 204), (1, 503), ids=False), 2)
    assert found == [(204, b"{}\r\n"), (503, b"{}\r\n")]


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>", b"", answer((0, 200)), answer((0, 200), (0, 200)), answer((0, 200), (2, 200))),
        answer((0, 200), (1, 200))[:-110],
    ],
)
def test_an_incomplete_answer_is_worth_another_try(body):
    with pytest.raises(TransientError, match="batch of 2 calls is incomplete"):
        session.batch_answers(body, 2)


def test_copies_have_the_bytes_of_their_sources(make_bucket):
    one, other = make_bucket(), make_bucket()
    names = ["a/b c.jpg", "é?#%.jpg", "plain.jpg"]
    for name in names:
        put(one, name, data=name.encode())
    wanted = {f"t/{number} {name}": name for number, name in enumerate(names * 60)}
    wanted["t/gone"] = "never there"
    missing = with_objects("copy", one, other, wanted)
    assert set(missing) == {"t/gone"}
    found = {listed.name: listed.size for listed in listing(other)}
    assert found == {
        name: len(source.encode()) for name, source in wanted.items() if name != "t/gone"
    }


def test_only_calls_that_failed_are_made_again(serve):
    statuses = iter([[(0, 200), (1, 503), (2, 404), (3, 429)], [(0, 200), (1, 200)]])
    front = serve(lambda asked: Answer(200, answer(*next(statuses))))
    missing = with_objects("copy", "one", "two", {f"new/{n}": f"old/{n}" for n in range(4)})
    assert set(missing) == {"new/2"}
    calls = [re.findall(rb"POST (\S+) HTTP/1.1\r\n", asked.body) for asked in front.asked]
    path = "/storage/v1/b/one/o/old%2F{0}/copyTo/b/two/o/new%2F{0}"
    assert calls == [
        [path.format(n).encode() for n in numbers] for numbers in ((0, 1, 2, 3), (1, 3))
    ]
    assert {asked.path for asked in front.asked} == {"/batch/storage/v1"}


def test_a_copy_that_is_refused_ends_with_storage_s_reason(serve):
    body = answer((0, 503), (1, 403)).replace(b"{}", b'{"error": {"message": "no access"}}')
    front = serve(lambda asked: Answer(200, body) if asked.method == "POST" else Answer(404))
    with pytest.raises(StorageError, match=r"gs://one to gs://two: .*\(403\): no access"):
        with_objects("copy", "one", "two", {"a": "b", "c": "d"})
    assert len([asked for asked in front.asked if asked.method == "POST"]) == 1


def test_find_and_fetch_range(make_bucket):
    bucket = make_bucket()
    put(bucket, "a b", data=b"0123456789")
    (listed,) = listing(bucket)
    assert with_objects("find", bucket, "a b") == listed
    assert with_objects("find", bucket, "b") is None
    assert with_objects("fetch_range", bucket, listed, 3, 4) == b"3456"
    with pytest.raises(StorageError, match="2 bytes came instead of 4"):
        with_objects("fetch_range", bucket, listed, 8, 4)


RETAINED = b'{"error": {"message": "Object is subject to the bucket retention policy."}}'


@pytest.fixture
def retained(emulator, make_bucket, serve):
    """A bucket of a server that refuses every write, as to objects that are held, with `status`."""

    def rule(asked):
        if asked.method != "POST" or storage.status is None:
            return None
        if "/batch/" not in asked.path:
            return Answer(storage.status, RETAINED)
        calls = asked.body.count(b"POST ")
        body = answer(*((number, storage.status) for number in range(calls)))
        return Answer(200, body.replace(b"{}", RETAINED))

    storage = serve(rule, emulator)
    storage.status = None
    storage.bucket = make_bucket()
    return storage


@pytest.mark.parametrize("status", [403, 412])
def test_a_held_object_with_the_same_bytes_counts_as_written(retained, status):
    """A run that was killed had written it, or the answer was lost."""
    put(retained.bucket, "a.jpg", "b.jpg")
    retained.status = status
    with_objects("put", retained.bucket, "a.jpg", b"data", "image/jpeg")
    copied = {"b.jpg": "a.jpg"}
    assert with_objects("copy", retained.bucket, retained.bucket, copied) == set()


@pytest.mark.parametrize(
    ("name", "words"), [("a.jpg", "held there and must not be replaced"), ("new.jpg", r"policy\.$")]
)
def test_a_refused_write_says_whether_an_object_is_held(retained, name, words):
    put(retained.bucket, "a.jpg", data=b"other")
    put(retained.bucket, "b.jpg", data=b"data")
    retained.status = 403
    denied = rf"Writing gs://{retained.bucket}/{name}: access is denied \(403\): Object is subject"
    with pytest.raises(StorageError, match=denied) as caught:
        with_objects("put", retained.bucket, name, b"data", "image/jpeg")
    assert re.search(words, caught.value.message)
    with pytest.raises(StorageError, match="access is denied"):
        with_objects("copy", retained.bucket, retained.bucket, {name: "b.jpg"})
