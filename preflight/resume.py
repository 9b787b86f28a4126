"""What a work directory holds of an earlier run: continue it, or start over."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from typing import TYPE_CHECKING

import click

import gcs
from common.findings import Findings
from common.terminal import printable
from dataset import arrays
from dataset.rows import State
from dataset.work_directory import WorkDirectory
from preflight.checks import SHOWN
from storage.bucket import Bucket

if TYPE_CHECKING:
    from preflight.plan import Plan

WAYS_OUT = (
    "start over with --restart, which deletes what the earlier run uploaded, or keep both with "
    "another --work_dir"
)


def check_same(
    findings: Findings, earlier: State, identity: dict[str, str], listing: State
) -> None:
    """That the earlier run in this work directory was the same ingest of the same objects."""
    where = earlier.directory
    for name, now in identity.items():
        before = earlier.option(name)
        if before not in (None, now):
            findings.add(
                f"{where} holds an ingest with another {name} ({printable(str(before))}, now "
                f"{printable(now)}): {WAYS_OUT}."
            )
    for what, objects in earlier.changes(listing.path).items():
        examples = "".join(f"\n      {printable(name)}" for name in objects[:SHOWN])
        findings.add(
            f"{len(objects):,} objects {what} in the bucket since the ingest in {where} began: "
            f"{WAYS_OUT}.{examples}"
        )
    counts = earlier.counts()
    if counts.done and not arrays.arrays_complete(where, counts.images):
        findings.add(
            f"The arrays of {counts.done:,} images that are done are missing or cut short in "
            f"{where}: {WAYS_OUT}."
        )


async def begin_or_continue(plan: Plan, work: WorkDirectory, *, retry_failed: bool) -> State:
    """The state to go on with: the earlier run's, or a new one from the listing."""
    if plan.earlier and not plan.start_over:
        return _continue(plan.earlier, plan.listing, retry_failed)
    if plan.earlier:
        await _delete_earlier(plan.earlier, plan.identity["bucket"])
    plan.listing.set_options({**plan.identity, "index_id": str(uuid.uuid4())})
    return work.adopt(plan.listing)


def _continue(earlier: State, listing: State, retry_failed: bool) -> State:
    replaced = earlier.take_replaced(listing.path)
    if retry_failed:
        earlier.retry_failed()
    counts = earlier.counts()
    click.echo(
        f"Continuing in {earlier.directory}: {counts.done:,} of {counts.images:,} images are done"
        + (f", {replaced:,} that failed were replaced." if replaced else "."),
        err=True,
    )
    return earlier


async def _delete_earlier(earlier: State, bucket: str) -> None:
    """Delete what an earlier run made, here and, unless it was registered, in the index bucket.

    It is marked first: were this interrupted, its rows would count as done without thumbnails.
    """
    earlier.mark_abandoned()
    if not earlier.is_registered:
        client = await asyncio.to_thread(gcs.make_client)
        with Bucket(client, earlier.option("bucket") or bucket) as calls:
            deleted = await calls.delete_index(earlier.index_id)
        click.echo(f"Deleted {deleted:,} objects of the earlier run.", err=True)
    for name in ("index", "aux"):
        shutil.rmtree(earlier.directory / name, ignore_errors=True)
