"""The buckets, seen from the local Forager: list names and read objects, in threads."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from google.api_core.exceptions import GoogleAPIError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, TransportError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import RequestException

READERS = (
    6  # requests to storage at a time; gcp-storage-emulator answers one after the other anyway
)
TIMEOUT = 30  # seconds, for connecting and for each read
RETRY = DEFAULT_RETRY.with_timeout(20)  # seconds until the last try begins
STORAGE_ERRORS = (
    GoogleAPIError,
    RequestException,
    TransportError,
    DataCorruption,
    InvalidResponse,
)

Result = TypeVar("Result")


def storage_client() -> storage.Client:
    """For the emulator where STORAGE_EMULATOR_HOST is set, else with the credentials at hand."""
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="demo", credentials=AnonymousCredentials())
    try:
        return storage.Client()
    except (DefaultCredentialsError, OSError):
        return storage.Client.create_anonymous_client()


class Buckets:
    """Reads buckets with at most READERS requests at a time; the client is made at the first."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(READERS, thread_name_prefix="storage")
        self._client: storage.Client | None = None

    async def _call(self, function: Callable[[storage.Client], Result]) -> Result:
        def call() -> Result:
            if self._client is None:
                self._client = storage_client()
            return function(self._client)

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def names(self, bucket: str, prefix: str) -> list[str]:
        """Names of all objects that start with prefix, as plain text, in the bucket's order."""

        def listing(client: storage.Client) -> list[str]:
            blobs = client.list_blobs(
                bucket,
                prefix=prefix,
                fields="items(name),nextPageToken",
                timeout=TIMEOUT,
                retry=RETRY,
            )
            return [blob.name for blob in blobs]

        return await self._call(listing)

    async def read(self, bucket: str, name: str) -> bytes:
        """The bytes of one object; google.api_core's NotFound where it is absent."""
        return await self._call(
            lambda client: (
                client.bucket(bucket).blob(name).download_as_bytes(timeout=TIMEOUT, retry=RETRY)
            )
        )

    async def download(self, bucket: str, name: str, path: Path) -> None:
        """Write one object to path, under a temporary name first: a file there is always whole."""

        def fetch(client: storage.Client) -> None:
            partial = path.with_name(path.name + ".part")
            client.bucket(bucket).blob(name).download_to_filename(
                str(partial), timeout=TIMEOUT, retry=RETRY
            )
            os.replace(partial, path)

        path.parent.mkdir(parents=True, exist_ok=True)
        await self._call(fetch)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
