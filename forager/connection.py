"""Requests to one Forager server: timeouts, retries, and answers of bounded size."""

import asyncio
from typing import NamedTuple

import aiohttp

from common import retries
from common.errors import AnswerLost, ServerError, TransientError
from common.names import proxy_for
from common.terminal import printable
from forager.addresses import check_server_url, shown_address
from forager.answers import (
    FIRST_CONNECT_ATTEMPTS,
    Answer,
    Unreachable,
    certainly_not_done,
    lost_text,
    no_answer,
    page_title,
    parsed,
)

MAX_ANSWER_BYTES = 16_000_000  # the longest known answer, all datasets' names, has some 100 kB
REQUEST_ERRORS = (
    aiohttp.ClientError,
    TransientError,
    asyncio.TimeoutError,
    TimeoutError,
    OSError,
)


PAGE_HEADER = "Forager-Page"  # local_forager sends it: a real server's page has another port


class Timeouts(NamedTuple):
    """How long to wait for a server, in seconds."""

    connect: float = 10
    read: float = 60
    labels: float = 600  # for one request, up to 50,000 rows for the server to write
    create: float = 3600  # the server lists both paths before it answers: minutes for millions
    settle: float | None = None  # until a dataset appears after a lost answer; 120 first waits


class Connection:
    """A session with one server; use it as an async context manager.

    Attributes:
        shown: the server's address as it may be printed, without a password.
        serves_page: whether an answer said that the web page is at the same address.
    """

    def __init__(self, server_url: str, timeouts: Timeouts, retrying: retries.Retries) -> None:
        self._url = check_server_url(server_url)
        self.shown = shown_address(self._url)
        self._timeouts = timeouts
        self._retrying = retrying
        self._reached = self.serves_page = False

    async def __aenter__(self) -> "Connection":
        # One connection per request. A reset on a reused connection does not tell whether the
        # server closed it before or read the request, and there are few requests.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            proxy=proxy_for(self._url),
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
        once: str = "",
        attempts: int | None = None,
    ) -> Answer:
        """The answer, after retries of transient failures.

        Args:
            timeout_s: for the whole answer; by default `timeouts.read`.
            once: what the request stores, if it must not be carried out twice.
            attempts: how often it is tried, if not as often as other requests.

        Raises:
            AnswerLost: a request of that kind was sent and may have been carried out.
            ServerError: there was no usable answer.
        """
        timeout_s = timeout_s or self._timeouts.read
        send = self._send_once if once else self.send
        retrying = self._retrying._replace(attempts=attempts or self._retrying.attempts)
        shown = route.partition("?")[0]  # without a long list of images
        try:
            return await retrying.call(
                f"{method} {self.shown}/api/{shown}", send, method, route, body, timeout_s
            )
        except AnswerLost as error:
            raise AnswerLost(lost_text(once, f"{error.message}.")) from error
        except REQUEST_ERRORS as error:
            tries = retrying.attempts_for(error)
            raise no_answer(self.shown, method, shown, error, timeout_s, tries) from error

    async def _send_once(
        self, method: str, route: str, body: bytes | None, timeout_s: float
    ) -> Answer:
        """`send`, but raises AnswerLost for a failure after which the work may be done."""
        try:
            answer = await self.send(method, route, body, timeout_s)
        except REQUEST_ERRORS as error:
            if isinstance(error, aiohttp.InvalidURL) or certainly_not_done(error):
                raise
            raise AnswerLost(retries.reason(error)) from error
        if answer.status == 200 and answer.content is None:
            raise AnswerLost("the answer is not JSON")
        if 200 < answer.status < 300:
            raise AnswerLost(f"the answer is HTTP {answer.status}")
        return answer

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
                data = await read_body(response)
                self.serves_page = PAGE_HEADER in response.headers
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
        title = page_title(data)
        status = response.status
        if status in retries.TRANSIENT_STATUSES:
            raise TransientError(
                f"HTTP {status}" + (f" ({title})" if title else ""),
                status,
                response.headers.get("Retry-After"),
            )
        location = printable(response.headers.get("Location", ""))
        return Answer(status, parsed(data), title, location)


async def read_body(response: aiohttp.ClientResponse, limit: int = MAX_ANSWER_BYTES) -> bytes:
    """The first `limit` bytes of the body. What is cut off there is no JSON any more."""
    blocks: list[bytes] = []
    async for block in response.content.iter_any():
        blocks.append(block[:limit])
        limit -= len(block)
        if limit <= 0:
            break
    return b"".join(blocks)
