"""Listing a directory in disjoint ranges at once: every object once, whatever the names are."""

import asyncio
import bisect
import json
import random
import uuid
from urllib.parse import parse_qs, urlsplit

import pytest

import gcs
from common.errors import StorageError
from common.names import GsPath
from gcs import ListedObject
from storage.listing import delete_index, listed, split_points
from tests.harness import listing, put
from tests.stand_in import Answer, Rule, StandIn

PREFIX = "t/"
PAGE = 10


class Lister(StandIn):
    """A server that lists names as Google's does, in pages of PAGE."""

    def __init__(self, names):
        self.names, self.pages = sorted(PREFIX + name for name in names), []
        super().__init__(None, self.answer)

    def answer(self, asked):
        query = {key: values[0] for key, values in parse_qs(urlsplit(asked.path).query).items()}
        assert query["prefix"] == PREFIX
        first = query.get("pageToken", query.get("startOffset", ""))
        start = bisect.bisect_left(self.names, first)
        end = len(self.names)
        if "endOffset" in query:
            end = bisect.bisect_left(self.names, query["endOffset"])
        page = self.names[start : min(end, start + PAGE)]
        self.pages.append(page)
        content = {"items": [{"name": name, "crc32c": "AAAAAg=="} for name in page]}
        if start + PAGE < end:
            content["nextPageToken"] = self.names[start + PAGE]
        return Answer(200, json.dumps(content).encode())


def names_on(server, monkeypatch, workers=8):
    """The names in the order in which they came."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    pages = listed(GsPath("bucket", PREFIX), workers=workers)
    return [o.name for page in pages for o in page]


SEEDED = random.Random(1)
NAMES = {
    "none": [],
    "one": ["a"],
    "one page": [f"{n}" for n in range(PAGE)],
    "one more than a page": [f"{n:02}" for n in range(PAGE + 1)],
    "dense numbers": [f"{n:09}.jpg" for n in range(1000)],
    "sparse numbers": [f"{n:012}.jpg" for n in SEEDED.sample(range(10**12), 1000)],
    "a long shared prefix": ["a" * 300 + f"{n:04}.jpg" for n in range(1000)],
    "two shared prefixes": [c * 200 + f"{n:03}" for c in "az" for n in range(500)],
    "hexadecimal": [uuid.UUID(int=SEEDED.getrandbits(128)).hex for _ in range(1000)],
    "directories": [
        f"{word}/{n:04}.png" for word in ("cat", "dog", "été", "zèbre") for n in range(250)
    ],
    "beyond the basic plane": [chr(0x1F600 + n // 20) * (1 + n % 20) for n in range(800)],
    "each a prefix of the next": ["x" * n for n in range(1, 500)],
    "with what comes after letters": [f"~{n}|\x7f" for n in range(300)],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_every_object_comes_once(monkeypatch, names, workers):
    with Lister(names) as server:
        found = names_on(server, monkeypatch, workers)
    assert sorted(found) == server.names
    assert len(server.pages) <= 4 * len(names) / PAGE + 7 * workers


@pytest.mark.parametrize("kind", ["dense numbers", "a long shared prefix", "hexadecimal"])
def test_a_long_listing_is_divided(monkeypatch, kind):
    with Lister(NAMES[kind]) as server:
        names_on(server, monkeypatch)
    starts = [asked for asked in server.asked if "pageToken" not in asked.path]
    assert len(starts) >= 8


def test_a_failed_page_is_repeated_and_not_its_range(monkeypatch):
    failed = set()

    def fail_once(asked):
        if asked.path not in failed and len(failed) < 30:
            failed.add(asked.path)
            return Answer(503)
        return None

    with Lister(NAMES["dense numbers"]) as server:
        server.rules.insert(0, fail_once)
        found = names_on(server, monkeypatch)
    assert sorted(found) == server.names
    assert len(server.asked) == len(server.pages) + 30


def test_an_expired_page_token_continues_after_the_last_name(monkeypatch):
    expired = Answer(410, b'{"error": {"message": "The page token has expired."}}')
    with Lister(NAMES["one more than a page"] + NAMES["dense numbers"]) as server:
        server.rules.insert(0, Rule("pageToken", expired, times=3))
        found = names_on(server, monkeypatch, workers=1)
    assert sorted(found) == server.names
    assert len(server.asked) == len(server.pages) + 3


ENDLESS = b'{"nextPageToken": "x"}'
REPEATS = "storage repeats a page without end"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"items": [{"name": "t/a"}], "nextPageToken": "x"}', 200, REPEATS),
        *((ENDLESS, 200, REPEATS), (ENDLESS, 410, "HTTP 410"), (ENDLESS, 403, "access is denied")),
        *((body, 200, "the answer ") for body in (b"[]", b"{", b'{"items": [1]}')),
        *((b'{"items": %s}' % items, 200, "the answer ") for items in (b"null", b"7")),
        (b'{"items": [{"size": "1"}]}', 200, "the answer "),
    ],
)
def test_an_answer_that_is_no_listing_or_has_no_end_stops(monkeypatch, body, status, words):
    """The status is that of the pages after the first."""

    def rule(asked):
        return Answer(status if "pageToken" in asked.path else 200, body)

    refused = pytest.raises(StorageError, match=f"Listing gs://bucket/t/: {words}")
    with StandIn(None, rule) as server, refused:
        names_on(server, monkeypatch)


def test_an_object_that_two_pages_repeat_counts_once(monkeypatch):
    with Lister(NAMES["dense numbers"]) as server:
        (serve,) = server.rules

        def repeat(asked):
            answer = serve(asked)
            content = json.loads(answer.body)
            if "pageToken" in asked.path:
                first = server.names.index(content["items"][0]["name"])
                repeated = {"name": server.names[first - 1], "crc32c": "AAAAAg=="}
                content["items"].insert(0, repeated)
            return Answer(200, json.dumps(content).encode())

        server.rules = [repeat]
        assert sorted(names_on(server, monkeypatch)) == server.names


def test_an_object_without_size_and_crc32c_is_listed(serve):
    item = {"name": "t/a.jpg", "generation": "7"}
    serve(lambda asked: Answer(200, json.dumps({"items": [item]}).encode()))
    [[found]] = listed(GsPath("bucket", PREFIX))
    assert found == ListedObject("t/a.jpg", 0, gcs.NO_CRC32C, 7)


def test_split_points_are_in_order_and_within_the_range():
    points = split_points("t/0409", "t/1", 2, 4, "0123456789", 100)
    assert points == sorted(set(points))
    assert all("t/0409" < point < "t/1" for point in points)
    assert {"t/05", "t/09", "t/041"} <= set(points)
    assert split_points("t/0409", "t/1", 2, 4, "0123456789", 3) == ["t/044", "t/048", "t/06"]
    assert split_points("t/0999", "t/1", 2, 4, "0123456789", 3) == []


def test_delete_index_deletes_one_index_only(make_bucket):
    bucket, index_id, other = make_bucket(), str(uuid.uuid4()), str(uuid.uuid4())
    kinds = ["aux_labels/{}/imagenet.pickle", "indexes/{}/labels.json", "thumbnails/{}/#?.jpg"]
    put(bucket, *(kind.format(of) for kind in kinds for of in (index_id, other)))
    assert asyncio.run(delete_index(bucket, index_id)) == 3
    assert [o.name for o in listing(bucket)] == [kind.format(other) for kind in kinds]


@pytest.mark.parametrize("index_id", ["", "..", "ID"])
def test_a_malformed_index_id_deletes_nothing(make_bucket, index_id):
    bucket = make_bucket()
    put(bucket, "indexes//labels.json")
    with pytest.raises(ValueError, match="is no index id"):
        asyncio.run(delete_index(bucket, index_id))
    assert [o.name for o in listing(bucket)] == ["indexes//labels.json"]
