"""One request to Cloud Storage by aiohttp: access token, proxy, time limits, errors."""

from __future__ import annotations

import asyncio
import binascii
import json
import secrets
import socket
from dataclasses import replace
from typing import Any, TypeVar

import aiohttp
from google.auth.credentials import TokenState
from google.auth.exceptions import GoogleAuthError, TransportError
from yarl import URL

import gcs
from common import retries
from common.errors import StorageError, TransientError
from common.files import FilePart
from common.process import shortage
from common.terminal import duration
from gcs import Refused

CONNECT_S = 15.0  # the longest time until a connection is there
SILENCE_S = 60.0  # the longest time without a single byte
TOTAL_S = 120.0  # the longest time for an object of no bytes; the others get more
MIN_BYTES_PER_S = 2_000  # of a transfer
SLOW_ATTEMPTS = 2  # a slow transfer is long: eight would take hours
MAX_ANSWER_BYTES = 8 << 20  # of JSON: a page of a listing has up to 1,000 long names
BOUNDARY = secrets.token_hex(16)  # no file has it
UPLOAD_TYPE = f'multipart/related; boundary="{BOUNDARY}"'


SessionT = TypeVar("SessionT", bound="Session")


class Session:
    """Connections to storage; an async context manager.

    Raises:
        StorageError: the emulator or the proxy that the environment names is no address.
    """

    def __init__(self, connections: int, anonymous_allowed: bool = False) -> None:
        self._connections, self._proxy = connections, gcs.proxy()
        self._anonymous_allowed = anonymous_allowed
        self._needs_no_token = gcs.emulator_host() is not None
        self._renewing = asyncio.Lock()

    async def __aenter__(self: SessionT) -> SessionT:
        if self._anonymous_allowed and not self._needs_no_token:
            try:
                await asyncio.to_thread(gcs.credentials)
            except StorageError:
                self._needs_no_token = True
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections, ttl_dns_cache=300, socket_factory=_socket
            ),
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
        credentials, _ = gcs.credentials()
        async with self._renewing:
            if credentials.token_state is not TokenState.FRESH:
                from google.auth.transport.requests import Request

                try:
                    await asyncio.to_thread(credentials.refresh, Request())
                except TransportError as error:
                    reason = retries.connection_reason(error) or retries.CLOSED
                    raise TransientError(f"Google's token server: {reason}") from error
                except GoogleAuthError as error:
                    if error.retryable:
                        raise TransientError(str(error)) from error
                    raise Refused(str(error), 401) from error
        token: str = credentials.token
        return token

    async def request(
        self,
        method: str,
        address: str,
        headers: dict[str, str] | None = None,
        *,
        data: bytes | FilePart | None = None,
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
        if not self._needs_no_token and not public:
            headers["Authorization"] = f"Bearer {await self.token()}"
        if data is not None:
            headers["Content-Length"] = str(len(data))
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


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket whose connection ends when the other side takes nothing for SILENCE_S.

    aiohttp's own limit of silence begins when a request is sent whole.
    """
    made = socket.socket(*address[:3])
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * SILENCE_S))
    return made


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


def upload_body(data: bytes | FilePart, content_type: str, crc32c: int) -> bytes | FilePart:
    """The body that makes an object of data, which storage compares with their crc32c."""
    checksum = binascii.b2a_base64(crc32c.to_bytes(4, "big"), newline=False).decode()
    about = json.dumps({"contentType": content_type, "crc32c": checksum})
    before = (
        f"--{BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{about}\r\n"
        f"--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n"
    ).encode()
    after = f"\r\n--{BOUNDARY}--\r\n".encode()
    if isinstance(data, bytes):
        return before + data + after
    return replace(data, before=before, after=after)
