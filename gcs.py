"""Google Cloud Storage: credentials, listing, access, addresses and errors.

Two libraries share the work. google-cloud-storage lists, checks access and moves the few large
objects (resumable, checksummed; storage/uploads.py). gcloud-aio-storage moves the millions of small
ones (storage/async_client.py). Both honour STORAGE_EMULATOR_HOST, and need no credentials then.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import aiohttp
import click
import google_crc32c

from common import retries
from common.names import GsPath
from common.terminal import printable

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
LIST_TIMEOUT = (15, 120)  # seconds: connect, read


class StorageError(click.ClickException):
    """Storage did not do what was asked; the message names the object and the reason."""


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
