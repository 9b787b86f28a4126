"""One request to Cloud Storage by aiohttp: access token, proxy, time limits, errors, batches.

A batch is several calls in one request: https://cloud.google.com/storage/docs/batch
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import aiohttp
from google.auth.credentials import TokenState
from yarl import URL

import gcs
from common import retries
from common.errors import TransientError
from common.process import shortage
from common.terminal import duration
from gcs import Refused

CONNECT_S = 15.0  # the longest time until a connection is there
SILENCE_S = 60.0  # the longest time without a single byte
TOTAL_S = 120.0  # the longest time for an object of no bytes; the others get more
MIN_BYTES_PER_S = 2_000  # of a transfer
SLOW_ATTEMPTS = 2  # a slow transfer is long: eight would take hours
MAX_ANSWER_BYTES = 8 << 20  # of JSON: a page of a listing has up to 1,000 long names
MAX_CALLS = 100  # in one batch, Google's limit
BOUNDARY = "===forager==="
BATCH_TYPE = f'multipart/mixed; boundary="{BOUNDARY}"'
DELIMITER = re.compile(rb"^--\S+", re.M)
STATUS_LINE = re.compile(rb"^HTTP/\d\S* (\d{3})", re.M)
CONTENT_ID = re.compile(rb"^Content-ID:\s*<response-(\d+)>", re.M | re.I)

SessionT = TypeVar("SessionT", bound="Session")


class Session:
    """Connections to storage; an async context manager.

    Raises:
        StorageError: the emulator or the proxy that the environment names is no address.
    """

    def __init__(self, connections: int) -> None:
        self._connections, self._proxy = connections, gcs.proxy()
        self._is_emulated = gcs.emulator_host() is not None
        self._renewing = asyncio.Lock()

    async def __aenter__(self: SessionT) -> SessionT:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=300),
            proxy=self._proxy,
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def token(self) -> str:
        """The access token of all requests, renewed a few minutes before it expires.

        Raises:
            TransientError, Refused: it could not be renewed.
            StorageError: no credentials.
        """
        credentials = gcs.credentials()
        async with self._renewing:
            if credentials.token_state is not TokenState.FRESH:
                from google.auth.transport.requests import Request

                with gcs.translated_errors():
                    await asyncio.to_thread(credentials.refresh, Request())
        token: str = credentials.token
        return token

    async def request(
        self,
        method: str,
        address: str,
        headers: dict[str, str] | None = None,
        *,
        data: bytes | None = None,
        expected: int | None = None,
        public: bool = False,
    ) -> bytes:
        """The body of the answer, up to somewhat more than MAX_ANSWER_BYTES or `expected` bytes.

        The request has credentials unless it is `public`.

        Raises:
            TransientError, Refused: what aiohttp raised, or an answer with an error status.
            ShortageError: too many open files, or too little memory.
        """
        headers = dict(headers or {})
        if not self._is_emulated and not public:
            headers["Authorization"] = f"Bearer {await self.token()}"
        size = len(data or b"") + (expected or 0)
        total_s = TOTAL_S + size / MIN_BYTES_PER_S
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        url = URL(address, encoded=True)  # otherwise a name such as a/../b would become b
        try:
            async with self._http.request(
                method, url, headers=headers, data=data, timeout=timeout
            ) as response:
                if response.status >= 400:
                    body = await _read(response, gcs.MAX_ERROR_BYTES)
                    retry_after = response.headers.get("Retry-After")
                    raise gcs.failed_answer(response.status, body, retry_after)
                return await _read(response, MAX_ANSWER_BYTES if expected is None else expected)
        except aiohttp.ServerTimeoutError as error:  # while connecting, or of silence
            raise TransientError(retries.reason(error)) from error
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise TransientError(
                f"slower than {MIN_BYTES_PER_S:,} bytes/s: {size:,} bytes took more than "
                f"{duration(total_s)}",
                attempts=SLOW_ATTEMPTS,
            ) from error
        except aiohttp.ClientResponseError as error:
            raise TransientError("the answer is not valid HTTP") from error
        except (aiohttp.ClientError, *retries.TRANSIENT_KINDS) as error:
            if found := shortage(error):
                raise found from error
            kind = TransientError if retries.is_transient(error) else Refused
            raise kind(retries.reason(error)) from error


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, or so much of it that it is longer than the limit."""
    try:
        return await response.content.readexactly(limit + 1)
    except asyncio.IncompleteReadError as error:
        return error.partial


def parsed(body: bytes) -> Any:
    """The JSON of an answer; TransientError where it is none, or was too long."""
    try:
        return json.loads(body)
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


def batch_answers(body: bytes, calls: int) -> list[tuple[int, bytes]]:
    """The HTTP status and the body of each call's answer, in the order of the calls.

    Raises:
        TransientError: the body does not answer every call.
    """
    delimiter = DELIMITER.search(body)
    found: dict[int, tuple[int, bytes]] = {}
    for place, part in enumerate(body.split(delimiter[0])[1:-1] if delimiter else []):
        if status := STATUS_LINE.search(part):
            number = CONTENT_ID.search(part, 0, status.start())
            content = part[status.end() :].partition(b"\r\n\r\n")[2]
            # A part without a number has that of its place.
            found[int(number[1]) if number else place] = int(status[1]), content
    if sorted(found) != list(range(calls)):
        raise TransientError(f"the answer to a batch of {calls} calls is incomplete")
    return [found[number] for number in range(calls)]
