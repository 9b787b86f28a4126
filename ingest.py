"""The command that adds a dataset to Forager: check, embed, upload, register."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import replace
from typing import Any

import click

import gcs
from common.errors import Findings, ImagesChanged, IngestError
from common.files import disk_errors, write_atomically
from common.options import (
    CONTEXT_SETTINGS,
    OPTION_GROUPS,
    GroupedCommand,
    Limit,
    check_combinations,
    ingest_options,
    shared_options,
)
from common.process import leave, raise_open_file_limit, shortages, until_interrupted
from common.terminal import count, duration, printable, say, size, warn
from dataset.arrays import Arrays
from dataset.listing import Listing, Split
from dataset.lists import index_files, write_lists
from dataset.manifest import EXACTNESS
from dataset.matches import Matches
from dataset.state import State
from dataset.work_directory import COPIES, WorkDirectory
from engine.checkpoint import Recorder
from engine.loading import ModelLoader
from engine.pipeline import Pipeline
from engine.reuse import Copier, Source
from engine.threads import Job
from engine.verify import verify
from forager.addresses import dataset_page, shown_server
from forager.client import DatasetInfo, Forager
from preflight.changes import (
    check_left_out,
    describe_changes,
    list_changes,
    what_restart_deletes,
)
from preflight.checks import check_arguments, check_listing, list_images
from preflight.describe import describe_plan
from preflight.earlier import finished
from preflight.plan import Plan, begin_or_continue, make_plan
from preflight.request import Request, parse_request
from preflight.sources import describe_reuse
from report.forecast import read_prices
from report.run import Report, RunOutcome, StepName, summarize
from report.trial import conclude, describe_trial, sampled
from storage.uploads import upload_files

ROUNDS = 5  # in which the bucket may change before its registration
PASSES = 3  # over damaged vectors and missing thumbnails
FAILURES_SHOWN = 10
BFLOAT16_ADVICE = (
    "This processor is faster with bfloat16: --precision bfloat16 would take about two thirds of "
    "the time. Its vectors differ slightly (cosine 0.9999), so it needs --restart{}."
)


@click.command(cls=GroupedCommand, groups=OPTION_GROUPS, context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@click.argument("train_path")
@click.argument("val_path")
@shared_options
@ingest_options
@click.pass_obj
def main(make_loader: Any, **parameters: Any) -> None:
    """Embed the images of two directories on Cloud Storage and register them as a dataset.

    \b
    Example:
      SERVER_URL=http://host:8000 python ingest.py birds gs://bucket/train gs://bucket/val

    The same command again continues an ingest that was interrupted. For a long ingest, use tmux
    or nohup: it ends when its terminal closes.
    """
    check_combinations(parameters)
    report = Report(parameters)
    request = parse_request(parameters)
    with shortages():
        loader = (make_loader or ModelLoader)(request.models)
        asyncio.run(until_interrupted(ingest(request, loader, report), report.if_interrupted))


async def ingest(request: Request, loader: ModelLoader, report: Report) -> None:
    """Check, embed, upload, register: the whole ingest.

    Raises:
        IngestError: what stopped it, for the user.
    """
    try:
        raise_open_file_limit()
        check_arguments(request, loader)
        with (
            WorkDirectory(request.work_dir) as work,
            report.kept_in(work.path),
            shortages(),
            disk_errors(work.path),
        ):
            if request.mode.trial:
                await try_out(request, request.mode.trial, work, loader, report)
            else:
                await run(request, work, loader, report)
    except BaseException as error:
        report.end(error)
        if request.mode.as_json:
            with contextlib.suppress(OSError):  # the message on stderr matters more
                click.echo(report.text())
        raise
    print_result(request, report.text() if request.mode.as_json else summarize(report))


async def run(request: Request, work: WorkDirectory, loader: ModelLoader, report: Report) -> None:
    """The same in the work directory."""
    report.state = state = work.state()
    if state and (what_it_holds := await asyncio.to_thread(finished, request, state, loader)):
        report.outcome, report.page = RunOutcome.FINISHED, page_of(request, state)
        report.keeps_earlier = True
        if state.outdated_by:
            raise IngestError(outdated(request.target.name, state.outdated_by))
        report.message = f"This ingest is finished: {what_it_holds}. Look at {report.page}"
        return
    if not request.mode.dry_run:
        report.write(work.path)
    with report.step(StepName.CHECKS):
        plan = await make_plan(request, work, loader)
        if request.mode.dry_run:
            report.outcome, report.state = RunOutcome.DRY_RUN, work.draft(plan.listing)
            report.message = await describe(request, plan, report.state)
            return
        report.state = state = await begin_or_continue(
            plan,
            work,
            request.target.server_url,
            retry_failed=not request.mode.skip_bad_images,
        )
    for _ in range(ROUNDS):
        newer = await one_round(request, plan, state, work, loader, report)
        if newer is None:
            report.outcome, report.page = RunOutcome.REGISTERED, page_of(request, state)
            return
        with report.step(StepName.CHECKS):
            changes = await asyncio.to_thread(take_newer, request, plan, state, newer)
    raise IngestError(
        f"The bucket changed in each of {ROUNDS} rounds, so nothing was registered. The last time:"
        f"{changes}\nAll that is computed is kept. Run the same command again when {plan.train} "
        f"and {plan.val} hold still for the time of one listing."
    )


async def one_round(
    request: Request,
    plan: Plan,
    state: State,
    work: WorkDirectory,
    loader: ModelLoader,
    report: Report,
) -> Listing | None:
    """Embed, upload and register the listed images.

    Returns the newer listing if the bucket has changed; then nothing is registered.
    """
    try:
        checksums = await complete(request, plan, state, work, loader, report)
    except ImagesChanged as error:
        warn(error.message)
        return await asyncio.to_thread(list_images, (plan.train, plan.val), work)
    with report.step(StepName.UPLOAD):
        await upload(state, request.target.bucket, checksums)
    with report.step(StepName.REGISTRATION):
        return await register(request, plan, state, work)


def take_newer(request: Request, plan: Plan, state: State, listing: Listing) -> str:
    """Make a newer listing the images of this ingest. Blocks.

    Returns what it changed, a line for each kind.

    Raises:
        IngestError: it cannot be ingested, or leaves out most of what is computed.
    """
    findings = Findings()
    paths = plan.train, plan.val
    check_listing(findings, listing, paths, request.mode.allow_empty_val)
    changes = state.changes(listing.path)
    check_left_out(findings, changes, request.mode.accept_changes)
    findings.raise_if_any()
    if changes:
        say(describe_changes(changes, "the images were listed"))
    state.take(listing.path)
    return list_changes(changes)


async def try_out(
    request: Request, images: int, work: WorkDirectory, loader: ModelLoader, report: Report
) -> None:
    """Embed some images and say what all of them will take, for --trial."""
    prices = read_prices(request.mode.prices)
    report.write(work.path)
    with report.step(StepName.CHECKS):
        plan = await make_plan(request, work, loader)
    with (
        sampled(plan.listing, images, work.path) as sample,
        Arrays(sample.directory, sample.slots()) as arrays,
    ):
        report.done_before = 0
        done_at: list[float] = []  # the time.monotonic() of each image
        recorder = Recorder(sample, arrays, finished=done_at)
        pipeline = await embed_here(request, plan, sample, recorder, loader, report, None)
        report.count_rows(sample)
        report.trial = conclude(
            report,
            sample,
            plan.listing,
            prices,
            finished=done_at,
            thumbnail_bytes=pipeline.thumbnail_bytes,
        )
    report.outcome, report.message = RunOutcome.TRIED, describe_trial(report)


async def describe(request: Request, plan: Plan, listed: State) -> str:
    """What the run would do, for --dry_run; `listed` has today's images, with nothing done."""
    continued = None if plan.start_over else plan.earlier
    reuse, reused_bytes = "", 0
    if plan.reuse:
        state = continued if continued and not plan.changes else listed
        matched = await asyncio.to_thread(plan.reuse.matches.match, state.path)
        reuse, reused_bytes = describe_reuse(plan.reuse, matched, would=True), matched.size
    bucket = request.target.bucket
    what = describe_plan(plan.listing, plan.train.bucket, bucket, reuse, reused_bytes)
    if plan.earlier and plan.start_over:
        return f"Would start over: this deletes {what_restart_deletes(plan.earlier)}.\n{what}"
    if continued and plan.changes:
        return f"{describe_changes(plan.changes, 'the last run')}\n{what}"
    return what


async def complete(
    request: Request,
    plan: Plan,
    state: State,
    work: WorkDirectory,
    loader: ModelLoader,
    report: Report,
) -> dict[str, int]:
    """Copy and embed until every image is done or failed, and all of it is as it was written.

    Returns the crc32c of each array by name.

    Raises:
        ImagesChanged: images were replaced or deleted meanwhile; everything else is done.
        IngestError: what stopped it.
    """
    for _ in range(PASSES):
        await copy_computed(plan, state, work, report)
        if state.has_pending():
            await embed(request, plan, state, loader, report)
        refuse_failures(state, request.mode.skip_bad_images, request.mode.max_bad)
        with report.step(StepName.VERIFICATION):
            checksums = await verify(state)
        if not state.has_pending():
            return checksums
    raise IngestError(
        "Nothing was registered: vectors or thumbnails that were just written are damaged again. "
        f"Check the disk of {state.directory}, then run the same command again."
    )


async def copy_computed(plan: Plan, state: State, work: WorkDirectory, report: Report) -> None:
    """Copy what pending images need and other images have: here, or in what --reuse names."""
    if await asyncio.to_thread(state.has_copies):
        matches = work.keep_open(Matches(work.path / COPIES))
        await asyncio.to_thread(matches.add, state.found(), usable=True)
        await asyncio.to_thread(matches.match, state.path)
        own = Source(
            name=str(state.directory),
            index_id=state.index_id,
            bucket=state.option("bucket") or "",
            rows=state.slots(),
            precision=state.option("precision") or "",
            directory=state.directory,
        )
        with report.step(StepName.REUSE) as step:
            step.images = await copy_matches(state, [own], matches)
    if not plan.reuse or not state.has_pending():
        return
    with report.step(StepName.REUSE) as step:
        matched = await asyncio.to_thread(plan.reuse.matches.match, state.path)
        say(describe_reuse(plan.reuse, matched, would=False))
        if not matched.reused:
            return
        used = [plan.reuse.sources[number].precision for number in matched.reused]
        before = state.option("reused_precision")
        least = min([*used, *([before] if before else [])], key=EXACTNESS.index)
        state.set_options({"reused_precision": least})
        step.images = await copy_matches(state, plan.reuse.sources, plan.reuse.matches)


async def copy_matches(state: State, sources: list[Source], matches: Matches) -> int:
    """Copy vectors and thumbnails of matched images; returns of how many."""
    with Arrays(state.directory, state.slots()) as arrays:
        copier = Copier(state, arrays, sources, matches, state.option("bucket") or "")
        seconds = await copier.run()
    say(f"Copied what {count(copier.copied, 'image')} need, in {duration(seconds)}.")
    if copier.damaged:
        warn(f"Embedded again, as their vectors are damaged there: {copier.damaged:,}.")
    if copier.without_thumbnail:
        warn(f"Embedded again, as their thumbnails are gone there: {copier.without_thumbnail:,}.")
    return copier.copied


async def embed(
    request: Request, plan: Plan, state: State, loader: ModelLoader, report: Report
) -> None:
    """Embed every pending image and upload its thumbnail."""
    before, start = state.counts().done, time.monotonic()
    report.done_before = before - report.embedded
    with Arrays(state.directory, state.slots()) as arrays:
        if request.workers.engine == "ray":
            from engine.ray.driver import embed_on_ray  # Ray takes seconds, and few have it

            with report.step(StepName.EMBEDDING):
                await embed_on_ray(
                    state,
                    arrays,
                    replace(request.models, precision=plan.precision),
                    plan.clip_directory,
                    address=request.workers.ray_address,
                    image_bucket=plan.train.bucket,
                    index_bucket=request.target.bucket,
                    make_loader=type(loader),
                    times=report.stages,
                )
        else:
            bucket, recorder = request.target.bucket, Recorder(state, arrays)
            await embed_here(request, plan, state, recorder, loader, report, bucket)
    embedded = state.counts().done - before
    report.embedded += embedded
    say(f"Embedded {count(embedded, 'image')} in {duration(time.monotonic() - start)}.")


async def embed_here(
    request: Request,
    plan: Plan,
    state: State,
    recorder: Recorder,
    loader: ModelLoader,
    report: Report,
    index_bucket: str | None,
) -> Pipeline:
    """The same with the models of this process; without an index bucket nothing is uploaded."""
    with report.step(StepName.LOADING):
        embedder = await loader.embedder(plan.precision)
    state.set_options({"precision": embedder.precision})
    job = Job(
        image_bucket=plan.train.bucket,
        index_bucket=index_bucket,
        index_id=state.index_id,
        max_pixels=embedder.max_pixels,
        with_clip_inputs=not embedder.makes_clip_inputs,
    )
    where = request.workers.decode_in
    pipeline = Pipeline(
        job,
        embedder,
        recorder.record,
        decode_workers=request.workers.decode_workers,
        in_processes=where == "processes" or (where == "auto" and embedder.device != "cpu"),
    )
    async with pipeline:
        say(f"Embedding on {embedder.device} in {embedder.precision}.")
        if embedder.bfloat16_would_be_faster and request.models.precision == "auto":
            begun = state.counts().done > 0
            loss = f", which deletes {what_restart_deletes(state)}" if begun else ""
            say(BFLOAT16_ADVICE.format(loss))
        for sentence in embedder.remarks:
            warn(sentence)
        with report.step(StepName.EMBEDDING):
            try:
                await recorder.during(pipeline.run(state.pending(), state.progress().pending))
            finally:
                report.stages[:] = pipeline.times()
    for sentence in embedder.exceptions():
        warn(sentence)
    return pipeline


def refuse_failures(state: State, skip_bad_images: bool, max_bad: Limit | None) -> None:
    """Write failed.json, and stop here if there are more failed images than were allowed.

    Raises:
        IngestError: how many failed, which, and what to do.
    """
    counts = state.counts()
    if counts.done + counts.failed != counts.images:
        raise RuntimeError(f"{counts} do not add up: this is a bug in the ingest")
    path = state.directory / "failed.json"
    if not counts.failed:
        path.unlink(missing_ok=True)
        return
    failed = state.failed()
    listed = [{"object": name, "reason": reason} for name, reason in failed]
    write_atomically(path, [json.dumps(listed, indent=1).encode() + b"\n"])
    allowed = max_bad.of(counts.images) if max_bad else counts.images
    if skip_bad_images and counts.failed <= allowed:
        warn(f"Skipped {count(counts.failed, 'image')} that cannot be embedded: see {path}.")
        return
    examples = "".join(
        f"\n  {printable(name)}: {printable(reason)}" for name, reason in failed[:FAILURES_SHOWN]
    )
    if len(failed) > FAILURES_SHOWN:
        examples += "\n  ..."
    too_many = f", more than the {allowed:,} allowed" if skip_bad_images else ""
    raise IngestError(
        f"{counts.failed:,} of {count(counts.images, 'image')} cannot be embedded{too_many}; "
        f"nothing was registered.{examples}\nAll of them are in {path}. Replace or remove them and "
        "run the same command again, or continue without them with --skip_bad_images: their rows "
        "then hold zeros."
    )


async def upload(state: State, bucket: str, checksums: dict[str, int]) -> None:
    """Upload the index and verify every object of it; `checksums` are those of the arrays.

    Raises:
        StorageError: an object cannot be written.
    """
    start = time.monotonic()
    await asyncio.to_thread(write_lists, state, state.directory)
    client = await asyncio.to_thread(gcs.make_client)
    files = index_files(state.directory, state.index_id, checksums)
    volume = await upload_files(client, bucket, files)
    say(
        f"Uploaded the index to gs://{bucket}/indexes/{state.index_id}/ and verified it: "
        f"{size(volume)} in {duration(time.monotonic() - start)}."
    )


async def register(
    request: Request, plan: Plan, state: State, work: WorkDirectory
) -> Listing | None:
    """Create the dataset and read its counts back, unless the bucket has changed.

    The server lists the bucket itself, at some time between the two listings here. Returns the
    newer listing if that has other images than the index; then nothing is registered.

    Raises:
        IngestError: the bucket changed meanwhile, or the server did not register the dataset.
    """
    start, target = time.monotonic(), request.target
    train, val = (state.counts(split).images for split in Split)
    wanted = DatasetInfo(state.index_id, train, val)

    async def list_again() -> Listing:
        return await asyncio.to_thread(list_images, (plan.train, plan.val), work)

    async with Forager(target.server_url) as forager:
        # Without this question, a lost answer to an earlier run would lead to a second dataset.
        if await forager.dataset(target.name) != wanted:
            listing = await list_again()
            if await asyncio.to_thread(state.changes, listing.path):
                return listing
            await forager.create_dataset(target.name, str(plan.train), str(plan.val), *wanted)
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


def page_of(request: Request, state: State | None) -> str:
    """The web page of the dataset, as the server that SERVER_URL names has it."""
    target, pages = request.target, state.servers() if state else {}
    viewer_url = target.viewer_url or pages.get(shown_server(target.server_url))
    return dataset_page(target.server_url, viewer_url, target.name)


def print_result(request: Request, result: str) -> None:
    """Print it. Everything else is done by now, whatever happens to the output."""
    try:
        print(result, flush=True)
        sys.stdout.flush()
    except OSError as error:
        done = (
            "Every check passed" if request.mode.dry_run else f"{request.target.name} is registered"
        )
        raise IngestError(
            f"{done}. Only the summary could not be printed ({error.strerror})."
        ) from error


if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        leave(int(ended.code or 0))
