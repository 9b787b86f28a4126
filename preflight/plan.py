"""From the command line to a plan: every check at once, and what they found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.errors import Findings
from common.names import GsPath, parse_gs_path
from common.terminal import say, size, warn
from dataset.state.rows import TRAIN, VAL, State
from dataset.work_directory import WorkDirectory
from engine.loading import ModelLoader
from preflight import checks
from preflight.describe import describe_skipped
from preflight.earlier.changes import check_changes
from preflight.earlier.found import check_same, settle_taken_name
from preflight.renames import write_renames
from preflight.request import Request
from preflight.sources import Computed, Reuse, find_sources, precisions_that_do


class Plan(NamedTuple):
    """What the checks found: all that an ingest needs to know. Nothing here changes."""

    train: GsPath
    val: GsPath
    listing: State
    earlier: State | None  # of a run in the same work directory
    start_over: bool  # instead of continuing it
    identity: dict[str, str]  # what the numbers and the index depend on
    precision: str  # to load the models in
    clip_directory: Path  # of the CLIP weights
    reuse: Reuse | None = None  # what --reuse names
    relist: bool = False  # instead of continuing with the earlier list
    as_listed: bool = False  # keep the earlier list whatever changed


async def make_plan(request: Request, work: WorkDirectory, loader: ModelLoader) -> Plan:
    """Make every check that needs the network or the weights, all at once.

    It begins to load the models, if they are needed here. The arguments were checked before.

    Raises:
        IngestError: everything that is wrong, in one message.
    """
    findings = Findings()
    paths = parse_gs_path(request.train_path), parse_gs_path(request.val_path)
    earlier = None if request.trial else work.state()
    # An interrupted --restart continues.
    start_over = earlier is not None and (request.restart or earlier.is_abandoned)
    continued = None if start_over else earlier
    precision = precision_of(request.models.precision, continued)
    ours = continued.index_id if continued and not continued.is_registered else None
    # Before the others: importing torch keeps the interpreter busy, and nothing takes longer. The
    # imports of the others then run while the models load, which needs no interpreter.
    machine = await findings.gather_in_thread(_check_machine(request, loader))
    unfinished = continued is None or _rows_left(continued, request.skip_bad_images) > 0
    load = request.engine == "local" and not request.dry_run and unfinished and machine
    listing, weights, on_server = await asyncio.gather(
        _list_and_check(findings, work, paths, request),
        _check_weights(findings, loader, precision if load else None),
        _check_targets(findings, request, ours),
    )
    same_name = earlier is not None and earlier.option("dataset") == request.name
    other = None if on_server == ours else on_server
    if other is not None and earlier and same_name and not earlier.is_registered:
        delete = start_over and not request.dry_run
        await settle_taken_name(findings, earlier, work, other, delete=delete)
    if listing and weights:
        identity = request.identity(weights.resnet_digest, weights.clip_digest)
        relist = False
        if continued and check_same(findings, continued, identity):
            is_there = on_server is not None and other is None
            relist = await asyncio.to_thread(
                check_changes, findings, request, continued, listing, on_server=is_there
            )
        reuse = await _find_sources(findings, request, work, loader, weights, precision)
        findings.raise_if_any()
        return Plan(
            *paths,
            listing,
            earlier,
            start_over,
            identity,
            precision,
            weights.clip_directory,
            reuse,
            relist,
            request.as_listed,
        )
    findings.raise_if_any()
    raise AssertionError("a check failed without a finding")


def _rows_left(state: State, skip_bad_images: bool) -> int:
    """How many rows of an earlier run are to embed, as far as its state tells."""
    counts = state.counts()
    return counts.images - counts.done - (counts.failed if skip_bad_images else 0)


def precision_of(asked: str, continued: State | None) -> str:
    """The precision to load the models in: `auto` keeps what it chose when the ingest began."""
    chosen = continued.option("precision") if continued else None
    return chosen if chosen and asked == "auto" else asked


def _check_machine(request: Request, loader: ModelLoader) -> Callable[[], bool]:
    """The check of what is to compute: the device of this machine, or a Ray cluster."""

    def check_machine() -> bool:
        if request.engine == "ray":
            from engine.ray import cluster

            cluster.check(request.ray_address)
        else:
            loader.check_device()
        return True

    return check_machine


class Weights(NamedTuple):
    """The weights of both models that the checks found."""

    resnet_digest: str  # SHA-256 of the file, in hexadecimal
    clip_digest: str
    clip_directory: Path


async def _check_weights(
    findings: Findings, loader: ModelLoader, load_in: str | None
) -> Weights | None:
    """Check both weights, begin to load the models in a precision if one is given, take digests.

    Returns None after a finding.
    """
    clip: Path | None = await findings.gather_in_thread(loader.find_clip)
    resnet: Path | None = await findings.gather_in_thread(loader.read_resnet)
    if clip is None or resnet is None:
        return None
    if load_in:
        loader.start(load_in)
    return Weights(*await asyncio.to_thread(loader.digests), clip)


async def _find_sources(
    findings: Findings,
    request: Request,
    work: WorkDirectory,
    loader: ModelLoader,
    weights: Weights,
    precision: str,
) -> Reuse | None:
    """What --reuse names, if anything."""
    if not request.reuse:
        return None
    # What auto means on the machines of a Ray cluster is known only later.
    on_gpu = request.engine == "local" and await findings.gather_in_thread(loader.is_on_gpu)
    wanted = Computed(*weights[:2], request.models.backend, precision)
    return await find_sources(
        findings, request, work, wanted, precisions_that_do(precision, bool(on_gpu))
    )


async def _check_targets(findings: Findings, request: Request, ours: str | None) -> str | None:
    """Write access to the index bucket, and a server that has no other dataset of this name.

    Returns the index id that the server has under this name, or None. A trial needs neither.
    """
    if request.trial:
        return None
    _, other = await asyncio.gather(
        findings.gather_in_thread(checks.check_write_access, request.bucket),
        checks.check_server(findings, request.server_url, request.name, ours),
    )
    return other


async def _list_and_check(
    findings: Findings, work: WorkDirectory, paths: tuple[GsPath, GsPath], request: Request
) -> State | None:
    listing: State | None = await findings.gather_in_thread(checks.list_images, paths, work)
    if listing is None:
        return None
    await findings.gather_in_thread(
        checks.check_not_empty, findings, listing, paths, request.allow_empty_val
    )
    await findings.gather_in_thread(checks.check_images, findings, listing)
    if not request.trial:  # which says what would be needed
        checks.check_disk(findings, listing, work.path)
    await checks.check_public(findings, listing, paths[0].bucket)
    counts = [listing.counts(split) for split in (TRAIN, VAL)]
    say(
        f"Listed {counts[0].images:,} training and {counts[1].images:,} validation images "
        f"({size(counts[0].size + counts[1].size)}).",
    )
    for line in describe_skipped(listing, request.write_renames):
        warn(line)
    if script := request.write_renames:
        said = await findings.gather_in_thread(write_renames, script, paths, listing)
        if said:
            say(said)
    return listing
