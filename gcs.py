"""Google Cloud Storage: addresses, credentials, listing, access, and what its errors mean.

Two libraries share the work. google-cloud-storage lists, checks access and moves the few large
objects (here and in storage/uploads.py); aiohttp moves the millions of small ones
(storage/async_client.py). Both use the emulator that STORAGE_EMULATOR_HOST names, without
credentials. google-cloud-storage is imported when the first client is made, which `--help` never
does.
"""

from __future__ import annotations

import binascii
import contextlib
import difflib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import quote

from common import retries
from common.addresses import address_in, proxy_for, shown_address
from common.errors import IngestError, StorageError, TransientError
from common.names import GsPath
from common.terminal import first_of, printable

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
REQUESTER_PAYS = (
    "the bucket is requester pays. Forager cannot use such a bucket: its web page and index server "
    "read it without a project to bill. Turn that off with `gcloud storage buckets update "
    "gs://BUCKET --no-requester-pays`, or use another bucket."
)
TIMEOUT = (15, 120)  # seconds: connect, read
LISTED_FIELDS = "name,size,crc32c,generation"
NO_CRC32C = -1  # of an object that is encrypted with a customer's key
MAX_BUCKETS, SHOWN_BUCKETS = 1000, 5  # of a project
MAX_ERROR_BYTES = 10_000  # of an error's body that are read for its reason
XML_REASON = re.compile(r"<(?:Details|Message|title)>([^<]+)<")
# Found also in JSON that is cut off: the end of the string may be missing.
JSON_REASON = re.compile(r'"(?:message|error)"\s*:\s*"((?:[^"\\]|\\.)*)')

P = ParamSpec("P")
T = TypeVar("T")


class Refused(Exception):
    """Storage refused a request; another try would not help. The message is storage's reason."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status

    @property
    def is_requester_pays(self) -> bool:
        """Whether the bucket's readers are to pay, and no project was named that does."""
        return self.status == 400 and "requester pays" in str(self).lower().replace("-", " ")


class DamagedContent(TransientError):
    """Other bytes arrived than were listed or sent."""


class ListedObject(NamedTuple):
    """One object as the listing shows it; crc32c as an unsigned 32-bit integer, or NO_CRC32C."""

    name: str
    size: int
    crc32c: int
    generation: int

    @property
    def content(self) -> tuple[int, int]:
        """What tells whether two objects have the same bytes: size and crc32c."""
        return self.size, self.crc32c


@contextlib.contextmanager
def _environment_errors() -> Iterator[None]:
    """Raise what is wrong with the environment as StorageError: callers of this module know it."""
    try:
        yield
    except IngestError as error:
        raise StorageError(error.message) from error


def emulator_host() -> str | None:
    """The address of the storage emulator, with its http://, or None for the real service.

    Raises:
        StorageError: STORAGE_EMULATOR_HOST is not an address.
    """
    text = os.environ.get(EMULATOR)
    with _environment_errors():
        return address_in(EMULATOR, text, "to use Google Cloud Storage") if text else None


def proxy() -> str | None:
    """The proxy that the environment names for the JSON API, or None.

    Raises:
        StorageError: it is not an address.
    """
    with _environment_errors():
        return proxy_for(api_address())


def api_address() -> str:
    """Where the JSON API is."""
    return emulator_host() or API_ADDRESS


def batch_address() -> str:
    """Where the JSON API takes several calls in one request."""
    return emulator_host() or PUBLIC_ADDRESS


def public_address(bucket: str, name: str) -> str:
    """Where a browser finds the object without credentials."""
    return f"{emulator_host() or PUBLIC_ADDRESS}/{bucket}/{quote(name, safe='/')}"


@functools.cache
def credentials() -> Any:
    """The user's Google credentials, of google-auth; found once per process.

    Raises:
        StorageError: none were found.
    """
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        found, _ = google.auth.default(scopes=[SCOPE])
    except (DefaultCredentialsError, OSError) as error:  # such as a directory
        path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        what = f"No Google credentials are in {printable(path)}" if path else NO_CREDENTIALS
        raise StorageError(f"{what}: {CREDENTIALS_ADVICE}.") from error
    return found


def make_client(*, anonymous_allowed: bool = False) -> storage.Client:
    """A google-cloud-storage client: for the emulator if one is set, else with credentials.

    With `anonymous_allowed`, a client without credentials where none are found: it reads public
    buckets. Background requests for each bucket's metadata are disabled: they need another
    permission and retry for minutes.

    Raises:
        StorageError: no credentials, or the emulator or the proxy is not an address.
    """
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    proxy()  # requests would say only that the connection was closed
    os.environ.setdefault(NO_METADATA, "true")
    if emulator := emulator_host():
        return storage.Client(
            project="emulator",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": emulator},
        )
    try:
        found = credentials()
    except StorageError:
        if not anonymous_allowed:
            raise
        found = AnonymousCredentials()
    return storage.Client(project="unused", credentials=found)


def failed_answer(status: int, body: bytes, retry_after: str | None = None) -> Exception:
    """An answer of storage with an error status, as TransientError or Refused."""
    reason = reason_in(body)
    if status == 400 and "crc32c" in reason.lower():
        return DamagedContent("storage received other bytes than were sent")
    if status in retries.TRANSIENT_STATUSES:
        text = f"HTTP {status} ({reason})" if reason else f"HTTP {status}"
        return TransientError(text, status, retry_after)
    return Refused(reason, status)


def reason_in(body: bytes) -> str:
    """The reason in an error's body (JSON, XML, or a line of text), printable; "" if none."""
    text = body[:MAX_ERROR_BYTES].decode(errors="replace").strip()
    if text.startswith("<"):
        found = XML_REASON.findall(text)
        text = found[-1] if found else ""
    while "{" in text and (message := JSON_REASON.search(text)):  # JSON in a message of JSON
        text = message[1]
        with contextlib.suppress(ValueError):  # it may be cut within an escaped character
            text = json.loads(f'"{text}"', strict=False)
    if text.lstrip().startswith(("{", "[")):
        text = ""
    return printable(" ".join(text.split()), 300).rstrip(". ")


def storage_error(what: str, error: TransientError | Refused) -> StorageError:
    """The sentence for the user, with the next step where there is one."""
    reason = str(error).rstrip(". ")
    if error.status == 401:
        message = f"{what}: Google refused the credentials; {CREDENTIALS_ADVICE}."
    elif error.status == 403:
        detail = f": {reason}" if reason else " with the credentials in use"
        message = f"{what}: access is denied (403){detail}."
    elif isinstance(error, Refused) and error.is_requester_pays:
        message = f"{what}: {REQUESTER_PAYS}"
    elif error.status == 404:
        message = f"{what}: there is no such bucket or object (404)."
    elif isinstance(error, Refused) and error.status:
        detail = f" ({reason})" if reason else ""
        message = f"{what}: HTTP {error.status}{detail}."
    else:
        message = f"{what}: {printable(reason, 300)}. {_again(error)}"
    return StorageError(message, error.status)


def _again(error: TransientError | Refused) -> str:
    """What helps after a failure that may pass, or that has nothing to do with storage."""
    if error.status:
        return "Run the same command again later."
    if host := os.environ.get(EMULATOR):
        return (
            f"Is the emulator running that {EMULATOR}={shown_address(host)} names? Unset it to use "
            "Google Cloud Storage."
        )
    return "Check the network of this machine, then run the same command again."


def translated(error: Exception) -> Exception:
    """What google-cloud-storage, google-auth or requests raised, as TransientError or Refused.

    Other exceptions come back as they are.
    """
    import requests
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    if isinstance(error, GoogleAPICallError | InvalidResponse) and error.response is not None:
        answer = error.response
        if answer.status_code < 400:
            status = answer.status_code
            return TransientError(f"HTTP {status} with an unusable answer", status)
        retry_after = answer.headers.get("Retry-After")
        return failed_answer(answer.status_code, answer.content, retry_after)
    if isinstance(error, DataCorruption):
        return DamagedContent("other bytes arrived than storage sent")
    if isinstance(error, requests.exceptions.SSLError):
        return Refused(_connection_reason(error))
    if isinstance(error, requests.exceptions.InvalidJSONError):
        return TransientError("the answer is not JSON")
    if isinstance(error, auth.TransportError):
        return TransientError(f"Google's token server: {_connection_reason(error)}")
    if isinstance(error, auth.GoogleAuthError):
        return TransientError(str(error)) if error.retryable else Refused(str(error), 401)
    if isinstance(error, requests.RequestException | ConnectionError | TimeoutError):
        return TransientError(_connection_reason(error))
    return error


def _connection_reason(error: Exception) -> str:
    return retries.connection_reason(error) or retries.CLOSED


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise errors of Google's libraries within a `with` block as TransientError or Refused."""
    try:
        yield
    except Exception as error:
        if (ours := translated(error)) is error:
            raise
        raise ours from error


def call(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function of google-cloud-storage with our retries; its own must be off.

    Raises:
        StorageError: `what` failed, why, and what to do.
    """

    def once() -> T:
        with translated_errors():
            return function(*args, **kwargs)

    try:
        return retries.from_environment().call_blocking(what, once)
    except (TransientError, Refused) as error:
        raise storage_error(what, error) from error


def buckets_like(bucket: str) -> str:
    """A sentence: which buckets the project of the credentials has, or how to look.

    Those of similar names come first.
    """
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    project = "emulator" if emulator_host() else None
    with contextlib.suppress(DefaultCredentialsError, OSError):
        project = project or google.auth.default(scopes=[SCOPE])[1]

    def names() -> list[str]:
        client = make_client()
        found = client.list_buckets(MAX_BUCKETS, project=project, timeout=TIMEOUT, retry=None)
        return [found.name for found in found]

    try:
        found = call("Listing the buckets", names) if project else []
    except StorageError:  # credentials for objects alone may not list buckets
        found = []
    if not found:
        return "`gcloud storage ls` lists the buckets of your project."
    nearest_first = difflib.get_close_matches(bucket, found, len(found), cutoff=0)
    return f"Your project has {first_of(nearest_first, SHOWN_BUCKETS)}."


def directories_beside(client: storage.Client, path: GsPath) -> list[str]:
    """The directories that have the same parent as this one, each as gs://...; up to 1,000.

    Raises:
        StorageError: no such bucket, no access, or storage cannot be reached.
    """
    parent = path.prefix.rstrip("/").rpartition("/")[0]
    prefix = f"{parent}/" if parent else ""

    def first_page() -> list[str]:
        iterator = client.list_blobs(
            path.bucket, prefix=prefix, delimiter="/", max_results=1000, timeout=TIMEOUT, retry=None
        )
        for _ in iterator.pages:
            break
        return sorted(iterator.prefixes)

    found = call(f"Listing gs://{path.bucket}/{printable(prefix)}", first_page)
    return [f"gs://{path.bucket}/{name}" for name in found if name != path.prefix]


def list_pages(client: storage.Client, path: GsPath, fields: str) -> Iterator[list[dict[str, str]]]:
    """The given fields (such as "name,size") of the objects whose names begin with the prefix.

    Raw pages are read, not Blob objects: a million names then take seconds.

    Raises:
        StorageError: no such bucket, no access, or storage cannot be reached.
    """
    what = f"Listing {printable(str(path))}"
    pages = client.list_blobs(
        path.bucket,
        prefix=path.prefix,
        fields=f"items({fields}),nextPageToken",
        timeout=TIMEOUT,
        # Around each page's request: the iterator over pages ends with the first error it sees.
        retry=lambda request: functools.partial(call, what, request),
    ).pages
    for page in pages:
        yield page.raw_page.get("items", [])


def listed_object(item: Any) -> ListedObject:
    """An object as the JSON API describes it. Without "size" it is empty, as Google documents.

    Raises:
        TransientError: it is no such description.
    """
    try:
        crc32c = NO_CRC32C
        if "crc32c" in item:  # base64 of four big-endian bytes
            crc32c = int.from_bytes(binascii.a2b_base64(item["crc32c"]), "big")
        return ListedObject(
            item["name"], int(item.get("size", 0)), crc32c, int(item.get("generation", 0))
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TransientError("the answer does not describe an object") from error


def missing_write_permissions(client: storage.Client, bucket: str) -> list[str]:
    """Which of WRITE_PERMISSIONS the credentials lack on the bucket.

    Raises:
        StorageError: no such bucket, or storage cannot be reached.
    """
    granted = call(
        f"Checking write access to gs://{bucket}",
        client.bucket(bucket).test_iam_permissions,
        list(WRITE_PERMISSIONS),
        timeout=TIMEOUT,
        retry=None,
    )
    return [permission for permission in WRITE_PERMISSIONS if permission not in granted]


def read_bytes(bucket: str, name: str, client: storage.Client | None = None) -> bytes:
    """One object, whole.

    Raises:
        StorageError: it is not there (status 404), no access, or storage cannot be reached.
    """
    what = f"Reading gs://{bucket}/{printable(name)}"
    blob = (client or make_client()).bucket(bucket).blob(name)
    data: bytes = call(what, blob.download_as_bytes, timeout=TIMEOUT, retry=None)
    return data
