"""Which errors are tried again, how often and after which waits."""

import asyncio
import email.utils
import time

import aiohttp
import pytest

from common import retries
from common.errors import IngestError, TransientError
from common.retries import Retries

QUICK = Retries(base_s=0.001)


TRANSIENT = [
    *(aiohttp.ClientConnectionError(), aiohttp.ServerDisconnectedError()),
    *(aiohttp.ServerTimeoutError(), aiohttp.ClientPayloadError(), asyncio.TimeoutError()),
    *(TimeoutError(), ConnectionResetError(), TransientError("2 of 3 bytes")),
]
LASTING = [
    aiohttp.ServerFingerprintMismatch(b"", b"", "x", 1),
    *(aiohttp.InvalidURL("x"), ValueError(), KeyError("status"), FileNotFoundError()),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", [*TRANSIENT, *LASTING], ids=repr)
def test_is_transient(error):
    assert retries.is_transient(error) == (error in TRANSIENT)


class Fails:
    """A function that raises the errors in turn and then returns "done"; its calls are counted."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def asynchronous(self):
        return self()


@pytest.fixture(params=["async", "blocking"])
def call(request):
    """Call a function with retries, in both ways that they have."""

    def run(function, policy=QUICK):
        if request.param == "blocking":
            return policy.call_blocking("GET x", function)
        return asyncio.run(policy.call("GET x", function.asynchronous))

    return run


def test_call_prints_which_attempt_comes_next(call, capsys):
    assert call(Fails(ConnectionResetError("re\x1b[2Jset"), TimeoutError())) == "done"
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        r"GET x: re\x1b[2Jset; attempt 2 of 8 in 0.0 s",
        "GET x: no answer in time; attempt 3 of 8 in 0.0 s",
    ]


@pytest.mark.parametrize(
    ("errors", "attempts", "calls"),
    [
        ([ConnectionResetError(f"number {n}") for n in range(1, 9)], 5, 5),
        ([ValueError(403)], 8, 1),
        ([TransientError("x", attempts=2)] * 9, 8, 2),  # an error can limit its attempts
    ],
)
def test_call_raises_what_the_last_attempt_raised(call, capsys, errors, attempts, calls):
    function, last = Fails(*errors), errors[calls - 1]
    with pytest.raises(type(last)) as caught:
        call(function, QUICK._replace(attempts=attempts))
    assert caught.value is last and function.calls == calls
    assert capsys.readouterr().err.count(f" of {calls} in ") == calls - 1


def test_waits_double_up_to_a_cap():
    for attempt, wait in enumerate([1, 2, 4, 8, 16, 32, 60, 60], 1):
        waits = [Retries(base_s=1.0).wait_s(attempt, None) for _ in range(50)]
        assert wait / 2 <= min(waits) < max(waits) <= wait


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("100000", retries.RETRY_AFTER_CAP_S, retries.RETRY_AFTER_CAP_S),
        (30, 20, 30),
        *((header, 0, 0.01) for header in (-30, "soon", "-1", "", "²")),
    ],
)
def test_retry_after_is_respected(header, low, high):
    if isinstance(header, int):  # a date, in seconds from now
        header = email.utils.formatdate(time.time() + header, usegmt=True)
    assert low <= QUICK.wait_s(1, TransientError("x", 429, header)) <= high


def test_the_environment_sets_the_first_wait(monkeypatch):
    monkeypatch.setenv("FORAGER_RETRY_BASE_S", "0.5")
    assert retries.from_environment() == Retries(base_s=0.5)
    monkeypatch.delenv("FORAGER_RETRY_BASE_S")
    assert retries.from_environment() == Retries()


@pytest.mark.parametrize("text", ["", "fast", "-1", "nan", "inf", "1e9", "\x1b[2J"])
def test_a_wrong_first_wait_is_one_sentence(monkeypatch, text):
    monkeypatch.setenv("FORAGER_RETRY_BASE_S", text)
    with pytest.raises(IngestError, match="is not a number of seconds from 0 to 60") as caught:
        retries.from_environment()
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(104, "x"), "Connection reset by peer"),
        (aiohttp.ClientOSError(32, "x"), "Broken pipe"),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (TransientError("HTTP 503 (busy)."), "HTTP 503 (busy)"),
        (ValueError(), "ValueError"),
        (None, "no reason given"),
    ],
)
def test_reasons_are_in_the_systems_words(error, words):
    assert retries.reason(error) == words
