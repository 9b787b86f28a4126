"""Every check at once, what they found, and the state to go on with."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path

from common.errors import Findings
from common.names import GsPath
from common.terminal import say, size, warn
from dataset.arrays import arrays_complete, put_in_order
from dataset.images import Changes
from dataset.listing import Listing, Split
from dataset.state import State
from dataset.work_directory import WorkDirectory
from engine.loading import ModelLoader
from preflight import checks
from preflight.describe import describe_changes, describe_skipped
from preflight.earlier import (
    check_left_out,
    check_registered,
    check_same,
    delete_earlier,
    has_index_of,
    settle_taken_name,
)
from preflight.renames import write_renames
from preflight.request import Mode, Request, Target, Workers, identity_of
from preflight.sources import Reuse, accepted_precisions, find_sources


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the checks found: all that an ingest needs to know."""

    listing: Listing
    earlier: State | None  # of a run in the same work directory
    start_over: bool  # instead of continuing it
    changes: Changes | None  # in the bucket, if it is continued
    identity: dict[str, str]  # what the numbers and the index depend on
    precision: str  # to load the models in
    reuse: Reuse | None  # what --reuse names


async def make_plan(request: Request, work: WorkDirectory, loader: ModelLoader) -> Plan:
    """Make every check that needs the network or the weights, all at once.

    It begins to load the models, if they are needed here. The arguments were checked before.

    Raises:
        IngestError: everything that is wrong, in one message.
    """
    findings, target, mode = Findings(), request.target, request.mode
    earlier = None if mode.trial else work.state()
    # An interrupted --restart continues.
    start_over = earlier is not None and (mode.restart or earlier.is_abandoned)
    continued = None if start_over else earlier
    precision = precision_of(request.models.precision, continued)
    ours = continued.index_id if continued and not continued.is_registered else None
    checks.announce_listing(target.paths)
    # Before the others: importing torch keeps the interpreter busy, and nothing takes longer. The
    # imports of the others then run while the models load, which needs no interpreter.
    machine = await findings.gather_in_thread(_check_machine, request.workers, loader)
    unfinished = continued is None or _images_left(continued, mode.skip_bad_images) > 0
    load = machine in ("cpu", "cuda") and not mode.dry_run and unfinished
    listed, digests, on_server = await asyncio.gather(
        _list_and_check(findings, work, target.paths, mode, continued),
        _check_weights(findings, loader, precision if load else None),
        _check_targets(findings, target, ours) if not mode.trial else asyncio.sleep(0),
    )
    same_name = earlier is not None and earlier.option("dataset") == target.name
    other = None if on_server == ours else on_server
    if other is not None and earlier and same_name and not earlier.is_registered:
        delete = start_over and not mode.dry_run
        await settle_taken_name(findings, earlier, work, other, delete=delete)
    if not listed or not digests:
        findings.raise_if_any()
        raise AssertionError("a check failed without a finding")
    listing, changes = listed
    identity = identity_of(target, request.models, digests)
    if continued and changes is not None and check_same(findings, continued, identity):
        is_there = on_server is not None and other is None
        if is_there or continued.is_registered:
            check_registered(findings, target.name, continued, changes)
        else:
            check_left_out(findings, changes, mode.accept_changes)
    # What auto means on the machines of a Ray cluster is known only later.
    accepted = accepted_precisions(precision, machine == "cuda")
    reuse = await find_sources(findings, request, work, digests, accepted) if mode.reuse else None
    findings.raise_if_any()
    return Plan(
        listing=listing,
        earlier=earlier,
        start_over=start_over,
        changes=changes,
        identity=identity,
        precision=precision,
        reuse=reuse,
    )


async def begin_or_continue(
    plan: Plan, work: WorkDirectory, server_url: str, *, retry_failed: bool
) -> State:
    """The state to go on with, with today's images: an earlier run's, or a new one."""
    earlier = plan.earlier
    if earlier is None or plan.start_over:
        if earlier:
            # That run may have ended between the registration and the record of it.
            registered = earlier.is_registered or await has_index_of(earlier, server_url)
            await delete_earlier(earlier, registered=registered)
        options = {**plan.identity, "index_id": str(uuid.uuid4())}
        return await asyncio.to_thread(work.begin, plan.listing, options)
    if earlier.ordered_arrays() is not None:  # the earlier run was stopped in between
        await asyncio.to_thread(put_in_order, earlier)
    if plan.changes:
        say(describe_changes(plan.changes, "the last run"))
    await asyncio.to_thread(earlier.take, plan.listing.path)
    # The arrays may be gone if no image is done: check_same refuses it otherwise.
    if retry_failed or not arrays_complete(
        earlier.directory, earlier.slots(done=True), exactly=False
    ):
        earlier.retry_failed()
    counts = earlier.counts()
    say(f"Continuing in {earlier.directory}: {counts.done:,} of {counts.images:,} images are done.")
    return earlier


def _images_left(state: State, skip_bad_images: bool) -> int:
    """How many images of an earlier run are to embed, as far as its state tells."""
    counts = state.counts()
    return counts.images - counts.done - (counts.failed if skip_bad_images else 0)


def precision_of(asked: str, continued: State | None) -> str:
    """The precision to load the models in: `auto` keeps what it chose when the ingest began."""
    chosen = continued.option("precision") if continued else None
    return chosen if chosen and asked == "auto" else asked


def _check_machine(workers: Workers, loader: ModelLoader) -> str:
    """What is to compute, checked: cpu or cuda of this machine, or ray."""
    if workers.engine == "local":
        return loader.check_device()
    from engine.ray import cluster

    cluster.check(workers.ray_address)
    return "ray"


async def _check_weights(
    findings: Findings, loader: ModelLoader, load_in: str | None
) -> tuple[str, str] | None:
    """Check both weights, begin to load the models in a precision if one is given, take digests.

    Returns None after a finding.
    """
    clip: Path | None = await findings.gather_in_thread(loader.find_clip)
    resnet: Path | None = await findings.gather_in_thread(loader.read_resnet)
    if clip is None or resnet is None:
        return None
    if load_in:
        loader.start(load_in)
    return await asyncio.to_thread(loader.digests)


async def _check_targets(findings: Findings, target: Target, ours: str | None) -> str | None:
    """Write access to the index bucket, and a server that has no other dataset of this name.

    Returns the index id that the server has under this name, or None.
    """
    _, other = await asyncio.gather(
        findings.gather_in_thread(checks.check_write_access, target.bucket),
        checks.check_server(findings, target.server_url, target.name, ours),
    )
    return other


async def _list_and_check(
    findings: Findings,
    work: WorkDirectory,
    paths: tuple[GsPath, GsPath],
    mode: Mode,
    continued: State | None,
) -> tuple[Listing, Changes | None] | None:
    """Today's images, and what changed since an earlier run listed them."""
    listing: Listing | None = await findings.gather_in_thread(checks.list_images, paths, work)
    if listing is None:
        return None
    await findings.gather_in_thread(
        checks.check_listing, findings, listing, paths, mode.allow_empty_val
    )
    changes, slots = None, listing.counts().images
    if continued:
        changes = await asyncio.to_thread(continued.changes, listing.path)
        slots = continued.slots() + changes.new
    if not mode.trial:  # which says what would be needed
        checks.check_disk(findings, slots, work.path)
    await checks.check_public(findings, listing, paths[0].bucket)
    train, val = (listing.counts(split) for split in Split)
    say(
        f"Listed {train.images:,} training and {val.images:,} validation images "
        f"({size(train.size + val.size)})."
    )
    for line in describe_skipped(listing, mode.write_renames):
        warn(line)
    if script := mode.write_renames:
        said = await findings.gather_in_thread(write_renames, script, paths)
        if said:
            say(said)
    return listing, changes
