import asyncio
import email.utils
import time

import aiohttp
import pytest
import requests
from google.api_core import exceptions as api_errors
from google.auth import exceptions as auth_errors

from common import retries


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retries, "BASE_S", 0.001)
    monkeypatch.setattr(retries, "CAP_S", 0.01)


def response_error(status, headers=None):
    return aiohttp.ClientResponseError(None, (), status=status, message="x", headers=headers)


def requests_error(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("x", response=response)


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
        retries.TransientError("2 of 3 bytes"),
        *[response_error(status) for status in (408, 429, 500, 502, 503, 504, 520)],
        requests.ConnectionError(),
        requests.Timeout(),
        requests.exceptions.ChunkedEncodingError(),
        requests_error(503),
        api_errors.ServiceUnavailable("x"),
        api_errors.TooManyRequests("x"),
        auth_errors.TransportError("x"),
        auth_errors.RefreshError("x", retryable=True),
    ],
    ids=repr,
)
def test_is_transient(error):
    assert retries.is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        *[response_error(status) for status in (400, 401, 403, 404, 412, 413, 501)],
        aiohttp.InvalidURL("x"),
        requests.exceptions.SSLError(),
        requests_error(404),
        api_errors.Forbidden("x"),
        api_errors.NotFound("x"),
        api_errors.PreconditionFailed("x"),
        auth_errors.RefreshError("x"),
        ValueError(),
        KeyError("status"),
        FileNotFoundError(),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_is_not_transient(error):
    assert not retries.is_transient(error)


def test_call_says_which_attempt(capsys):
    function = fails(ConnectionResetError("reset"), TimeoutError())
    assert asyncio.run(retries.call("GET x", function)) == "done"
    said = capsys.readouterr()
    assert said.out == ""
    assert f"GET x: reset; attempt 2 of {retries.ATTEMPTS} in 0.0 s" in said.err
    assert f"GET x: no answer in time; attempt 3 of {retries.ATTEMPTS}" in said.err


def test_call_ends(capsys):
    errors = [ConnectionResetError(f"number {n}") for n in range(1, 100)]
    function = fails(*errors)
    with pytest.raises(ConnectionResetError, match=f"^number {retries.ATTEMPTS}$"):
        asyncio.run(retries.call("GET x", function))
    assert function.calls == retries.ATTEMPTS


def test_call_does_not_repeat_what_will_not_change():
    function = fails(response_error(403))
    with pytest.raises(aiohttp.ClientResponseError):
        asyncio.run(retries.call("GET x", function))
    assert function.calls == 1


def test_call_passes_arguments():
    async def add(a, b):
        return a + b

    assert asyncio.run(retries.call("add", add, 1, b=2)) == 3


def test_call_escapes_what_a_server_says(capsys):
    asyncio.run(retries.call("GET x", fails(ConnectionResetError("\x1b[2J"))))
    assert "\x1b" not in capsys.readouterr().err


def test_waits_grow_and_are_capped(monkeypatch):
    monkeypatch.setattr(retries, "BASE_S", 1.0)
    monkeypatch.setattr(retries, "CAP_S", 20.0)
    for attempt, wait in enumerate([1, 2, 4, 8, 16, 20, 20], 1):
        waits = [retries.wait_s(attempt, None) for _ in range(50)]
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
def test_retry_after(header, low, high):
    if isinstance(header, int):  # a date, so many seconds from now
        header = email.utils.formatdate(time.time() + header, usegmt=True)
    assert low <= retries.wait_s(1, response_error(429, {"Retry-After": header})) <= high
    assert low <= retries.wait_s(1, retries.TransientError("x", 429, header)) <= high


def test_an_error_may_be_worth_fewer_attempts(capsys):
    error = retries.TransientError("x")
    error.attempts = 2
    function = fails(error, error, error)
    with pytest.raises(retries.TransientError):
        asyncio.run(retries.call("GET x", function))
    assert function.calls == 2
    assert "attempt 2 of 2" in capsys.readouterr().err
