"""Requests to one Forager server: timeouts, retries, answers, and errors for useless answers."""

import asyncio
import html
import json
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from common import retries
from common.addresses import VIEWER_PORT, check_server_url, proxy_for, shown_address
from common.errors import AnswerLost, ServerError, TransientError
from common.terminal import count, printable

MAX_ANSWER_BYTES = 16_000_000  # the longest known answer, all datasets' names, has some 100 kB
FIRST_CONNECT_ATTEMPTS = 3  # a mistyped address or port fails sooner than a restarting server
MAX_PAGE_BYTES = 200_000  # of a web page that are searched for its title
MAX_TITLE_LENGTH = 2_000  # characters, with tags
# With one of these statuses the request was not carried out: a proxy did not pass it on, or the
# view failed, and its single INSERT with it.
NOT_DONE_STATUSES = {408, 425, 429, 500, 503}
PAGE_HEADER = "Forager-Page"  # local_forager sends it: a real server's page has another port
REQUEST_ERRORS = (aiohttp.ClientError, TransientError, asyncio.TimeoutError, OSError)
HINTS = {
    401: "it asks for a login, which Forager servers do not have: check SERVER_URL",
    403: "access is not allowed: check SERVER_URL and the proxy in front of the server",
    413: "the proxy in front of the server only accepts smaller requests",
}


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for a server, in seconds."""

    connect: float = 10
    read: float = 60
    labels: float = 600  # for one request, up to 50,000 rows for the server to write
    create: float = 3600  # the server lists both paths before it answers: minutes for millions
    settle: float | None = None  # until a dataset appears after a lost answer; 120 first waits


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the server."""

    request: str  # METHOD api/ROUTE
    status: int
    content: Any  # the JSON; None if the body is not JSON
    title: str  # the printable title of an HTML page, or ""
    location: str  # where a redirect points, or ""


DEFAULT_TIMEOUTS = Timeouts()


class Unreachable(TransientError):
    """There was no connection, so the server did not get the request."""

    def __init__(self, message: str, reached_before: bool) -> None:
        super().__init__(message, attempts=None if reached_before else FIRST_CONNECT_ATTEMPTS)


ConnectionT = TypeVar("ConnectionT", bound="Connection")


class Connection:
    """A session with one server; use it as an async context manager.

    Attributes:
        shown: the server's address as it may be printed, without a password.
        viewer_url: the address of the web page, if an answer told that it is the same.
    """

    def __init__(
        self,
        server_url: str,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retrying: retries.Retries | None = None,
    ) -> None:
        self._url = check_server_url(server_url)
        self.shown = shown_address(self._url)
        self._proxy = proxy_for(self._url)
        self.viewer_url: str | None = None
        self._timeouts = timeouts
        self._retrying = retrying or retries.from_environment()
        self._reached = False

    async def __aenter__(self: ConnectionT) -> ConnectionT:
        # One connection per request. A reset on a reused connection does not tell whether the
        # server closed it before or read the request, and there are few requests.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            proxy=self._proxy,
            trust_env=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(
        self,
        method: str,
        route: str,
        body: bytes | None = None,
        timeout_s: float | None = None,
        once: str | None = None,
    ) -> Answer:
        """The answer, after retries of transient failures.

        Args:
            timeout_s: for the whole answer; by default `timeouts.read`.
            once: what the request stores, if it must not be carried out twice.

        Raises:
            AnswerLost: a request of that kind was sent and may have been carried out.
            ServerError: there was no usable answer.
        """
        timeout_s = timeout_s or self._timeouts.read

        async def attempt() -> Answer:
            try:
                return await self.send(method, route, body, timeout_s)
            except REQUEST_ERRORS as error:
                if not once or certainly_not_done(error):
                    raise
                raise answer_lost(once, f"{retries.reason(error)}.") from error

        try:
            return await self._retrying.call(f"{method} {self.shown}/api/{route}", attempt)
        except REQUEST_ERRORS as error:
            raise self._no_answer(f"{method} api/{route}", error, timeout_s) from error

    async def send(self, method: str, route: str, body: bytes | None, timeout_s: float) -> Answer:
        """One attempt. Transient statuses are raised, all others returned."""
        # No Accept header: a server in debug mode then names the error in the title of a page.
        headers = {"Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=self._timeouts.connect)
        try:
            async with self._session.request(
                method,
                f"{self._url}/api/{route}",
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                data = await response.content.readexactly(MAX_ANSWER_BYTES)
        except asyncio.IncompleteReadError as error:
            data = error.partial  # what is longer is cut off, and then no JSON any more
        except aiohttp.ClientSSLError as error:
            raise ServerError(
                f"No TLS connection to {self.shown} ({printable(str(error))}): check the "
                "certificate, or whether SERVER_URL should begin with http://."
            ) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(retries.reason(error), self._reached) from error
        except aiohttp.ClientHttpProxyError as error:
            raise ServerError(
                f"The proxy in front of {self.shown} refused the connection (HTTP {error.status}): "
                "check the proxy settings of the environment."
            ) from error
        except aiohttp.ClientResponseError as error:
            raise TransientError(
                "the answer is not valid HTTP", attempts=FIRST_CONNECT_ATTEMPTS
            ) from error
        self._reached = True
        if PAGE_HEADER in response.headers:
            self.viewer_url = self.shown
        title, status = page_title(data), response.status
        if status in retries.TRANSIENT_STATUSES:
            reason = f"HTTP {status}" + (f" ({title})" if title else "")
            raise TransientError(reason, status, response.headers.get("Retry-After"))
        return Answer(
            request=f"{method} api/{route}",
            status=status,
            content=parsed(data),
            title=title,
            location=shown_address(response.headers.get("Location", "")),
        )

    async def content(self, answer: Answer) -> Any:
        """The JSON of a 200.

        Raises:
            ServerError: another status, or not JSON.
        """
        if answer.status == 404 and answer.content is None:
            raise await self._missing_route(answer)
        if answer.status != 200:
            raise self.refusal(answer)
        if answer.content is None:
            page = f"a web page ({answer.title!r})" if answer.title else "something else"
            raise ServerError(
                f"{self.shown} answered {answer.request} with {page} instead of JSON: SERVER_URL "
                "must be the address of the Forager server itself, not of its web page (port "
                f"{VIEWER_PORT})."
            )
        return answer.content

    def refusal(self, answer: Answer) -> ServerError:
        """The error for an answer with a status that is not 200."""
        if 300 <= answer.status < 400:
            return ServerError(
                f"{self.shown} redirects {answer.request} to {answer.location or 'nowhere'} (HTTP "
                f"{answer.status}): set SERVER_URL to the address of the Forager server behind it."
            )
        said = answer.title or (printable(json.dumps(answer.content)) if answer.content else "")
        said = f" ({said})" if said else ""
        hint = HINTS.get(answer.status, "check SERVER_URL and the log of the server")
        return ServerError(
            f"{self.shown} answered {answer.request} with HTTP {answer.status}{said}: {hint}."
        )

    async def _missing_route(self, answer: Answer) -> ServerError:
        """The error for a 404 that is not JSON: no server of these generations."""
        later = await self.ask("GET", "get_datasets")
        if later.status == 200 and isinstance(later.content, dict):
            return ServerError(
                f"{self.shown} is the later forager-server from PyPI, which takes local "
                "directories and embeds by itself: add the dataset in its web page, or point "
                "SERVER_URL to a server with the _v2 routes."
            )
        return ServerError(
            f"{self.shown} is not a Forager server that this program can talk to: it does not have "
            f"{answer.request}. Check SERVER_URL."
        )

    def _no_answer(self, request: str, error: BaseException, timeout_s: float) -> ServerError:
        """The error for a request that got no usable answer."""
        server = f"the Forager server at {self.shown}"
        if isinstance(error, Unreachable):
            proxy = f" through the proxy {shown_address(self._proxy)}" if self._proxy else ""
            return ServerError(
                f"Cannot reach {server}{proxy} ({error}): check SERVER_URL, and that the server is "
                "running."
            )
        reason = retries.reason(error)
        if isinstance(error, asyncio.TimeoutError | TimeoutError):
            reason = f"no answer within {timeout_s:,} s"
        attempts = self._retrying.attempts_for(error) if retries.is_transient(error) else 1
        return ServerError(
            f"T{server[1:]} failed to answer {request}, in {count(attempts, 'attempt')}: {reason}. "
            "Check SERVER_URL and the server's log, or try again later."
        )

    def other_shape(self, answer: Answer) -> ServerError:
        """The error for JSON that does not have the expected fields."""
        return ServerError(
            f"{self.shown} answered {answer.request} with JSON of another shape than a Forager "
            "server: check SERVER_URL."
        )


def certainly_not_done(error: BaseException) -> bool:
    """Whether this failure means that the server did not carry out the request."""
    return isinstance(error, TransientError) and (
        isinstance(error, Unreachable) or error.status in NOT_DONE_STATUSES
    )


def answer_lost(what: str, reason: str) -> AnswerLost:
    """The error for a request that stores `what`, perhaps."""
    return AnswerLost(f"The server may or may not have stored {what}: {reason}")


def parsed(data: bytes) -> Any:
    """The JSON in a body, or None if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def page_title(data: bytes) -> str:
    """The title of an HTML page, or its first heading, on one line; "" if it has neither.

    For Django's debug page, the exception's message follows. The time is linear in the length of
    the page, whatever it contains.
    """
    page = data[:MAX_PAGE_BYTES].decode(errors="replace")
    title = _text_between(page, r"<title\b", "</title") or _text_between(page, r"<h1\b", "</h1")
    parts = title, _text_between(page, '<pre class="exception_value"', "</pre")
    return printable(": ".join(part for part in parts if part), 200)


def _text_between(page: str, start: str, end: str) -> str:
    """The text of the element with this start and end, without the tags inside it."""
    found = re.search(rf"{start}[^<>]*>(.{{,{MAX_TITLE_LENGTH}}})", page, re.I | re.S)
    text = re.split(end, found[1], maxsplit=1, flags=re.I)[0] if found else ""
    return " ".join(html.unescape(re.sub(r"<[^<>]*>", " ", text)).split())
