"""What a work directory holds of an earlier run: continue it, or start over."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from typing import TYPE_CHECKING

import click

import gcs
from common.findings import Findings
from common.names import GsPath, identifier
from common.network.activity import warn
from common.terminal import count, printable
from dataset import arrays
from dataset.arrays import Arrays
from dataset.lists import thumbnail_directory
from dataset.state.changes import Comparison
from dataset.state.rows import TRAIN, VAL, State
from dataset.work_directory import WorkDirectory
from engine.checkpoint import Recorder
from engine.loading import ModelLoader
from forager.addresses import shown_server
from forager.client import Forager
from preflight.earlier.changes import computed, reuse_option, what_restart_deletes
from preflight.earlier.relist import relist
from preflight.request import Request
from storage.bucket import Bucket
from storage.listing import listed
from weights.files import WeightsError

if TYPE_CHECKING:
    from preflight.plan import Plan


def finished(request: Request, state: State | None, loader: ModelLoader) -> str:
    """What a work directory holds, if this server has just what is requested; else "".

    Blocks: it reads the files of the weights, where all else is the same.
    """
    if state is None or not state.is_registered or request.restart or request.dry_run:
        return ""
    servers = state.servers()
    if servers and shown_server(request.server_url) not in servers:
        return ""
    if any(state.option(name) != value for name, value in request.identity().items()):
        return ""
    if not _same_weights(state, loader):
        return ""
    train, val, total = state.present(TRAIN), state.present(VAL), state.counts()
    failed = total.failed - (total.images - train - val)
    return (
        f"{request.name} was registered with {train:,} training and {val:,} validation images"
        + (f", of which {failed:,} failed" if failed else "")
        + f" (index {state.index_id})"
    )


def _same_weights(state: State, loader: ModelLoader) -> bool:
    """Whether the requested weights are those of a state, or cannot be read."""
    try:
        loader.find_clip()
        return loader.digests() == (state.option("resnet_weights"), state.option("clip_weights"))
    except (WeightsError, OSError):
        return True  # nothing is left to compute


def check_same(findings: Findings, earlier: State, identity: dict[str, str]) -> bool:
    """That the earlier run in this work directory was the same ingest, and its arrays are there.

    Returns whether it was the same.
    """
    where = earlier.directory
    ways_out = (
        f"start over with --restart, which deletes {what_restart_deletes(earlier)}; or keep both "
        "with another --work_dir"
    )
    differences = [name for name in identity if earlier.option(name) not in (None, identity[name])]
    for name in differences:
        before, now = printable(earlier.option(name) or ""), printable(identity[name])
        findings.add(
            f"{where} holds an ingest with another {name} ({before}, now {now}): {ways_out}."
        )
    counts = earlier.counts()
    if counts.done and not arrays.arrays_complete(where, counts.images):
        findings.add(
            f"The arrays of {count(counts.done, 'finished image')} are missing or cut short in "
            f"{where}: {ways_out}."
        )
    return not differences


async def settle_taken_name(
    findings: Findings,
    earlier: State,
    work: WorkDirectory,
    registered: str,
    *,
    delete: bool,
) -> None:
    """Another index has taken the name of an earlier run: say what that uploaded, or delete it.

    `registered` is the id of the index that the server has under the name. It may be that of the
    earlier run itself, if that ended before it recorded the answer: then nothing is deleted.
    """
    bucket, index_id = earlier.option("bucket"), earlier.index_id
    if index_id == registered:
        findings.add(
            f"This dataset is that of the earlier run in {work.path}: the same command without "
            "--restart finishes it. To start over, remove the dataset on the server first."
        )
    elif delete:
        await _delete_earlier(earlier, registered=False)
        work.forget_state()
        findings.add(f"The earlier run in {work.path} was deleted, here and in gs://{bucket}.")
    else:
        findings.add(
            f"What the earlier run in {work.path} uploaded is left in gs://{bucket}, under "
            f"indexes/{index_id}/, aux_labels/{index_id}/ and thumbnails/{index_id}/: the same "
            f"command with --restart deletes {what_restart_deletes(earlier)}. Another NAME with "
            f"{reuse_option(work.path)} and another --work_dir copies what is computed."
        )


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
        await _delete_earlier(plan.earlier, registered=registered)
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
    click.echo(
        f"Continuing in {earlier.directory}: {counts.done:,} of {counts.images:,} images are done"
        + (f". Replaced since then: {count(replaced, 'other image')}." if replaced else "."),
        err=True,
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
                recorder.failed(row, reason)

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
        click.echo(
            f"Deleted from {path}: {count(len(unused), 'thumbnail')} of images that are not in "
            "the list any more.",
            err=True,
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


async def _delete_earlier(earlier: State, *, registered: bool) -> None:
    """Delete what an earlier run made, here and, unless it was registered, in the index bucket.

    It is marked first: were this interrupted, its rows would count as done without thumbnails.
    """
    vectors = computed(earlier, earlier.counts().done)
    earlier.mark_abandoned()
    if not registered:
        client = await asyncio.to_thread(gcs.make_client)
        with Bucket(client, earlier.option("bucket") or "") as bucket:
            deleted = await bucket.delete_index(earlier.index_id)
        click.echo(
            f"Deleted {vectors}, with {count(deleted, 'object')} in gs://{bucket.name}.", err=True
        )
    for name in ("index", "aux"):
        shutil.rmtree(earlier.directory / name, ignore_errors=True)
