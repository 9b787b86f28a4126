"""The client against small real servers that fail on purpose."""

import asyncio
import json
import socket

import pytest

from common import retries
from common.errors import AnswerLost, IngestError, ServerError
from forager.client import CREATE_ATTEMPTS, DatasetInfo, Forager
from forager.connection import Timeouts
from forager.generation import Box, Generation, Request
from tests.forager.script import DJANGO_404, Script
from tests.stand_in import Answer, Rule, StandIn

INFO = {"index_id": "i", "num_train": 2, "num_val": 1}
ABSENT = (404, {"detail": "Not found."})
DJANGO_500 = (500, "<html><head>\n<title>IntegrityError\n   at /api/x</title></head></html>")
DATASET = "GET get_dataset_info_v2/d"
CREATE = "POST create_dataset_v2"
OPTIONS = "OPTIONS add_annotations_multi_v2"
CAT = "cat", "POSITIVE"
COUNTS = "get_category_counts_v2/d"
LABELS = "POST add_annotations_by_internal_identifiers_v2/d"
MULTI = "POST add_annotations_multi_v2"
IS_B = {OPTIONS: [(200, {"name": "x"})]}

TIMEOUTS = Timeouts(settle=0.3)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


reset, never = "reset", "hold"
truncated = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"]


def talk(script, method, *args, timeouts=TIMEOUTS):
    """The result of one method of the client, asked of a server with this script."""

    async def run():
        with script as server:
            async with Forager(server.url, timeouts) as client:
                return await getattr(client, method)(*args)

    return asyncio.run(run())


def refusal(script, method, *args, timeouts=TIMEOUTS):
    with pytest.raises(ServerError) as caught:
        talk(script, method, *args, timeouts=timeouts)
    message = caught.value.message
    assert message.isprintable()
    assert message.endswith(".")
    return message


def test_dataset_is_there():
    assert talk(Script({DATASET: [(200, INFO)]}), "dataset", "d") == DatasetInfo("i", 2, 1)


def test_dataset_absent():
    assert talk(Script({DATASET: [ABSENT]}), "dataset", "d") is None


@pytest.mark.parametrize(
    "failure",
    [
        (500, "x"),
        (502, "x"),
        (503, "x"),
        (408, "x"),
        (429, "x", {"Retry-After": "0"}),
        reset,
        truncated,
    ],
)
def test_dataset_transient_failures(failure, capsys):
    script = Script({DATASET: [failure, failure, (200, INFO)]})
    assert talk(script, "dataset", "d") == DatasetInfo("i", 2, 1)
    assert script.count(DATASET) == 3
    assert f"attempt 2 of {retries.ATTEMPTS}" in capsys.readouterr().err


def test_dataset_timeout():
    script = Script({DATASET: [never]})
    message = refusal(script, "dataset", "d", timeouts=Timeouts(read=0.05))
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
        ((200, {"status": "ok"}), ["JSON of another shape"]),
        ((200, {**INFO, "num_val": "1"}), ["JSON of another shape"]),
        ((200, [1]), ["JSON of another shape"]),
        ((301, "", {"Location": "https://x.org/\x85"}), ["https://x.org/", "set SERVER_URL"]),
        ((401, "x"), ["HTTP 401", "login"]),
        ((403, "<h1>403 Forbidden</h1>"), ["HTTP 403 (403 Forbidden)"]),
        ((400, "<title>DisallowedHost at /</title>"), ["HTTP 400 (DisallowedHost at /)"]),
        (DJANGO_404, ["not a Forager server", "api/get_dataset_info_v2/d"]),
    ],
)
def test_dataset_other_answers(answer, words):
    message = refusal(Script({DATASET: [answer]}), "dataset", "d")
    for word in words:
        assert word in message


def test_dataset_on_the_later_forager_server():
    script = Script({"GET get_datasets": [(200, {"dataset_names": []})]})
    assert "later forager-server from PyPI" in refusal(script, "dataset", "d")


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}/"

    async def run():
        async with Forager(url) as client:
            await client.dataset("d")

    with pytest.raises(ServerError, match="Cannot reach .*.Connection refused.") as caught:
        asyncio.run(run())
    assert "secret" not in caught.value.message


def test_tls_where_there_is_none():
    async def run():
        with Script({}) as server:
            async with Forager(server.url.replace("http", "https")) as client:
                await client.dataset("d")

    with pytest.raises(ServerError, match="should begin with http://"):
        asyncio.run(run())


def test_dataset_names():
    key = "GET get_datasets_v2"
    assert talk(Script({key: [(200, {"dataset_names": ["a"]})]}), "dataset_names") == ["a"]
    assert talk(Script({}), "dataset_names") is None
    assert "another shape" in refusal(Script({key: [(200, {"dataset_names": 1})]}), "dataset_names")


def test_generation():
    assert talk(Script({}), "generation") is Generation.A
    assert talk(Script(IS_B), "generation") is Generation.B
    assert "HTTP 405" in refusal(Script({OPTIONS: [(405, "x")]}), "generation")


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
    assert talk(Script(answers), "category_counts", "d", ["cat"]) == counts


def create(script, finds=refusal, timeouts=TIMEOUTS):
    arguments = "d", "gs://b/t/", "gs://b/v/", "i", 2, 1
    return finds(script, "create_dataset", *arguments, timeouts=timeouts)


def test_create():
    script = Script({CREATE: [(200, {"status": "success"})], DATASET: [(200, INFO)]})
    create(script, talk)
    assert [json.loads(body) for key, body in script.requests if key == CREATE] == [
        {"dataset": "d", "train_path": "gs://b/t/", "val_path": "gs://b/v/", "index_id": "i"}
    ]


@pytest.mark.parametrize("lost", [reset, truncated, (502, "x"), (504, "x"), (500, "x"), (503, "x")])
def test_create_lost_answer_is_settled_by_asking(lost):
    script = Script({CREATE: [lost], DATASET: [(200, INFO)]})
    create(script, talk)
    assert script.count(CREATE) == 1


def test_create_lost_answer_while_the_server_is_at_work():
    partial = (200, {**INFO, "num_train": 0})
    answers = [ABSENT, ABSENT, partial, partial, (200, INFO)]
    script = Script({CREATE: [(504, "x")], DATASET: answers})
    create(script, talk, Timeouts(settle=60))  # ends with the last answer
    assert script.count(CREATE) == 1


@pytest.mark.parametrize("failure", [reset, (503, "x"), (429, "x"), (500, "x")])
def test_create_that_did_not_arrive_is_sent_again(failure):
    def success(asked):
        script.answers[DATASET] = [(200, INFO)]
        return 200, {"status": "success"}

    script = Script({CREATE: [failure, success], DATASET: [ABSENT]})
    create(script, talk)
    assert script.count(CREATE) == 2


def test_create_timeout_is_not_repeated():
    script = Script({CREATE: [never], DATASET: [ABSENT]})
    message = create(script, timeouts=Timeouts(create=0.05, settle=0.05))
    assert "run the same command again" in message
    assert script.count(CREATE) <= 1  # on a slow machine the time is over before it is sent


def test_create_ends():
    script = Script({CREATE: [DJANGO_500], DATASET: [ABSENT]})
    assert "did not create d (HTTP 500 (IntegrityError at /api/x))" in create(script)
    assert script.count(CREATE) == CREATE_ATTEMPTS


@pytest.mark.parametrize(
    ("answer", "info", "words"),
    [
        (
            (200, {"status": "success"}),
            {**INFO, "num_train": 3},
            "3 training and 1 validation images instead",
        ),
        (
            DJANGO_500,
            {**INFO, "num_train": 0, "num_val": 0},
            "0 training and 0 validation im",
        ),
        (DJANGO_500, {**INFO, "num_val": 0}, "(and answered: HTTP 500 (IntegrityError at /api/x))"),
        (reset, {**INFO, "index_id": "j"}, "another dataset d on the server, with index_id j"),
    ],
)
def test_create_says_what_differs(answer, info, words):
    script = Script({CREATE: [answer], DATASET: [(200, info)]})
    assert words in create(script)
    assert script.count(CREATE) == 1


def test_create_success_without_dataset():
    script = Script({CREATE: [(200, {"status": "success"})], DATASET: [ABSENT]})
    assert "answered that it created d" in create(script)


def test_create_html_200():
    script = Script({CREATE: [(200, "<title>Login</title>")], DATASET: [ABSENT]})
    assert "web page ('Login')" in create(script)


def test_create_then_the_server_is_gone():
    script = Script({CREATE: [reset], DATASET: [(503, "x")]})
    message = create(script)
    assert message.startswith("Whether d was created is not known.")
    assert "run the same command again" in message


X_BOX = Box("x", "ü", "POSITIVE", 1.0, 2.5, 3.0, 4.0)
TWO_LABELS = Request({CAT: ["x", "ü"]}, [])
TWO_BOXES = Request({}, [X_BOX, X_BOX._replace(x2=9.0)])
TWO_CATEGORIES = Request({("ü", "POSITIVE"): ["x"], ("cat", "far away"): ["y"]}, [])
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
    script = Script({route: answers, **generation})
    result = finds(script, "add", "d", request, "u@x", resend)
    return result, [json.loads(body) for key, body in script.requests if key == route]


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
    script = Script({route: [failure, (200, {"created": 2})], **generation})
    with pytest.raises(AnswerLost, match=f"may or may not have stored {what}"):
        talk(script, "add", "d", request, "u@x")
    assert script.count(route) == 1


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


async def talk_to_garbage(garbage, method, *arguments):
    """One method of the client, asked of a server of generation A that answers with garbage."""
    with StandIn(None, Rule("", [garbage]), delay_s=0) as server:
        async with Forager(server.url, TIMEOUTS) as client:
            client._generation = Generation.A
            with pytest.raises(ServerError) as caught:
                await getattr(client, method)(*arguments)
    assert caught.value.message.isprintable()
    assert "\\n" not in caught.value.message
    return caught.value, len(server.asked)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_for_an_answer(garbage):
    error, connections = asyncio.run(talk_to_garbage(garbage, "dataset", "d"))
    assert "in 3 attempts: the answer is not valid HTTP. Check" in error.message
    assert connections == 3
    error, connections = asyncio.run(talk_to_garbage(garbage, "add", "d", TWO_LABELS, "u@x"))
    assert isinstance(error, AnswerLost)
    assert connections == 1


def test_proxies_of_the_environment_are_used(monkeypatch):
    async def run():
        with StandIn(None, lambda asked: Answer(200, INFO)) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            async with Forager("http://forager.example") as client:
                return await client.dataset("d"), [asked.path for asked in proxy.asked]

    info, seen = asyncio.run(run())
    assert info == DatasetInfo("i", 2, 1)
    assert seen == ["http://forager.example/api/get_dataset_info_v2/d"]


@pytest.mark.parametrize("proxy", ["::::", "http://[x", "http://user:secret@:x"])
def test_a_proxy_that_is_no_address(proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(IngestError, match="http_proxy=.* in the environment is not an address"):
        refusal(Script({}), "dataset", "d")
