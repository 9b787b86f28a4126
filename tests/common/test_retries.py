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


def response_error(status, headers=None):
    return aiohttp.ClientResponseError(None, (), status=status, message="x", headers=headers)


def fails(*errors):
    """A function that raises the errors in turn and then returns "done"; its calls are counted."""
    left = list(errors)

    async def function():
        function.calls += 1
        if left:
            raise left.pop(0)
        return "done"

    function.calls = 0
    return function


@pytest.mark.parametrize(
    "error",
    [
        aiohttp.ClientConnectionError(),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ServerTimeoutError(),
        aiohttp.ClientPayloadError(),
        asyncio.TimeoutError(),
        TimeoutError(),
        ConnectionResetError(),
        asyncio.IncompleteReadError(b"", 3),
        TransientError("2 of 3 bytes"),
        *[response_error(status) for status in (408, 429, 500, 502, 503, 504, 520)],
    ],
    ids=repr,
)
def test_is_transient(error):
    assert retries.is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        *[response_error(status) for status in (200, 400, 401, 403, 404, 412, 413, 501)],
        aiohttp.InvalidURL("x"),
        ValueError(),
        KeyError("status"),
        FileNotFoundError(),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_is_not_transient(error):
    assert not retries.is_transient(error)


def test_call_prints_which_attempt_comes_next(capsys):
    function = fails(ConnectionResetError("reset"), TimeoutError())
    assert asyncio.run(QUICK.call("GET x", function)) == "done"
    said = capsys.readouterr()
    assert said.out == ""
    assert "GET x: reset; attempt 2 of 8 in 0.0 s" in said.err
    assert "GET x: no answer in time; attempt 3 of 8" in said.err


def test_call_stops_after_the_last_attempt(capsys):
    errors = [ConnectionResetError(f"number {n}") for n in range(1, 100)]
    function = fails(*errors)
    with pytest.raises(ConnectionResetError, match=r"^number 5$"):
        asyncio.run(QUICK._replace(attempts=5).call("GET x", function))
    assert function.calls == 5


def test_call_does_not_repeat_a_refusal():
    function = fails(response_error(403))
    with pytest.raises(aiohttp.ClientResponseError):
        asyncio.run(QUICK.call("GET x", function))
    assert function.calls == 1


def test_call_passes_arguments():
    async def add(a, b):
        return a + b

    assert asyncio.run(QUICK.call("add", add, 1, b=2)) == 3


def test_call_blocking_tries_again(capsys):
    left = [TransientError("busy"), TransientError("busy")]

    def function():
        if left:
            raise left.pop()
        return "done"

    assert QUICK.call_blocking("GET x", function) == "done"
    assert capsys.readouterr().err.count("GET x: busy; attempt") == 2


def test_call_escapes_control_characters_of_a_server(capsys):
    asyncio.run(QUICK.call("GET x", fails(ConnectionResetError("\x1b[2J"))))
    assert "\x1b" not in capsys.readouterr().err


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
        (-30, 0, 0.01),
        ("soon", 0, 0.01),
        ("-1", 0, 0.01),
        ("", 0, 0.01),
        ("²", 0, 0.01),
    ],
)
def test_retry_after_is_respected(header, low, high):
    if isinstance(header, int):  # a date, in seconds from now
        header = email.utils.formatdate(time.time() + header, usegmt=True)
    assert low <= QUICK.wait_s(1, response_error(429, {"Retry-After": header})) <= high
    assert low <= QUICK.wait_s(1, TransientError("x", 429, header)) <= high


def test_an_error_can_limit_its_attempts(capsys):
    error = TransientError("x", attempts=2)
    function = fails(error, error, error)
    with pytest.raises(TransientError):
        asyncio.run(QUICK.call("GET x", function))
    assert function.calls == 2
    assert "attempt 2 of 2" in capsys.readouterr().err


def test_the_environment_sets_the_first_wait(monkeypatch):
    monkeypatch.setenv("FORAGER_RETRY_BASE_S", "0.5")
    assert retries.from_environment() == Retries(base_s=0.5)
    monkeypatch.delenv("FORAGER_RETRY_BASE_S")
    assert retries.from_environment() == Retries()


@pytest.mark.parametrize("text", ["", "fast", "-1", "nan", "inf", "1e9", "\x1b[2J"])
def test_a_wrong_first_wait_is_one_sentence(monkeypatch, text):
    monkeypatch.setenv("FORAGER_RETRY_BASE_S", text)
    with pytest.raises(IngestError) as caught:
        retries.from_environment()
    assert caught.value.message.isprintable()
    assert (
        "is not a number of seconds from 0 to 60: correct it or unset it." in caught.value.message
    )


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
