"""Reads buckets for the local Forager: object names and contents."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import gcs
from common.errors import StorageError
from common.files import written_whole
from common.names import GsPath
from common.terminal import printable
from storage.async_client import AsyncStorage
from storage.listing import list_directory

READERS = 6  # concurrent requests; gcp-storage-emulator answers one at a time anyway
MISSING = 404  # HTTP status


class Buckets:
    """Reads buckets with up to READERS requests at a time; see `aclose`.

    Every method raises StorageError, with status 404 if the bucket or object does not exist.
    """

    def __init__(self) -> None:
        self._opened = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._objects: AsyncStorage | None = None  # until the first request

    async def _storage(self) -> AsyncStorage:
        async with self._opening:
            if self._objects is None:
                objects = AsyncStorage(READERS, anonymous_allowed=True)
                self._objects = await self._opened.enter_async_context(objects)
        return self._objects

    async def sizes(self, path: str) -> dict[str, int]:
        """The size in bytes of all objects under a gs:// path, a plain prefix, in name order."""
        bucket, _, prefix = path.removeprefix("gs://").partition("/")
        pages = list_directory(await self._storage(), GsPath(bucket, prefix), workers=READERS)
        return dict(sorted([(o.name, o.size) async for page in pages for o in page]))

    async def read(self, bucket: str, name: str) -> bytes:
        """The content of one object."""
        return await (await self._storage()).read(bucket, name)

    async def download(self, bucket: str, name: str, path: Path) -> None:
        """Write one object to path. The file appears there only once it is complete."""
        objects, shown = await self._storage(), f"gs://{bucket}/{printable(name)}"
        found = await objects.find(bucket, name)
        if found is None:
            raise gcs.storage_error(f"Reading {shown}", gcs.Refused("", MISSING))
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            try:
                await objects.download(bucket, found, partial)
            except ValueError as error:
                raise StorageError(f"{shown} {error}.") from error

    async def aclose(self) -> None:
        await self._opened.aclose()
