"""Google Cloud Storage: addresses, credentials, descriptions of objects, what its errors mean.

The requests are in storage/. Where STORAGE_EMULATOR_HOST names an emulator, they go there, without
credentials.
"""

from __future__ import annotations

import binascii
import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from common import retries
from common.addresses import address_in, proxy_for, shown_address
from common.errors import IngestError, StorageError, TransientError
from common.terminal import printable

EMULATOR = "STORAGE_EMULATOR_HOST"
API_ADDRESS = "https://www.googleapis.com"
PUBLIC_ADDRESS = "https://storage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
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
LISTED_FIELDS = "name,size,crc32c,generation"
NO_CRC32C = -1  # of an object that is encrypted with a customer's key
MAX_ERROR_BYTES = 10_000  # of an error's body that are read for its reason
XML_REASON = re.compile(r"<(?:Details|Message|title)>([^<]+)<")
# Found also in JSON that is cut off: the end of the string may be missing.
JSON_REASON = re.compile(r'"(?:message|error)"\s*:\s*"((?:[^"\\]|\\.)*)')


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


def public_address(bucket: str, name: str) -> str:
    """Where a browser finds the object without credentials."""
    return f"{emulator_host() or PUBLIC_ADDRESS}/{bucket}/{quote(name, safe='/')}"


@functools.cache
def credentials() -> tuple[Any, str | None]:
    """The user's Google credentials, of google-auth, and their project; found once per process.

    Raises:
        StorageError: none were found.
    """
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return google.auth.default(scopes=[SCOPE])
    except (DefaultCredentialsError, OSError) as error:  # such as a directory
        path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        what = f"No Google credentials are in {printable(path)}" if path else NO_CREDENTIALS
        raise StorageError(f"{what}: {CREDENTIALS_ADVICE}.") from error


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
