"""Trying again: which errors are worth it, how long to wait, and how often.

`FORAGER_RETRY_BASE_S` in the environment changes the first wait, and all others in proportion
(tests set it to 0.01).
"""

import asyncio
import email.utils
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import aiohttp
import tenacity
from tqdm import tqdm

from common.terminal import printable

ATTEMPTS = 8  # with 10% of requests failing, one in 100 million fails for good
BASE_S = float(os.environ.get("FORAGER_RETRY_BASE_S", 0.25))  # the first wait, before jitter
CAP_S = 60 * BASE_S  # no wait of our own is longer: eight attempts wait for 31 s at most
RETRY_AFTER_CAP_S = 60.0  # a server that asks for more is asked again after this
TRANSIENT_STATUSES = {408, 425, 429} | set(range(500, 600)) - {501, 505}

P = ParamSpec("P")
T = TypeVar("T")


class TransientError(Exception):
    """A failure of our own finding (a short body, a wrong checksum) that is worth another try.

    One with `attempts` is worth only so many.
    """

    attempts: int | None = None

    def __init__(self, message: str, status: int | None = None, retry_after: str | None = None):
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after  # the header, as the server sent it


async def call(
    what: str,
    function: Callable[P, Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """The result of `await function(*args, **kwargs)`, in at most ATTEMPTS tries.

    Only transient errors are tried again; each time a line on stderr says `what` failed, why, and
    which attempt comes next.

    Raises:
        Exception: what the last attempt raised.
    """

    # Nearly every call succeeds, and tenacity costs 0.1 ms: it hears only of calls that failed.
    failure: Exception | None
    try:
        return await function(*args, **kwargs)
    except Exception as error:
        if not is_transient(error):
            raise
        failure = error

    async def attempt() -> T:
        nonlocal failure
        if failure is not None:
            first, failure = failure, None
            raise first
        return await function(*args, **kwargs)

    return await tenacity.AsyncRetrying(**_policy(what))(attempt)


def call_blocking(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for a function that blocks, called in a thread of its own."""
    return tenacity.Retrying(**_policy(what))(function, *args, **kwargs)


def _policy(what: str) -> dict[str, Any]:
    def say(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        tqdm.write(
            f"{what}: {reason(error)}; attempt {state.attempt_number + 1} of "
            f"{most_attempts(error)} in {wait:.1f} s",
            file=sys.stderr,
        )

    return {
        "stop": _stop,
        "wait": _wait,
        "retry": tenacity.retry_if_exception(is_transient),
        "before_sleep": say,
        "reraise": True,
    }


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, TransientError | aiohttp.ClientPayloadError):
        return True
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch):
        return False  # a wrong certificate stays wrong
    if isinstance(
        error,
        aiohttp.ClientConnectionError
        | asyncio.TimeoutError
        | TimeoutError
        | ConnectionError
        | asyncio.IncompleteReadError,
    ):
        return True
    status = status_of(error)
    if status is not None and status >= 400:  # a wrong checksum comes with the 200 of its answer
        return status in TRANSIENT_STATUSES
    return _is_transient_elsewhere(error)


def _is_transient_elsewhere(error: BaseException) -> bool:
    """The same for errors of libraries that are looked at only where they are in use."""
    if requests := sys.modules.get("requests.exceptions"):
        if isinstance(error, requests.SSLError):
            return False
        kinds = (
            *(requests.ConnectionError, requests.Timeout, requests.ChunkedEncodingError),
            requests.InvalidJSONError,  # of an answer: ours are never sent in doubt
        )
        if isinstance(error, kinds):
            return True
    if auth := sys.modules.get("google.auth.exceptions"):
        if isinstance(error, auth.TransportError):
            return True
        if isinstance(error, auth.GoogleAuthError):
            return bool(getattr(error, "retryable", False))
    storage = sys.modules.get("google.cloud.storage.exceptions")
    return storage is not None and isinstance(error, storage.DataCorruption)


def status_of(error: BaseException) -> int | None:
    """The HTTP status an error of aiohttp, requests or google-cloud carries, if it does."""
    for owner, name in (
        (error, "status"),
        (getattr(error, "response", None), "status_code"),
        (error, "code"),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, int):
            return int(value)
    return None


def reason(error: BaseException | None) -> str:
    """The error in a few printable words, without a final full stop."""
    if error is None:
        return "no reason given"
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.ClientSSLError
    ):
        number = error.os_error.errno  # negative for what the resolver of names says
        text = os.strerror(number) if number and number > 0 else error.os_error.strerror
        return printable(text or str(error.os_error))
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {printable(error.message)}".rstrip()
    return printable(str(error) or type(error).__name__).rstrip(".")


def most_attempts(error: BaseException | None) -> int:
    """How many attempts a request gets that ends in this error."""
    return getattr(error, "attempts", None) or ATTEMPTS


def _stop(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return state.attempt_number >= most_attempts(error)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return wait_s(state.attempt_number, error)


def wait_s(attempt: int, error: BaseException | None) -> float:
    """Seconds to wait after attempt number `attempt`: growing, jittered, as long as asked for.

    Jitter lies between half and all of the wait, so that clients that failed together do not come
    back together. A `Retry-After` is waited for in full, up to RETRY_AFTER_CAP_S.
    """
    own = min(CAP_S, BASE_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
    return max(own, min(RETRY_AFTER_CAP_S, retry_after_s(error)))


def retry_after_s(error: BaseException | None) -> float:
    """What `Retry-After` asks for, in seconds or as a date (RFC 9110, 10.2.3); 0 without one."""
    text = getattr(error, "retry_after", None)
    if text is None:
        response = getattr(error, "response", None)
        headers = getattr(error, "headers", None) or getattr(response, "headers", None)
        text = headers.get("Retry-After") if headers else None
    if not isinstance(text, str):
        return 0.0
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
