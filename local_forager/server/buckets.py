"""Reads buckets for the local Forager: object names and contents, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import gcs
from common.files import written_whole
from common.names import GsPath

if TYPE_CHECKING:
    from google.cloud import storage

READERS = 6  # concurrent requests; gcp-storage-emulator answers one at a time anyway

Result = TypeVar("Result")


class Buckets:
    """Reads buckets with up to READERS requests at a time; the first one makes the client.

    Every method raises StorageError, with status 404 if the bucket or object does not exist.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(READERS, thread_name_prefix="storage")
        self._client: storage.Client | None = None

    async def _call(self, function: Callable[[storage.Client], Result]) -> Result:
        def call() -> Result:
            if self._client is None:
                self._client = gcs.make_client(anonymous_allowed=True)
            return function(self._client)

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def sizes(self, path: str) -> dict[str, int]:
        """The size in bytes of all objects under a gs:// path, a plain prefix, in name order."""
        bucket, _, prefix = path.removeprefix("gs://").partition("/")

        def listing(client: storage.Client) -> dict[str, int]:
            pages = gcs.list_pages(client, GsPath(bucket, prefix), "name,size")
            return {item["name"]: int(item.get("size", 0)) for page in pages for item in page}

        return await self._call(listing)

    async def read(self, bucket: str, name: str) -> bytes:
        """The content of one object."""
        return await self._call(lambda client: gcs.read_bytes(bucket, name, client))

    async def download(self, bucket: str, name: str, path: Path) -> None:
        """Write one object to path. The file appears there only once it is complete."""

        def fetch(client: storage.Client) -> None:
            download = client.bucket(bucket).blob(name).download_to_filename
            what = f"Reading gs://{bucket}/{name}"
            with written_whole(path) as partial:
                gcs.call(what, download, str(partial), timeout=gcs.TIMEOUT, retry=None)

        path.parent.mkdir(parents=True, exist_ok=True)
        await self._call(fetch)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
