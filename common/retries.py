"""Retries: which errors are worth another try, how long to wait before it, and how many tries.

`TransientError` marks what is worth another try. Code that calls a library translates the library's
exceptions into it (gcs.py, storage/session.py, forager/connection.py); only those of connections
are known here too.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, ParamSpec, TypeVar

import aiohttp

from common.errors import IngestError, TransientError
from common.terminal import printable, say

ATTEMPTS = 8  # if 10% of requests fail, one in 100 million fails eight times
BASE_S = 0.25  # the longest first wait
CAP_IN_BASES = 60  # the longest wait of all, in multiples of the first
RETRY_AFTER_CAP_S = 60.0  # a server that asks for a longer wait is tried again after this
BASE_VARIABLE = "FORAGER_RETRY_BASE_S"  # in the environment; replaces BASE_S
TRANSIENT_STATUSES = {408, 425, 429} | set(range(500, 600)) - {501, 505}
TRANSIENT_KINDS = (
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    asyncio.TimeoutError,
    TimeoutError,
    ConnectionError,
)
CLOSED = "the connection was closed before the whole answer came"
PERMANENT_KINDS = (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)

P = ParamSpec("P")
T = TypeVar("T")


class Retries(NamedTuple):
    """How often a request is tried, and how long the waits in between are."""

    attempts: int = ATTEMPTS
    base_s: float = BASE_S

    async def call(
        self, what: str, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of `await function(*args, **kwargs)`, tried up to `attempts` times.

        Only transient errors are tried again. A line on stderr then tells `what` failed, why, and
        which attempt comes next.

        Raises:
            Exception: what the last attempt raised.
        """
        attempt = 1
        while True:
            try:
                return await function(*args, **kwargs)
            except Exception as error:
                wait_s = self._wait_or_raise(what, attempt, error)
            await asyncio.sleep(wait_s)
            attempt += 1

    def call_blocking(
        self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same for a function that blocks. It sleeps between attempts: call it in a thread."""
        attempt = 1
        while True:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                wait_s = self._wait_or_raise(what, attempt, error)
            time.sleep(wait_s)
            attempt += 1

    def _wait_or_raise(self, what: str, attempt: int, error: Exception) -> float:
        """Seconds until the next attempt, which a line on stderr announces.

        Raises:
            Exception: `error`, if there is no next attempt.
        """
        attempts = self.attempts_for(error)
        if attempt >= attempts or not is_transient(error):
            raise error
        wait_s = self.wait_s(attempt, error)
        say(f"{what}: {reason(error)}; attempt {attempt + 1} of {attempts} in {wait_s:.1f} s")
        return wait_s

    def wait_s(self, attempt: int, error: BaseException | None) -> float:
        """Seconds to wait after attempt number `attempt`.

        The waits double up to CAP_IN_BASES * base_s. Each is shortened at random by up to half, so
        that clients that failed together do not all come back together. A `Retry-After` header is
        respected, up to RETRY_AFTER_CAP_S.
        """
        longest = self.base_s * min(CAP_IN_BASES, 2 ** (attempt - 1))
        own = longest * random.uniform(0.5, 1.0)
        return max(own, min(RETRY_AFTER_CAP_S, retry_after_s(error)))

    def attempts_for(self, error: BaseException | None) -> int:
        """How many tries a request gets that fails with this error."""
        own = error.attempts if isinstance(error, TransientError) else None
        return min(self.attempts, own or self.attempts)


def from_environment() -> Retries:
    """The usual retries, with the first wait that FORAGER_RETRY_BASE_S sets.

    Raises:
        IngestError: its value is not a number of seconds.
    """
    text = os.environ.get(BASE_VARIABLE)
    if text is None:
        return Retries()
    try:
        base_s = float(text)
    except ValueError:
        base_s = math.nan
    if not 0 <= base_s <= RETRY_AFTER_CAP_S:
        raise IngestError(
            f"{BASE_VARIABLE}={printable(text)!r} in the environment is not a number of seconds "
            f"from 0 to {RETRY_AFTER_CAP_S:.0f}: correct it or unset it."
        )
    return Retries(base_s=base_s)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, PERMANENT_KINDS):
        return False  # a wrong certificate stays wrong
    return isinstance(error, (TransientError, *TRANSIENT_KINDS))


def reason(error: BaseException | None) -> str:
    """The error in a few printable words, without a final full stop."""
    if error is None:
        return "no reason given"
    if not isinstance(error, TransientError) and (words := connection_reason(error)):
        return words
    return printable(str(error) or type(error).__name__, 300).rstrip(". ")


def connection_reason(error: BaseException) -> str | None:
    """Why a connection failed, in the operating system's words; None for other errors.

    The words are those of the first cause that has some: the messages of HTTP libraries show
    addresses of objects and exceptions within exceptions.
    """
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, aiohttp.ClientError):
            continue  # aiohttp's errors of TLS lack what ssl's own say
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"no TLS connection ({printable(cause.verify_message)})"
        if isinstance(cause, ssl.SSLError):
            words = (cause.reason or "handshake failed").replace("_", " ").lower()
            return f"no TLS connection ({printable(words)})"
    for cause in causes:
        if isinstance(cause, asyncio.TimeoutError | TimeoutError):
            return "no answer in time"
        if isinstance(cause, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
            return CLOSED
        if isinstance(cause, OSError) and cause.errno:
            # The number is negative for errors of the name resolver.
            text = os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
            return printable(text)
    return None


def retry_after_s(error: BaseException | None) -> float:
    """What `Retry-After` asks for, in seconds or as a date (RFC 9110, 10.2.3); 0 without one."""
    text = error.retry_after if isinstance(error, TransientError) else None
    if text is None:
        return 0.0
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
