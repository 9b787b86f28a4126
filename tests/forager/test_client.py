"""The client against small real servers that fail on purpose."""

import asyncio
import itertools
import json

import pytest

from common import retries
from common.errors import AnswerLost, ServerError
from forager.client import CREATE_ATTEMPTS as ATTEMPTS
from forager.client import DatasetInfo, Forager
from forager.connection import Timeouts, page_title, parsed
from forager.generation import Box, Generation, LabelRequest
from tests.harness import refusing
from tests.stand_in import Answer, Rule, StandIn, in_order

INFO = {"index_id": "i", "num_train": 2, "num_val": 1}
ABSENT = (404, {"detail": "Not found."})
DJANGO_500 = (500, "<html><head>\n<title>IntegrityError\n   at /api/x</title></head></html>")
DJANGO_404 = (404, "<html><title>Page not found at /api/x</title></html>")
DATASET = "GET /api/get_dataset_info_v2/d"
CREATE = "POST /api/create_dataset_v2"
OPTIONS = "OPTIONS /api/add_annotations_multi_v2"
CAT = "cat", "POSITIVE"
COUNTS = "/api/get_category_counts_v2/d"
LABELS = "POST /api/add_annotations_by_internal_identifiers_v2/d"
MULTI = "POST /api/add_annotations_multi_v2"
IS_B = {OPTIONS: [(200, {"name": "x"})]}

TIMEOUTS = Timeouts(settle=0.3)


CREATED = (200, {"status": "success"})
reset, never = "reset", "hold"
truncated = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"]


def script(answers):
    """A server with answers for each of these requests; the last answer is given again.

    An answer is a status and text or JSON, or what else a rule of StandIn may do.
    """
    rules = [
        Rule(request, in_order(*(Answer(*a) if isinstance(a, tuple) else a for a in given)))
        for request, given in answers.items()
    ]
    return StandIn(None, *rules, Rule("", Answer(*DJANGO_404)), delay_s=0)


async def asked(url, method, *args, timeouts=TIMEOUTS):
    """The result of one method of the client."""
    async with Forager(url, timeouts) as client:
        return await getattr(client, method)(*args)


def talk(server, method, *args, timeouts=TIMEOUTS):
    """The same, asked of a server that is not started yet."""
    with server:
        return asyncio.run(asked(server.url, method, *args, timeouts=timeouts))


def refusal(server, method, *args, timeouts=TIMEOUTS):
    with pytest.raises(ServerError) as caught:
        talk(server, method, *args, timeouts=timeouts)
    message = caught.value.message
    assert message.isprintable()
    assert message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("answer", "info"), [((200, INFO), DatasetInfo("i", 2, 1)), (ABSENT, None)]
)
def test_dataset(answer, info):
    assert talk(script({DATASET: [answer]}), "dataset", "d") == info


@pytest.mark.parametrize(
    "failure",
    [
        *((status, "x") for status in (500, 502, 503, 408)),
        *((429, "x", {"Retry-After": "0"}), reset, truncated),
    ],
)
def test_dataset_transient_failures(failure, capsys):
    server = script({DATASET: [failure, failure, (200, INFO)]})
    assert talk(server, "dataset", "d") == DatasetInfo("i", 2, 1)
    assert len(server.asked) == 3
    assert f"attempt 2 of {retries.ATTEMPTS}" in capsys.readouterr().err


def test_dataset_timeout():
    message = refusal(script({DATASET: [never]}), "dataset", "d", timeouts=Timeouts(read=0.05))
    assert "GET api/get_dataset_info_v2/d, in 8 attempts: no answer within 0.05 s." in message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, "<title>Overloaded</title>"), ["HTTP 503 (Overloaded)", "in 8 attempts"]),
        (DJANGO_500, ["HTTP 500 (IntegrityError at /api/x)"]),
        ((500, "<title>\x1b[2J &lt;b&gt;\u202e</title>"), [r"(\x1b[2J <b>\u202e)"]),
        (
            (
                500,
                DJANGO_500[1] + '<pre class="exception_value">value  too &quot;long&quot;\n</pre>',
            ),
            ['HTTP 500 (IntegrityError at /api/x: value too "long")'],
        ),
        ((200, "<title>React App</title>"), ["web page ('React App')", "port 4000"]),
        ((200, "[" * 100_000), ["something else instead of JSON"]),
        ((200, {**INFO, "num_val": "1"}), ["JSON of another shape"]),
        ((200, [1]), ["JSON of another shape"]),
        ((301, "", {"Location": "https://x.org/\x85"}), ["https://x.org/", "set SERVER_URL"]),
        ((403, "<h1>403 Forbidden</h1>"), ["HTTP 403 (403 Forbidden)"]),
        ((400, "<title>DisallowedHost at /</title>"), ["HTTP 400 (DisallowedHost at /)"]),
    ],
)
def test_dataset_other_answers(answer, words):
    message = refusal(script({DATASET: [answer]}), "dataset", "d")
    for word in words:
        assert word in message


def test_nobody_listens():
    with refusing() as url, pytest.raises(ServerError, match="refused") as caught:
        url = url.replace("//", "//user:secret@") + "/"
        asyncio.run(asked(url, "dataset", "d"))
    assert caught.value.message.startswith("Cannot reach ")
    assert "secret" not in caught.value.message


def test_tls_where_there_is_none():
    with script({}) as server, pytest.raises(ServerError, match="should begin with http://"):
        asyncio.run(asked(server.url.replace("http", "https"), "dataset", "d"))


@pytest.mark.parametrize("url", ["http://x_y-.invalid", "http://%41.invalid", "http://a|b.invalid"])
def test_odd_hosts_cannot_be_reached(url):
    with pytest.raises(ServerError, match="SERVER_URL"):
        asyncio.run(asked(url, "dataset", "d"))


def test_dataset_names():
    names = "GET /api/get_datasets_v2"
    assert talk(script({names: [(200, {"dataset_names": ["a"]})]}), "dataset_names") == ["a"]
    assert talk(script({}), "dataset_names") is None
    useless = script({names: [(200, {"dataset_names": 1})]})
    assert "another shape" in refusal(useless, "dataset_names")


def test_generation():
    assert talk(script({}), "generation") is Generation.A
    assert talk(script(IS_B), "generation") is Generation.B
    assert "HTTP 405" in refusal(script({OPTIONS: [(405, "x")]}), "generation")


@pytest.mark.parametrize(
    ("answers", "counts"),
    [
        ({f"GET {COUNTS}": [(200, {"cat": {"POSITIVE": 3}, "dog": {}})]}, {CAT: 3}),
        (
            {
                f"GET {COUNTS}": [(405, {"detail": "not allowed"})],
                f"POST {COUNTS}": [(200, {"numLabeled": {"cat": {"POSITIVE": 3}}})],
            },
            {CAT: 3},
        ),
        ({f"GET {COUNTS}": [DJANGO_404]}, None),
        ({f"GET {COUNTS}": [(200, [])]}, None),
        ({f"GET {COUNTS}": [(200, {"numLabeled": 5})]}, None),
        ({f"GET {COUNTS}": [(200, {"cat": 5, "dog": {"POSITIVE": "6"}})]}, {}),
    ],
)
def test_category_counts(answers, counts):
    assert talk(script(answers), "category_counts", "d", ["cat"]) == counts


def create(server, finds=refusal, timeouts=TIMEOUTS):
    arguments = "d", "gs://b/t/", "gs://b/v/", DatasetInfo("i", 2, 1)
    return finds(server, "create_dataset", *arguments, timeouts=timeouts)


LOST_ANSWERS = [reset, truncated, *((status, "x") for status in (500, 502, 503, 504))]


@pytest.mark.parametrize("answer", [CREATED, *LOST_ANSWERS])
def test_create_also_where_asking_settles_a_lost_answer(answer):
    """Though asking fails too, at first."""
    server = script({CREATE: [answer], DATASET: [reset, reset, (200, INFO)]})
    create(server, talk)
    assert [json.loads(asked.body) for asked in server.requests(CREATE)] == [
        {"dataset": "d", "train_path": "gs://b/t/", "val_path": "gs://b/v/", "index_id": "i"}
    ]


def test_create_lost_answer_while_the_server_is_at_work():
    partial = (200, {**INFO, "num_train": 0})
    answers = [ABSENT, ABSENT, partial, partial, (200, INFO)]
    server = script({CREATE: [(504, "x")], DATASET: answers})
    create(server, talk, Timeouts(settle=60))  # ends with the last answer
    assert len(server.requests(CREATE)) == 1


@pytest.mark.parametrize("failure", [reset, (503, "x"), (429, "x"), (500, "x")])
def test_create_that_did_not_arrive_is_sent_again(failure):
    def answer(asked):
        return Answer(200, INFO) if len(server.requests(CREATE)) == 2 else Answer(*ABSENT)

    server = script({CREATE: [failure, CREATED]})
    server.rules.insert(0, Rule(DATASET, answer))
    create(server, talk)
    assert len(server.requests(CREATE)) == 2


def test_create_timeout_is_not_repeated():
    server = script({CREATE: [never], DATASET: [ABSENT]})
    message = create(server, timeouts=Timeouts(create=0.05, settle=0.05))
    assert "run the same command again" in message
    assert len(server.requests(CREATE)) <= 1  # on a slow machine the time is over before it is sent


@pytest.mark.parametrize(
    ("answer", "dataset", "words", "creates"),
    [
        (CREATED, {"num_train": 3}, "3 training and 1 validation images instead", 1),
        (DJANGO_500, {"num_train": 0, "num_val": 0}, "0 training and 0 validation im", 1),
        (DJANGO_500, {"num_val": 0}, "(and answered: HTTP 500 (IntegrityError at /api/x))", 1),
        (reset, {"index_id": "j"}, "another dataset d on the server, with index_id j", 1),
        (CREATED, ABSENT, "answered that it created d", 1),
        (DJANGO_500, ABSENT, "did not create d (HTTP 500 (IntegrityError at /api/x))", ATTEMPTS),
        ((200, "<title>Login</title>"), ABSENT, "web page ('Login')", 1),
        (reset, (503, "x"), "Whether d was created is not known. The Forager server", 1),
    ],
)
def test_create_that_fails(answer, dataset, words, creates):
    found = (200, INFO | dataset) if isinstance(dataset, dict) else dataset
    server = script({CREATE: [answer], DATASET: [found]})
    assert words in create(server)
    assert len(server.requests(CREATE)) == creates


X_BOX = Box("x", "ü", "POSITIVE", 1.0, 2.5, 3.0, 4.0)
TWO_LABELS = LabelRequest({CAT: ["x", "ü"]}, [])
TWO_BOXES = LabelRequest({}, [X_BOX, X_BOX._replace(x2=9.0)])
TWO_CATEGORIES = LabelRequest({("ü", "POSITIVE"): ["x"], ("cat", "far away"): ["y"]}, [])
OF_B = {"user": "u@x", "created_by": "ingest"}
CORNERS = {"x1": 1.0, "y1": 2.5, "y2": 4.0}
# What is sent, the generation, and where it goes.
TO_A: tuple = TWO_LABELS, {}, LABELS
TO_B = TWO_LABELS, IS_B, LABELS
BOXES = TWO_BOXES, IS_B, MULTI
SHARED = TWO_CATEGORIES, IS_B, MULTI


def add(sent, answers, finds=talk, resend=False):
    """The result of sending a request to a server that gives these answers, and what it got."""
    request, generation, route = sent
    server = script({route: answers, **generation})
    result = finds(server, "add", "d", request, "u@x", resend)
    return result, [json.loads(asked.body) for asked in server.requests(route)]


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (
            TO_A,
            {"identifiers": ["x", "ü"], "category": "cat", "value": "POSITIVE", "user": "u@x"}
            | {"mode": "ingest"},
        ),
        (TO_B, {"identifiers": ["x", "ü"], "category": "cat", "mode": "POSITIVE"} | OF_B),
        (
            BOXES,
            {"dataset": "d", **OF_B}
            | {
                "annotations": [
                    {"identifier": "x", "category": "ü", "mode": "POSITIVE", "is_box": True}
                    | {"x2": x2, **CORNERS}
                    for x2 in (3.0, 9.0)
                ]
            },
        ),
        (
            SHARED,
            {"dataset": "d", **OF_B}
            | {
                "annotations": [
                    {"identifier": "x", "category": "ü", "mode": "POSITIVE"},
                    {"identifier": "y", "category": "cat", "mode": "far away"},
                ]
            },
        ),
    ],
)
def test_add_sends(sent, body):
    assert add(sent, [(200, {"created": 2})]) == (2, [body])


REFUSED: list = [(503, "x"), (429, "x"), DJANGO_500]
LOST: list = [reset, truncated, (502, "x"), (504, "x")]
USELESS: list = [(200, "<p>"), (202, {}), (200, [1])]
USELESS += [(200, {"created": number}) for number in (True, "2", -1, 10**12)]


@pytest.mark.parametrize(
    ("sent", "failure"),
    [(sent, failure) for sent in (TO_A, BOXES) for failure in REFUSED]
    + [(sent, failure) for sent in (TO_B, SHARED) for failure in [*REFUSED, *LOST]],
)
def test_add_repeats_what_is_not_stored_twice(sent, failure):
    created, bodies = add(sent, [failure, (200, {"created": 2})])
    assert (created, len(bodies)) == (2, 2)


@pytest.mark.parametrize("failure", LOST + USELESS)
@pytest.mark.parametrize(("sent", "what"), [(TO_A, "2 labels 'cat'"), (BOXES, "2 boxes, x")])
def test_add_does_not_repeat_what_may_be_stored(sent, what, failure):
    request, generation, route = sent
    server = script({route: [failure, (200, {"created": 2})], **generation})
    with pytest.raises(AnswerLost, match=f"may or may not have stored {what}"):
        talk(server, "add", "d", request, "u@x")
    assert len(server.requests(route)) == 1


@pytest.mark.parametrize("sent", [TO_A, BOXES])
def test_add_repeats_if_asked(sent):
    assert add(sent, [reset, (200, {"created": 2})], resend=True)[0] == 2


def test_add_to_a_dataset_that_vanished():
    assert "no dataset d" in add(TO_A, [ABSENT], refusal)[0]


def test_add_with_a_useless_answer_of_b():
    assert "another shape" in add(TO_B, [(200, {"created": True})], refusal)[0]


GARBAGE = [
    b"\0\0\0",
    b"SSH-2.0-OpenSSH\r\n",
    b"HTTP/1.1 999999 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_for_an_answer(garbage):
    answers = {DATASET: [[garbage]], LABELS: [[garbage]]}
    server = script(answers)
    message = refusal(server, "dataset", "d")
    assert "in 3 attempts: the answer is not valid HTTP. Check" in message
    assert "\\n" not in message
    assert len(server.asked) == 3
    with pytest.raises(AnswerLost):
        talk(script(answers), "add", "d", TWO_LABELS, "u@x")


def test_an_endless_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr("forager.connection.MAX_ANSWER_BYTES", 2500)
    endless = itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(b"x" * 1000))
    message = refusal(script({DATASET: [endless]}), "dataset", "d")
    assert "something else instead of JSON" in message


@pytest.mark.parametrize(
    ("page", "title"),
    [
        (b"<title>Not found</title>", "Not found"),
        (b"<TITLE class='x'>\n a <b>b</b>\n&amp; c</TITLE>", "a b & c"),
        (b"<title></title><h1>Sorry</h1>", "Sorry"),
        (b"<title>never closed", "never closed"),
        *((page, "") for page in (b"<title", b"no page", b"")),
    ],
)
def test_page_title(page, title):
    assert page_title(page) == title


@pytest.mark.parametrize(
    "piece",
    [b"<title", b"<title>", b"<h1>", b"<title><", b"<title>x</titl", b"<pre class=", b"<", b"&lt"],
)
def test_hostile_pages_take_linear_time(piece):
    """Where the time grows with the square of the length, they take hours."""
    page_title(piece * (10_000_000 // len(piece)))
    page_title(b"<title>" + piece * (10_000_000 // len(piece)) + b"</title>")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"9" * 5000])
def test_what_is_not_json(data):
    assert parsed(data) is None
