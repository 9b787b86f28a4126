"""The state to go on with: an earlier run's, its rows under a newer list, or a new one."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import gcs
from common.names import GsPath, identifier
from common.network.activity import warn
from common.terminal import count, say
from dataset import arrays
from dataset.arrays import Arrays
from dataset.lists import thumbnail_directory
from dataset.state.changes import Comparison
from dataset.state.rows import State
from dataset.work_directory import WorkDirectory
from engine.checkpoint import Recorder
from engine.decode import NotEmbedded
from forager.client import Forager
from preflight.earlier.found import delete_earlier
from preflight.earlier.relist import relist
from preflight.plan import Plan
from storage.bucket import Bucket
from storage.listing import listed


async def begin_or_continue(
    plan: Plan, work: WorkDirectory, server_url: str, *, retry_failed: bool
) -> State:
    """The state to go on with: the earlier run's, or a new one from the listing."""
    if plan.earlier and plan.relist:
        state = await relist(plan.earlier, plan.listing, work)
        await _check_thumbnails(state)
        return state
    if plan.earlier and not plan.start_over:
        return await _continue(plan.earlier, plan.listing, retry_failed, plan.as_listed)
    if plan.earlier:
        registered = await _is_registered(plan.earlier, server_url)
        await delete_earlier(plan.earlier, registered=registered)
    plan.listing.set_options({**plan.identity, "index_id": str(uuid.uuid4())})
    return work.adopt(plan.listing)


async def _continue(earlier: State, listing: State, retry_failed: bool, as_listed: bool) -> State:
    earlier.retry_given_up()
    replaced = earlier.take_replaced(listing.path, other_bytes=not as_listed)
    # The arrays may be gone if no row is done: check_same refuses it otherwise.
    if retry_failed or not arrays.arrays_complete(earlier.directory, earlier.counts().images):
        earlier.retry_failed()
    counts = earlier.counts()
    if counts.done or counts.failed:
        await asyncio.to_thread(reopen_damaged, earlier)
    if as_listed:
        await _give_up_unlisted(earlier, listing)
    await _check_thumbnails(earlier)
    counts = earlier.counts()
    say(
        f"Continuing in {earlier.directory}: {counts.done:,} of {counts.images:,} images are done"
        + (f". Replaced since then: {count(replaced, 'other image')}." if replaced else "."),
    )
    return earlier


async def _give_up_unlisted(state: State, listing: State) -> None:
    """Make failed rows, which hold zeros, of the images that vanished or changed."""

    def compare() -> dict[int, str]:
        with Comparison(state.path, listing.path) as compared:
            return dict(compared.unlisted())

    unlisted = await asyncio.to_thread(compare)
    if not unlisted:
        return
    state.reopen(unlisted)

    async def fail() -> None:
        for row in state.pending():
            if reason := unlisted.get(row.row):
                recorder.record(row, NotEmbedded(reason))

    with Arrays(state.directory, state.counts().images) as opened:
        recorder = Recorder(state, opened)
        await recorder.during(fail())
    warn(
        f"{count(len(unlisted), 'image')} vanished or changed since the images were listed, and "
        "are failed rows now."
    )


def reopen_damaged(state: State) -> dict[str, int]:
    """Make the rows pending again whose vectors on the disk are not those that were written.

    Returns the crc32c of each array by name.
    """
    images = state.counts().images
    with contextlib.closing(state.vector_checksums()) as checksums:
        found = arrays.verify_arrays(state.directory, images, checksums)
    if found.damaged:
        state.reopen(found.damaged)
        warn(
            f"The vectors of {count(len(found.damaged), 'image')} in {state.directory} are damaged "
            "and are computed again. Check the disk."
        )
    return found.checksums


async def _check_thumbnails(state: State) -> None:
    """Make the rows pending again whose thumbnails are gone, and delete those of no image."""
    path = GsPath(state.option("bucket") or "", thumbnail_directory(state.index_id))
    unused = await asyncio.to_thread(_reopen_without_thumbnail, state, path)
    if unused:
        client = await asyncio.to_thread(gcs.make_client)
        with Bucket(client, path.bucket) as bucket:
            await bucket.delete(f"{path.prefix}{name}.jpg" for name in unused)
        say(
            f"Deleted from {path}: {count(len(unused), 'thumbnail')} of images that are not in "
            "the list any more.",
        )


def _reopen_without_thumbnail(state: State, path: GsPath) -> list[str]:
    """Make the rows pending again whose thumbnails are gone; returns the thumbnails of no image."""
    pages = ((identifier(o.name) for o in page) for page in listed(path))
    missing, unused = state.compare_thumbnails(pages)
    if missing:
        state.reopen(missing)
        warn(
            f"Missing in {path}: {count(len(missing), 'thumbnail')}. These images are embedded "
            "again."
        )
    return unused


async def _is_registered(earlier: State, server_url: str) -> bool:
    """Whether the server was told of the index of an earlier run.

    That run may have ended between the registration and the record of it.
    """
    if earlier.is_registered:
        return True
    async with Forager(server_url) as forager:
        found = await forager.dataset(earlier.option("dataset") or "")
    return found is not None and found.index_id == earlier.index_id
