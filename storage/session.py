"""One request to Cloud Storage by aiohttp: access token, proxy, time limits, errors, batches.

A batch is several calls in one request: https://cloud.google.com/storage/docs/batch
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import aiohttp
from google.auth.credentials import TokenState
from yarl import URL

import gcs
from common import retries
from common.errors import TransientError
from common.process import shortage
from common.terminal import duration
from gcs import Refused

MAX_ANSWER_BYTES = 8 << 20  # of JSON: a page of a listing has up to 1,000 long names
SLOW_ATTEMPTS = 2  # a slow transfer is long: eight would take hours
MAX_CALLS = 100  # in one batch, Google's limit
BOUNDARY = "===forager==="
BATCH_TYPE = f'multipart/mixed; boundary="{BOUNDARY}"'
STATUS_LINE = re.compile(rb"^HTTP/\d\S* (\d{3})", re.M)
CONTENT_ID = re.compile(rb"^Content-ID:\s*<response-(\d+)>", re.M | re.I)


class TimeLimits(NamedTuple):
    """How long a request may take, in seconds."""

    connect_s: float = 15
    read_s: float = 60  # without a single byte
    total_s: float = 120  # for an object of no bytes; the others get more
    bytes_per_s: float = 2_000  # the minimum rate of a transfer

    def total_for(self, size: int) -> float:
        """How long a transfer of `size` bytes may take."""
        return self.total_s + size / self.bytes_per_s


class AccessToken:
    """One token of google-auth for all requests, renewed a few minutes before it expires."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """The token.

        Raises:
            TransientError, Refused: it could not be renewed.
            StorageError: no credentials.
        """
        credentials = gcs.credentials()
        async with self._lock:
            if credentials.token_state is not TokenState.FRESH:
                await asyncio.to_thread(_renew, credentials)
        token: str = credentials.token
        return token


def _renew(credentials: Any) -> None:
    from google.auth.transport.requests import Request

    with gcs.translated_errors():
        credentials.refresh(Request())


class Session:
    """Connections to storage; an async context manager.

    Raises:
        StorageError: the emulator or the proxy that the environment names is no address.
    """

    def __init__(self, connections: int, limits: TimeLimits) -> None:
        self._connections, self._limits = connections, limits
        self._proxy = gcs.proxy()
        self._token = None if gcs.emulator_host() else AccessToken()

    async def __aenter__(self) -> Session:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=300),
            proxy=self._proxy,
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        address: str,
        headers: dict[str, str] | None = None,
        *,
        size: int = 0,
        data: bytes | None = None,
        public: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request, with credentials unless `public`; the block reads the answer of a success.

        `size` is the number of bytes that are expected or sent.

        Raises:
            TransientError, Refused: what aiohttp raised, or an answer with an error status.
            ShortageError: too many open files, or too little memory.
        """
        headers = dict(headers or {})
        if self._token and not public:
            headers["Authorization"] = f"Bearer {await self._token.get()}"
        limits = self._limits
        timeout = aiohttp.ClientTimeout(
            total=limits.total_for(size), sock_connect=limits.connect_s, sock_read=limits.read_s
        )
        url = URL(address, encoded=True)  # otherwise a name such as a/../b would become b
        try:
            async with self._http.request(
                method, url, headers=headers, data=data, timeout=timeout
            ) as response:
                if response.status >= 400:
                    body = await read(response, gcs.MAX_ERROR_BYTES)
                    retry_after = response.headers.get("Retry-After")
                    raise gcs.failed_answer(response.status, body, retry_after)
                yield response
        except (aiohttp.ClientError, *retries.TRANSIENT_KINDS) as error:
            raise self._translated(error, size) from error

    def _translated(self, error: BaseException, size: int) -> Exception:
        """What aiohttp raised, as an error of ours."""
        if found := shortage(error):
            return found
        if isinstance(error, asyncio.TimeoutError | TimeoutError) and not isinstance(
            error, aiohttp.ServerTimeoutError
        ):
            return TransientError(
                f"slower than {self._limits.bytes_per_s:,.0f} bytes/s: {size:,} bytes took more "
                f"than {duration(self._limits.total_for(size))}",
                attempts=SLOW_ATTEMPTS,
            )
        if isinstance(error, aiohttp.ClientResponseError):
            return TransientError("the answer is not valid HTTP")
        reason = retries.reason(error)
        return TransientError(reason) if retries.is_transient(error) else Refused(reason)


async def read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of an answer, up to somewhat more than `limit` bytes."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            break
    return b"".join(pieces)


async def read_json(response: aiohttp.ClientResponse) -> Any:
    """The JSON of an answer; TransientError where it is none, or too long."""
    try:
        return json.loads(await read(response, MAX_ANSWER_BYTES))
    except (ValueError, RecursionError) as error:
        raise TransientError("the answer is not JSON") from error


def batch_body(paths: Iterable[str]) -> bytes:
    """The body that calls POST on each of the paths, which begin with /b/ and are encoded.

    A call of its own costs 0.2 ms of processor time, one in a batch a tenth of that.
    """
    parts = [
        f"--{BOUNDARY}\r\nContent-Type: application/http\r\nContent-ID: <{number}>\r\n\r\n"
        f"POST /storage/v1{path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
        for number, path in enumerate(paths)
    ]
    return ("\r\n".join(parts) + f"\r\n--{BOUNDARY}--\r\n").encode()


def batch_answers(content_type: str, body: bytes, calls: int) -> list[tuple[int, bytes]]:
    """The HTTP status and the body of each call's answer, in the order of the calls.

    Raises:
        TransientError: the body does not answer every call.
    """
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    parts = body.split(f"--{boundary[1]}".encode())[1:-1] if boundary else []
    found = dict(_numbered_answers(parts))
    if sorted(found) != list(range(calls)):
        raise TransientError(f"the answer to a batch of {calls} calls is incomplete")
    return [found[number] for number in range(calls)]


def _numbered_answers(parts: Sequence[bytes]) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """The number of each call with its answer. A part without a number has that of its place."""
    for place, part in enumerate(parts):
        status = STATUS_LINE.search(part)
        if status is None:
            return
        number = CONTENT_ID.search(part, 0, status.start())
        content = part[status.end() :].partition(b"\r\n\r\n")[2]
        yield int(number[1]) if number else place, (int(status[1]), content)
