"""Google Cloud Storage: list, read, write, check access.

Two libraries share the work. google-cloud-storage lists, checks access and moves the few large
objects (resumable, checksummed). gcloud-aio-storage moves the millions of small ones: it costs
0.3 ms of interpreter time an object, google-cloud-storage 2.8 ms. Both honour
STORAGE_EMULATOR_HOST, and need no credentials then.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import os
import sys
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
import click
import google_crc32c
from yarl import URL

import retries
from names import GsPath, printable

if TYPE_CHECKING:
    from google.cloud import storage

EMULATOR = "STORAGE_EMULATOR_HOST"
NO_METADATA = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"  # of google-cloud-storage
API_ADDRESS = "https://www.googleapis.com"
PUBLIC_ADDRESS = "https://storage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
WRITE_PERMISSIONS = ("storage.objects.create", "storage.objects.delete", "storage.objects.get")
NO_CREDENTIALS = "No Google credentials were found"
CREDENTIALS_ADVICE = (
    "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the "
    "key file of a service account"
)
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=15, sock_read=60)  # seconds
LIST_TIMEOUT = (15, 120)  # seconds: connect, read
MAX_UNZIPPED_BYTES = 1 << 30  # of an object that is stored gzip-compressed
GZIP = b"\x1f\x8b"  # how gzip files begin (RFC 1952); no image does
REFRESH_MARGIN_S = 300  # access tokens live an hour; this long before their end a new one is asked


class StorageError(click.ClickException):
    """Storage did not do what was asked; the message names the object and the reason."""


class ObjectUnusable(Exception):
    """This one object cannot be had as it was listed; the run goes on without it."""


class DamagedContent(retries.TransientError):
    """Other bytes arrived than were listed or sent."""


class ListedObject(NamedTuple):
    """One object as the listing shows it; crc32c as an unsigned 32-bit integer."""

    name: str
    size: int
    crc32c: int
    generation: int


def emulator_host() -> str | None:
    """The address of the storage emulator, with its http://, or None for the real service."""
    host = os.environ.get(EMULATOR, "").rstrip("/")
    if host and not host.startswith("http"):
        host = f"http://{host}"
    return host or None


@functools.cache
def _credentials() -> Any:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        credentials, _ = google.auth.default(scopes=[SCOPE])
    except DefaultCredentialsError as error:
        path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        what = f"No Google credentials are in {printable(path)}" if path else NO_CREDENTIALS
        raise StorageError(f"{what}: {CREDENTIALS_ADVICE}.") from error
    return credentials


def make_client() -> storage.Client:
    """A google-cloud-storage client: for the emulator if one is set, else with credentials.

    Told not to ask for each bucket's metadata in threads of its own, which need another permission
    and retry for minutes.

    Raises:
        StorageError: no credentials.
    """
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    os.environ.setdefault(NO_METADATA, "true")
    if emulator_host():
        return storage.Client(project="emulator", credentials=AnonymousCredentials())
    return storage.Client(project="unused", credentials=_credentials())


def explained(error: Exception, what: str) -> StorageError:
    """An exception of google-cloud-storage, gcloud-aio-storage or aiohttp in one sentence.

    Raises:
        Exception: the error itself, if it is none that storage or the network can cause.
    """
    if isinstance(error, StorageError):
        return error
    requests_errors = sys.modules.get("requests.exceptions")
    google_errors = sys.modules.get("google.auth.exceptions")
    refused = (
        google_errors is not None
        and isinstance(error, google_errors.GoogleAuthError)
        and not isinstance(error, google_errors.TransportError)  # Google was not reached
    )
    status = retries.status_of(error)
    if status == 401 or refused:
        return StorageError(f"{what}: Google refused the credentials; {CREDENTIALS_ADVICE}.")
    if status == 403:
        return StorageError(f"{what}: access is denied (403) with the credentials in use.")
    if status == 404:
        return StorageError(f"{what}: there is no such bucket or object (404).")
    expected = (aiohttp.ClientError, asyncio.TimeoutError, OSError, retries.TransientError)
    if (
        status is not None
        or isinstance(error, expected)
        or (requests_errors is not None and isinstance(error, requests_errors.RequestException))
        or retries.is_transient(error)
    ):
        return StorageError(f"{what}: {retries.reason(error)}.")
    raise error


def attempt(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a blocking function of google-cloud-storage, told not to retry by itself, with ours.

    Raises:
        StorageError: what was attempted, why it failed, and what to do.
    """
    try:
        return retries.call_blocking(what, function, *args, **kwargs)
    except Exception as error:
        raise explained(error, what) from error


def crc32c_of_listing(text: str) -> int:
    """The checksum that the JSON API writes as base64 of four big-endian bytes."""
    return int.from_bytes(binascii.a2b_base64(text), "big")


def crc32c_of_bytes(data: bytes) -> int:
    """CRC-32C (Castagnoli) as an unsigned 32-bit integer."""
    return int(google_crc32c.value(data))


def crc32c_of_file(path: os.PathLike[str], start: int = 0, size: int | None = None) -> int:
    """CRC-32C of `size` bytes of a file from `start`, read in blocks."""
    checksum = 0
    with open(path, "rb") as file:
        file.seek(start)
        left = os.path.getsize(path) - start if size is None else size
        while left > 0 and (block := file.read(min(left, 1 << 22))):
            checksum = google_crc32c.extend(checksum, block)
            left -= len(block)
    return int(checksum)


def list_objects(client: storage.Client, path: GsPath) -> Iterator[list[ListedObject]]:
    """The objects under a directory, a page at a time, in no particular order.

    Raw pages are read, not Blob objects: a million names then take seconds.

    Raises:
        StorageError: no such bucket, no access, or storage cannot be reached.
    """
    what = f"Listing {printable(str(path))}"
    # Around each page's request: the iterator over pages ends with the first error it sees.
    pages = client.list_blobs(
        path.bucket,
        prefix=path.prefix,
        fields="items(name,size,crc32c,generation),nextPageToken",
        timeout=LIST_TIMEOUT,
        retry=functools.partial(functools.partial, retries.call_blocking, what),
    ).pages
    while True:
        try:
            page = next(pages, None)
        except Exception as error:
            raise explained(error, what) from error
        if page is None:
            return
        yield [_listed_object(item, what) for item in page.raw_page.get("items", ())]


def _listed_object(item: dict[str, str], what: str) -> ListedObject:
    try:
        return ListedObject(
            item["name"],
            int(item["size"]),
            crc32c_of_listing(item["crc32c"]),
            int(item["generation"]),
        )
    except (KeyError, ValueError) as error:
        name = printable(item.get("name", "an object without a name"))
        raise StorageError(
            f"{what}: {name} has no size, crc32c or generation; objects encrypted with keys of "
            "your own cannot be read here: copy them without."
        ) from error


def missing_write_permissions(client: storage.Client, bucket: str) -> list[str]:
    """Which of WRITE_PERMISSIONS the credentials lack on the bucket.

    Raises:
        StorageError: no such bucket, or storage cannot be reached.
    """
    granted = attempt(
        f"Checking write access to gs://{bucket}",
        client.bucket(bucket).test_iam_permissions,
        list(WRITE_PERMISSIONS),
        timeout=LIST_TIMEOUT,
        retry=None,
    )
    return [permission for permission in WRITE_PERMISSIONS if permission not in granted]


def api_address() -> str:
    """Where the JSON API is."""
    return emulator_host() or API_ADDRESS


def proxy_for(address: str) -> str | None:
    """The proxy that the environment names for an address, if any.

    aiohttp's trust_env would look into the environment and into .netrc for every request, which
    costs more than a small request itself.
    """
    url = urlsplit(address)
    if not url.hostname or urllib.request.proxy_bypass(url.netloc):
        return None
    return urllib.request.getproxies().get(url.scheme)


def public_address(bucket: str, name: str) -> str:
    """Where a browser finds the object without credentials."""
    return f"{emulator_host() or PUBLIC_ADDRESS}/{bucket}/{quote(name, safe='/')}"


def read_bytes(bucket: str, name: str) -> bytes:
    """One object, whole.

    Raises:
        StorageError: it is not there, no access, or storage cannot be reached.
    """
    what = f"Reading gs://{bucket}/{printable(name)}"
    blob = make_client().bucket(bucket).blob(name)
    data: bytes = attempt(what, blob.download_as_bytes, timeout=LIST_TIMEOUT, retry=None)
    return data


class _Token:
    """google-auth's credentials for gcloud-aio-storage: both libraries then know the same kinds."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        credentials = _credentials()
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


class SmallObjects:
    """Reads and writes many small objects at once; an async context manager.

    Every byte read is checked against the listing's size and crc32c, every byte written against
    what storage says it stored; what is transient is tried again (retries.py).
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections

    async def __aenter__(self) -> SmallObjects:
        from gcloud.aio.storage import Storage

        connector = aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=300)
        self._session = aiohttp.ClientSession(
            connector=connector, proxy=proxy_for(api_address()), auto_decompress=False
        )
        # Any: gcloud-aio's hints are those of its twin for requests, which share its source.
        session: Any = self._session
        token: Any = _Token()
        self._storage: Any = Storage(session=session, token=token, api_root=emulator_host())
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
            raise explained(error, what) from error
        return data

    async def _fetch_once(self, bucket: str, listed: ListedObject) -> bytes:
        # With this header storage sends gzip-compressed objects as they are stored, which is what
        # size and crc32c are of.
        data: bytes = await self._storage.download(
            bucket, listed.name, headers={"Accept-Encoding": "gzip"}, timeout=REQUEST_TIMEOUT
        )
        if len(data) != listed.size:
            raise DamagedContent(f"{len(data):,} bytes came, {listed.size:,} are listed")
        if crc32c_of_bytes(data) != listed.crc32c:
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
            raise explained(error, what) from error

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
            arrived = int(stored["size"]), crc32c_of_listing(stored["crc32c"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedContent("the answer does not say what was stored") from error
        if arrived != (len(data), crc32c_of_bytes(data)):
            raise DamagedContent("storage holds other bytes than were sent")

    async def public_status(self, bucket: str, name: str) -> int:
        """The HTTP status that a browser without credentials gets for the object."""
        what = f"Reading {public_address(bucket, name)} without credentials"
        try:
            status: int = await retries.call(what, self._public_status_once, bucket, name)
        except Exception as error:
            raise explained(error, what) from error
        return status

    async def _public_status_once(self, bucket: str, name: str) -> int:
        address = URL(public_address(bucket, name), encoded=True)  # else a/../b would become b
        async with self._session.get(
            address, headers={"Range": "bytes=0-0"}, timeout=REQUEST_TIMEOUT
        ) as response:
            if response.status in (408, 429) or response.status >= 500:
                response.raise_for_status()
            return response.status


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
