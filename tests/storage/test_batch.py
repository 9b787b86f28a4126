"""Several calls in one request: the bytes that are sent, and answers of every kind."""

import re

import pytest

from common.errors import StorageError, TransientError
from storage import batch
from tests.harness import listing, put, with_objects
from tests.stand_in import Answer, StandIn


def answer(*statuses, ids=True, boundary="b"):
    parts = [
        f"--{boundary}\r\nContent-Type: application/http\r\n"
        + (f"Content-ID: <response-{number}>\r\n" if ids else "")
        + f"\r\nHTTP/1.1 {status} Words\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
        for number, status in statuses
    ]
    return ("".join(parts) + f"--{boundary}--").encode()


def test_answers_have_the_order_of_the_calls():
    body = answer((1, 404), (0, 200))
    found = batch.answers('multipart/mixed; boundary="b"', body, 2)
    assert [status for status, _ in found] == [200, 404]
    body = answer((0, 204), (1, 503), ids=False)
    found = batch.answers("multipart/mixed; boundary=b", body, 2)
    assert found == [(204, b"{}\r\n"), (503, b"{}\r\n")]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>"),
        ("multipart/mixed; boundary=b", b""),
        ("multipart/mixed; boundary=b", answer((0, 200))),
        ("multipart/mixed; boundary=b", answer((0, 200), (0, 200))),
        ("multipart/mixed; boundary=b", answer((0, 200), (2, 200))),
        ("multipart/mixed; boundary=b", answer((0, 200), (1, 200))[:-110]),
    ],
)
def test_an_incomplete_answer_is_worth_another_try(kind, body):
    with pytest.raises(TransientError, match="batch of 2 calls is incomplete"):
        batch.answers(kind, body, 2)


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


def test_only_calls_that_failed_are_made_again(monkeypatch):
    statuses = iter([[(0, 200), (1, 503), (2, 404), (3, 429)], [(0, 200), (1, 200)]])

    def rule(_):
        kind = {"Content-Type": "multipart/mixed; boundary=b"}
        return Answer(200, answer(*next(statuses)), kind)

    with StandIn(None, rule) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        missing = with_objects("copy", "one", "two", {f"new/{n}": f"old/{n}" for n in range(4)})
    assert set(missing) == {"new/2"}
    calls = [re.findall(rb"POST (\S+) HTTP/1.1\r\n", asked.body) for asked in front.asked]
    path = "/storage/v1/b/one/o/old%2F{0}/copyTo/b/two/o/new%2F{0}"
    assert calls == [
        [path.format(n).encode() for n in numbers] for numbers in ((0, 1, 2, 3), (1, 3))
    ]
    assert {asked.path for asked in front.asked} == {"/batch/storage/v1"}


def test_a_copy_that_is_refused_ends_with_storage_s_reason(monkeypatch):
    body = answer((0, 503), (1, 403)).replace(b"{}", b'{"error": {"message": "no access"}}')
    with StandIn(None, lambda _: Answer(200, body, {"Content-Type": "x; boundary=b"})) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        with pytest.raises(StorageError, match=r"gs://one to gs://two: .*\(403\): no access"):
            with_objects("copy", "one", "two", {"a": "b", "c": "d"})
    assert len(front.asked) == 1


def test_find_and_fetch_range(make_bucket):
    bucket = make_bucket()
    put(bucket, "a b", data=b"0123456789")
    (listed,) = listing(bucket)
    assert with_objects("find", bucket, "a b") == listed
    assert with_objects("find", bucket, "b") is None
    assert with_objects("fetch_range", bucket, listed, 3, 4) == b"3456"
    with pytest.raises(StorageError, match="2 bytes came of a range of 4"):
        with_objects("fetch_range", bucket, listed, 8, 4)
