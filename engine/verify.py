"""Before an index is uploaded: every vector is as it was written, and every thumbnail is there."""

from __future__ import annotations

import asyncio
import contextlib

from common.names import GsPath, identifier
from common.terminal import count, say, warn
from dataset.arrays import put_in_order, verify_arrays
from dataset.lists import thumbnail_directory
from dataset.state import State
from storage.async_client import AsyncStorage
from storage.listing import WORKERS, listed


async def verify(state: State) -> dict[str, int]:
    """Put the arrays in row order, and make images pending again that lack a vector or thumbnail.

    Thumbnails of no image are deleted. Returns the crc32c of each array by name; it is of use only
    if no image is pending.

    Raises:
        StorageError: storage refuses or cannot be reached.
        DiskError: not enough space.
    """
    await _check_thumbnails(state)
    if state.has_pending():
        return {}
    await asyncio.to_thread(put_in_order, state)
    return await asyncio.to_thread(_check_vectors, state)


async def _check_thumbnails(state: State) -> None:
    path = GsPath(state.option("bucket") or "", thumbnail_directory(state.index_id))
    missing, unused = await asyncio.to_thread(_compare_thumbnails, state, path)
    if missing:
        state.reopen(missing)
        warn(
            f"Missing in {path}: {count(len(missing), 'thumbnail')}. These images are embedded "
            "again."
        )
    if unused:
        async with AsyncStorage(WORKERS) as objects:
            names = (f"{path.prefix}{name}.jpg" for name in unused)
            await asyncio.gather(*(objects.delete(path.bucket, name) for name in names))
        thumbnails = count(len(unused), "thumbnail")
        say(f"Deleted from {path}: {thumbnails} of images that are not listed.")


def _compare_thumbnails(state: State, path: GsPath) -> tuple[list[int], list[str]]:
    pages = ((identifier(o.name) for o in page) for page in listed(path))
    return state.compare_thumbnails(pages)


def _check_vectors(state: State) -> dict[str, int]:
    with contextlib.closing(state.vector_checksums()) as checksums:
        found = verify_arrays(state.directory, state.counts().images, checksums)
    if found.damaged:
        state.reopen(found.damaged)
        warn(
            f"The vectors of {count(len(found.damaged), 'image')} in {state.directory} are damaged "
            "and are computed again. Check the disk."
        )
    return found.checksums
