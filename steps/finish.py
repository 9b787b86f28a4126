"""Complete and verify the index, upload it, and register the dataset."""

from __future__ import annotations

import asyncio
import contextlib
import time

import gcs
from common.errors import IngestError, ServerError
from common.names import GsPath, identifier
from common.terminal import count, duration, say, size, warn
from dataset.arrays import put_in_order, verify_arrays
from dataset.listing import Listing
from dataset.lists import index_files, thumbnail_directory, write_lists
from dataset.state import State
from forager.client import DatasetInfo, Forager
from preflight.checks import list_images
from preflight.describe import list_changes
from report.run import StepName
from steps.embed import Run, copy_computed, embed, refuse_failures
from storage.async_client import AsyncStorage
from storage.listing import WORKERS, listed
from storage.uploads import upload_files

PASSES = 3  # over vectors that are damaged and thumbnails that are missing


async def complete(run: Run) -> dict[str, int]:
    """Copy and embed until every image is done or failed, and all of it is as it was written.

    Returns the crc32c of each array by name.

    Raises:
        ImagesChanged: images were replaced or deleted meanwhile; everything else is done.
        IngestError: what stopped it.
    """
    state = run.state
    for _ in range(PASSES):
        await copy_computed(run)
        if state.has_pending():
            await embed(run)
        refuse_failures(run)
        with run.report.step(StepName.VERIFICATION):
            checksums = await verify(state)
        if not state.has_pending():
            return checksums
    raise IngestError(
        "Nothing was registered: vectors or thumbnails that were just written are damaged again. "
        f"Check the disk of {state.directory}, then run the same command again."
    )


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
    path = GsPath(state.bucket, thumbnail_directory(state.index_id))
    pages = ((identifier(o.name) for o in page) for page in listed(path))
    missing, unused = await asyncio.to_thread(state.compare_thumbnails, pages)
    if missing:
        state.reopen(missing)
        warn(
            f"Missing in {path}: {count(len(missing), 'thumbnail')}. These images are embedded "
            "again."
        )
    if unused:
        async with AsyncStorage(WORKERS) as objects:
            held = await objects.delete(path.bucket, (f"{path.prefix}{n}.jpg" for n in unused))
        if held:
            warn(
                f"{held[0]} {count(len(held), 'thumbnail')} of images that are not listed cannot "
                f"be deleted from {path}. They are not used: delete them when the bucket allows it."
            )
        else:
            thumbnails = count(len(unused), "thumbnail")
            say(f"Deleted from {path}: {thumbnails} of images that are not listed.")


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


async def upload(run: Run, checksums: dict[str, int]) -> None:
    """Upload the index and verify every object of it; `checksums` are those of the arrays.

    Raises:
        StorageError: an object cannot be written.
    """
    start, state, bucket = time.monotonic(), run.state, run.request.target.bucket
    await asyncio.to_thread(write_lists, state, state.directory)
    client = await asyncio.to_thread(gcs.make_client)
    files = index_files(state.directory, state.index_id, checksums)
    volume = await upload_files(client, bucket, files)
    say(
        f"Uploaded the index to gs://{bucket}/indexes/{state.index_id}/ and verified it: "
        f"{size(volume)} in {duration(time.monotonic() - start)}."
    )


async def register(run: Run) -> Listing | None:
    """Create the dataset and read its counts back, unless the bucket has changed.

    The server lists the bucket itself, at some time between the two listings here. Returns the
    newer listing if that has other images than the index; then nothing is registered.

    Raises:
        IngestError: the bucket changed meanwhile, or the server did not register the dataset.
    """
    start, target, state = time.monotonic(), run.request.target, run.state
    counts = state.counts()
    train, val = counts.training, counts.validation
    wanted = DatasetInfo(state.index_id, train, val)

    async def list_again() -> Listing:
        return await asyncio.to_thread(list_images, target.paths, run.work)

    async with Forager(target.server_url) as forager:
        # Without this question, a lost answer to an earlier run would lead to a second dataset.
        try:
            found = await forager.dataset(target.name)
        except ServerError as error:
            raise ServerError(
                f"{error.message} All that is computed and uploaded is kept: the same command then "
                "goes on with the registration."
            ) from error
        if found != wanted:
            listing = await list_again()
            if await asyncio.to_thread(state.changes, listing.path):
                return listing
            train_path, val_path = map(str, target.paths)
            await forager.create_dataset(target.name, train_path, val_path, wanted)
    listing = await list_again()
    changes = list_changes(await asyncio.to_thread(state.changes, listing.path))
    # Only now: a run that was killed before this compares again.
    state.mark_registered(forager.shown, viewer_url=forager.viewer_url, outdated=changes or None)
    if changes:
        raise IngestError(outdated(target.name, changes))
    say(
        f"Registered {target.name} with {train:,} training and {val:,} validation images in "
        f"{duration(time.monotonic() - start)}."
    )
    return None


def outdated(name: str, changes: str) -> str:
    """What to do about a dataset whose images changed while the server listed them."""
    return (
        f"{name} is registered, but the images in the bucket changed while the server listed "
        f"them, so it may show images that the index does not have.{changes}\nRemove the "
        f"dataset on the server, or ingest the images under another name with --reuse {name}, "
        "which copies what is computed."
    )
