"""One bucket through google-cloud-storage, each blocking call in a thread, with retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import gcs
from common.errors import StorageError
from common.names import GsPath, checked_index_id
from common.terminal import printable
from storage.async_client import AsyncStorage
from storage.listing import WORKERS, list_directory

if TYPE_CHECKING:
    from google.cloud import storage

CALLS_AT_ONCE = 32
INDEX_DIRECTORIES = ("indexes", "aux_labels", "thumbnails")  # each has one directory per index

P = ParamSpec("P")
T = TypeVar("T")


class Bucket:
    """Calls on one bucket, in threads of its own; a context manager.

    asyncio's own threads are a few more than the cores; these only wait for the network.
    """

    def __init__(self, client: storage.Client, name: str) -> None:
        self.name = name
        self.handle = client.bucket(name)
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "storage")

    def __enter__(self) -> Bucket:
        return self

    def __exit__(self, *_: object) -> None:
        # After Ctrl-C a thread may still wait for a lost network: the process does not.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(
        self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`gcs.call` in a thread. Raises StorageError."""
        call = partial(gcs.call, what, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def holds(self, name: str, size: int, checksum: int) -> bool:
        """Whether the bucket has this object, of this size and crc32c."""
        what = f"Looking for {self.address(name)}"
        blob = await self.call(what, self.handle.get_blob, name, timeout=gcs.TIMEOUT, retry=None)
        if blob is None or blob.size != size or blob.crc32c is None:
            return False
        return gcs.crc32c_of_listing(blob.crc32c) == checksum

    async def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is gone already is no error."""

        async def delete(name: str) -> None:
            what = f"Deleting {self.address(name)}"
            try:
                await self.call(
                    what, self.handle.delete_blob, name, timeout=gcs.TIMEOUT, retry=None
                )
            except StorageError as error:
                if error.status != 404:
                    raise

        await asyncio.gather(*map(delete, names))

    async def delete_index(self, index_id: str) -> int:
        """Delete everything that an abandoned ingest uploaded; returns the number of objects.

        Raises:
            ValueError: the id is no index id.
        """
        checked_index_id(index_id)
        deleted = 0
        async with AsyncStorage(WORKERS) as objects:
            for directory in INDEX_DIRECTORIES:
                path = GsPath(self.name, f"{directory}/{index_id}/")
                async for page in list_directory(objects, path):
                    await self.delete(listed.name for listed in page)
                    deleted += len(page)
        return deleted

    def address(self, name: str) -> str:
        """The object as messages name it."""
        return f"gs://{self.name}/{printable(name)}"
