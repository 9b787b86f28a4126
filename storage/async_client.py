"""Many small objects of Google Cloud Storage at once, every byte checked.

By gcloud-aio-storage: it costs 0.3 ms of interpreter time an object, google-cloud-storage 2.8 ms.
"""

from __future__ import annotations

import asyncio
import urllib.request
import zlib
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

import gcs
from common import retries
from common.terminal import printable
from gcs import DamagedContent, ListedObject

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=15, sock_read=60)  # seconds
MAX_UNZIPPED_BYTES = 1 << 30  # of an object that is stored gzip-compressed
GZIP = b"\x1f\x8b"  # how gzip files begin (RFC 1952); no image does
REFRESH_MARGIN_S = 300  # access tokens live an hour; this long before their end a new one is asked


class ObjectUnusable(Exception):
    """This one object cannot be had as it was listed; the run goes on without it."""


class AsyncStorage:
    """Reads and writes many small objects at once; an async context manager.

    Every byte read is checked against the listing's size and crc32c, every byte written against
    what storage says it stored; what is transient is tried again (retries.py).
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections

    async def __aenter__(self) -> AsyncStorage:
        from gcloud.aio.storage import Storage

        connector = aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=300)
        self._session = aiohttp.ClientSession(
            connector=connector, proxy=proxy_for(gcs.api_address()), auto_decompress=False
        )
        # Any: gcloud-aio's hints are those of its twin for requests, which share its source.
        session: Any = self._session
        token: Any = _Token()
        self._storage: Any = Storage(session=session, token=token, api_root=gcs.emulator_host())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, bucket: str, listed: ListedObject) -> bytes:
        """The bytes of the object as listed; see `unzipped` for what is stored gzip-compressed.

        Raises:
            ObjectUnusable: it is gone, or is no longer what the listing says.
            StorageError: no access, or storage cannot be reached.
        """
        what = f"Reading gs://{bucket}/{printable(listed.name)}"
        try:
            data = await retries.call(what, self._fetch_once, bucket, listed)
        except DamagedContent as error:
            raise ObjectUnusable(
                f"{error}: it changed since it was listed, or is damaged on the way"
            ) from error
        except Exception as error:
            if getattr(error, "status", None) == 404:
                raise ObjectUnusable("it was deleted after it was listed (404)") from error
            raise gcs.explained(error, what) from error
        return data

    async def _fetch_once(self, bucket: str, listed: ListedObject) -> bytes:
        # With this header storage sends gzip-compressed objects as they are stored, which is what
        # size and crc32c are of.
        data: bytes = await self._storage.download(
            bucket, listed.name, headers={"Accept-Encoding": "gzip"}, timeout=REQUEST_TIMEOUT
        )
        if len(data) != listed.size:
            raise DamagedContent(f"{len(data):,} bytes came, {listed.size:,} are listed")
        if gcs.crc32c_of_bytes(data) != listed.crc32c:
            raise DamagedContent("its crc32c is not the listed one")
        return data

    async def put(self, bucket: str, name: str, data: bytes, content_type: str) -> None:
        """Write one object and check what storage says it stored. Repeating it is harmless.

        Raises:
            StorageError: no access, or storage cannot be reached.
        """
        what = f"Writing gs://{bucket}/{printable(name)}"
        try:
            await retries.call(what, self._put_once, bucket, name, data, content_type)
        except Exception as error:
            raise gcs.explained(error, what) from error

    async def _put_once(self, bucket: str, name: str, data: bytes, content_type: str) -> None:
        try:
            stored = await self._storage.upload(
                bucket,
                name,
                data,
                content_type=content_type,
                force_resumable_upload=False,
                timeout=REQUEST_TIMEOUT,
            )
        except ValueError as error:
            raise DamagedContent("the answer is not JSON") from error
        try:
            arrived = int(stored["size"]), gcs.crc32c_of_listing(stored["crc32c"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedContent("the answer does not say what was stored") from error
        if arrived != (len(data), gcs.crc32c_of_bytes(data)):
            raise DamagedContent("storage holds other bytes than were sent")

    async def public_status(self, bucket: str, name: str) -> int:
        """The HTTP status that a browser without credentials gets for the object."""
        what = f"Reading {gcs.public_address(bucket, name)} without credentials"
        try:
            status: int = await retries.call(what, self._public_status_once, bucket, name)
        except Exception as error:
            raise gcs.explained(error, what) from error
        return status

    async def _public_status_once(self, bucket: str, name: str) -> int:
        address = URL(gcs.public_address(bucket, name), encoded=True)  # else a/../b would become b
        async with self._session.get(
            address, headers={"Range": "bytes=0-0"}, timeout=REQUEST_TIMEOUT
        ) as response:
            if response.status in (408, 429) or response.status >= 500:
                response.raise_for_status()
            return response.status


def proxy_for(address: str) -> str | None:
    """The proxy that the environment names for an address, if any.

    aiohttp's trust_env would look into the environment and into .netrc for every request, which
    costs more than a small request itself.
    """
    url = urlsplit(address)
    if not url.hostname or urllib.request.proxy_bypass(url.netloc):
        return None
    return urllib.request.getproxies().get(url.scheme)


class _Token:
    """google-auth's credentials for gcloud-aio-storage: both libraries then know the same kinds."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        credentials = gcs._credentials()
        async with self._lock:
            if not _fresh(credentials):
                await asyncio.to_thread(_refresh, credentials)
        token: str = credentials.token
        return token


def _fresh(credentials: Any) -> bool:
    from google.auth import _helpers

    if not credentials.token:
        return False
    if credentials.expiry is None:
        return True
    left = (credentials.expiry - _helpers.utcnow()).total_seconds()
    return bool(left > REFRESH_MARGIN_S)


def _refresh(credentials: Any) -> None:
    """Ask for a new access token; what fails goes to the retries of the request that needs it."""
    import google.auth.transport.requests

    credentials.refresh(google.auth.transport.requests.Request())


def unzipped_size(data: bytes) -> int:
    """How many bytes a gzip file says it holds (at least 1); 0 if it is none."""
    if not data.startswith(GZIP):
        return 0
    return max(1, int.from_bytes(data[-4:], "little"))


def unzipped(data: bytes) -> bytes:
    """The content of a gzip file, of which never more is unpacked than it says it holds.

    Raises:
        ObjectUnusable: damaged, or more than MAX_UNZIPPED_BYTES.
    """
    size = unzipped_size(data)
    if size > MAX_UNZIPPED_BYTES:
        raise ObjectUnusable(f"it is gzip-compressed, and {size / 1e9:,.1f} GB uncompressed")
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(data, size)
        rest = b"" if decompressor.eof else decompressor.decompress(decompressor.unconsumed_tail, 1)
    except zlib.error as error:
        raise ObjectUnusable(f"its gzip compression is damaged ({error})") from error
    if rest or not decompressor.eof or decompressor.unused_data:
        raise ObjectUnusable("it is gzip-compressed, and cut short or of several pieces")
    return content
