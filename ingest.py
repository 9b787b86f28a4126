"""The command that adds a dataset to Forager: check, embed, upload, register."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

import gcs
from common.errors import IngestError
from common.files import disk_errors, write_atomically
from common.network.activity import warn
from common.options import CONTEXT_SETTINGS, GroupedCommand, Limit, shared_options
from common.resources import raise_open_file_limit, shortages
from common.signals import leave, until_interrupted
from common.terminal import count, duration, printable, say, size
from dataset.arrays import Arrays
from dataset.lists import index_files, write_lists
from dataset.manifest import EXACTNESS
from dataset.state.rows import TRAIN, VAL, State
from dataset.work_directory import WorkDirectory
from engine.checkpoint import Recorder
from engine.loading import ModelLoader, ModelOptions
from engine.pipeline import Pipeline
from engine.reuse import Copier
from engine.threads import Job
from forager.addresses import dataset_page, shown_server
from forager.answers import DatasetInfo
from forager.client import Forager
from preflight.arguments import check_arguments
from preflight.checks import list_images
from preflight.describe import describe_plan
from preflight.earlier.changes import (
    changed_lines,
    check_registrable,
    describe_way,
    what_restart_deletes,
)
from preflight.earlier.found import finished
from preflight.earlier.resume import begin_or_continue, reopen_damaged
from preflight.options import OPTION_GROUPS, check_combinations, ingest_options
from preflight.plan import Plan, make_plan
from preflight.request import Request
from preflight.sources import Reuse, describe_reuse
from report.prices import read_prices
from report.run import (
    CHECKS,
    DRY_RUN,
    EMBEDDING,
    FINISHED,
    LOADING,
    REGISTERED,
    REGISTRATION,
    REUSE,
    TRIED,
    UPLOAD,
    Report,
)
from report.sample import sampled
from report.summary import summarize
from report.trial import concluded, describe_trial, measured
from storage.uploads import upload_files

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
    report = Report(parameters.copy(), parameters["decode_workers"])
    models = ModelOptions(**{f.name: parameters.pop(f.name) for f in fields(ModelOptions)})
    request = Request(models=models, **parameters)
    check_combinations(request)
    with shortages():
        loader = (make_loader or ModelLoader)(models)
        asyncio.run(until_interrupted(ingest(request, loader, report), report.if_interrupted))


async def ingest(request: Request, loader: ModelLoader, report: Report) -> None:
    """Check, embed, upload, register: the whole ingest.

    Raises:
        IngestError: what stopped it, for the user.
    """
    try:
        raise_open_file_limit()
        check_arguments(request, loader)
        directory = request.work_dir or Path(request.name)
        with (
            WorkDirectory(directory) as work,
            report.kept_in(work.path),
            shortages(),
            disk_errors(work.path),
        ):
            await run(request, work, loader, report)
    except BaseException as error:
        report.end(error)
        if request.as_json:
            with contextlib.suppress(OSError):  # the message on stderr matters more
                print(report.text(), flush=True)
        raise
    print_result(request, report.text() if request.as_json else summarize(report))


async def run(request: Request, work: WorkDirectory, loader: ModelLoader, report: Report) -> None:
    """The same in the work directory."""
    if request.trial:
        return await try_out(request, request.trial, work, loader, report)
    report.state = state = work.state()
    if state and (what_it_holds := await asyncio.to_thread(finished, request, state, loader)):
        report.outcome, report.page = FINISHED, page_of(request, state)
        report.keeps_earlier = True
        if state.outdated_by:
            raise IngestError(outdated(request.name, state.outdated_by))
        report.message = f"This ingest is finished: {what_it_holds}. Look at {report.page}"
        if request.relist:
            _say(
                "Forager cannot change a dataset: for images that appeared or changed after that, "
                f"use another name with --reuse {request.name}."
            )
        return
    if not request.dry_run:
        report.begin(work.path)
    with report.step(CHECKS):
        plan = await make_plan(request, work, loader)
        if request.dry_run:
            report.outcome, report.state = DRY_RUN, plan.listing
            report.message = await describe(request, plan)
            return
        retry_failed = not request.skip_bad_images
        report.state = state = await begin_or_continue(
            plan, work, request.server_url, retry_failed=retry_failed
        )
    if plan.reuse:
        with report.step(REUSE) as step:
            step.images = await reuse_rows(plan.reuse, state, request.bucket)
    if state.has_pending():
        await embed(request, plan, state, loader, report)
    refuse_failures(state, request.skip_bad_images, request.max_bad)
    with report.step(UPLOAD):
        await upload(state, request.bucket)
    with report.step(REGISTRATION):
        await register(plan, state, work, request.server_url, request.name)
    report.outcome, report.page = REGISTERED, page_of(request, state)


async def try_out(
    request: Request, images: int, work: WorkDirectory, loader: ModelLoader, report: Report
) -> None:
    """Embed some images and say what all of them will take, for --trial."""
    prices = read_prices(request.prices)
    report.begin(work.path)
    with report.step(CHECKS):
        plan = await make_plan(request, work, loader)
    checks = report.requests()
    with (
        sampled(plan.listing, images, work.path) as sample,
        Arrays(sample.directory, sample.counts().images) as arrays,
    ):
        report.done_before = 0
        done_at: list[float] = []  # the time.monotonic() of each image
        recorder = Recorder(sample, arrays, finished=done_at)
        pipeline = await embed_here(request, plan, sample, recorder, loader, report, None)
        report.count_rows(sample)
        trial = measured(report, done_at, pipeline.thumbnail_bytes, checks)
        report.trial = concluded(sample, plan.listing, trial, prices)
    report.outcome, report.message = TRIED, describe_trial(report)


async def describe(request: Request, plan: Plan) -> str:
    """What the run would do, for --dry_run."""
    reuse, reused_bytes = "", 0
    if plan.reuse:
        continues = plan.earlier and not plan.start_over and not plan.relist
        state = plan.earlier if plan.earlier and continues else plan.listing
        tally = await asyncio.to_thread(plan.reuse.matches.match, state.path)
        reuse, reused_bytes = describe_reuse(plan.reuse, tally, would=True), tally.size
    what = describe_plan(plan.listing, plan.train.bucket, request.bucket, reuse, reused_bytes)
    if plan.earlier and plan.start_over:
        return f"Would start over: this deletes {what_restart_deletes(plan.earlier)}.\n{what}"
    if plan.earlier and (plan.relist or plan.as_listed):
        way = await asyncio.to_thread(
            describe_way, plan.earlier, plan.listing, as_listed=plan.as_listed
        )
        return f"{way}\n{what}"
    return what


async def reuse_rows(reuse: Reuse, state: State, bucket: str) -> int:
    """Copy the pending rows that another index has already, vectors and thumbnails.

    Returns how many were copied.
    """
    tally = await asyncio.to_thread(reuse.matches.match, state.path)
    _say(describe_reuse(reuse, tally, would=False))
    if not tally.reused:
        return 0
    used = [reuse.sources[number].precision for number in tally.reused]
    before = state.option("reused_precision")
    least = min([*used, *([before] if before else [])], key=EXACTNESS.index)
    state.set_options({"reused_precision": least})
    with Arrays(state.directory, state.counts().images) as arrays:
        copier = Copier(state, arrays, reuse.sources, reuse.matches, bucket)
        seconds = await copier.run()
    _say(f"Reused {count(copier.copied, 'image')} in {duration(seconds)}.")
    if copier.damaged:
        warn(f"Embedded again, as their vectors are damaged there: {copier.damaged:,}.")
    if copier.without_thumbnail:
        warn(f"Embedded again, as their thumbnails are gone there: {copier.without_thumbnail:,}.")
    return copier.copied


async def embed(
    request: Request, plan: Plan, state: State, loader: ModelLoader, report: Report
) -> None:
    """Embed every pending image and upload its thumbnail."""
    counts = state.counts()
    report.done_before, start = counts.done, time.monotonic()
    with Arrays(state.directory, counts.images) as arrays:
        if request.engine == "ray":
            from engine.ray.driver import embed_on_ray  # Ray takes seconds, and few have it

            with report.step(EMBEDDING):
                await embed_on_ray(
                    state,
                    arrays,
                    replace(request.models, precision=plan.precision),
                    plan.clip_directory,
                    address=request.ray_address,
                    image_bucket=plan.train.bucket,
                    index_bucket=request.bucket,
                    make_loader=type(loader),
                    times=report.stages,
                )
        else:
            recorder = Recorder(state, arrays)
            await embed_here(request, plan, state, recorder, loader, report, request.bucket)
    embedded = state.counts().done - counts.done
    _say(f"Embedded {count(embedded, 'image')} in {duration(time.monotonic() - start)}.")


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
    with report.step(LOADING):
        embedder = await loader.embedder(plan.precision)
    state.set_options({"precision": embedder.precision})
    job = Job(
        image_bucket=plan.train.bucket,
        index_bucket=index_bucket,
        index_id=state.index_id,
        max_pixels=embedder.max_pixels,
        with_clip_inputs=not embedder.makes_clip_inputs,
    )
    pipeline = Pipeline(
        job,
        embedder,
        recorder.record,
        decode_workers=request.decode_workers,
        in_processes=request.decode_in == "processes"
        or (request.decode_in == "auto" and embedder.device != "cpu"),
    )
    async with pipeline:
        _say(f"Embedding on {embedder.device} in {embedder.precision}.")
        if embedder.bfloat16_would_be_faster and request.models.precision == "auto":
            begun = state.counts().done > 0
            loss = f", which deletes {what_restart_deletes(state)}" if begun else ""
            _say(BFLOAT16_ADVICE.format(loss))
        for sentence in embedder.remarks:
            warn(sentence)
        with report.step(EMBEDDING):
            try:
                await recorder.during(pipeline.run(state.pending(), state.tally().pending))
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
        "run the same command again (after removing any, with --relist, which leaves them out and "
        "keeps what is computed), or continue without them with --skip_bad_images: their rows then "
        "hold zeros."
    )


async def upload(state: State, bucket: str) -> None:
    """Upload the index and verify every object of it.

    Raises:
        IngestError: an array is damaged on the disk, or an object cannot be written.
    """
    start = time.monotonic()
    checksums = await asyncio.to_thread(reopen_damaged, state)
    if state.has_pending():
        raise IngestError(
            "Nothing was registered. Run the same command again: it embeds the images whose "
            "vectors are damaged, and continues."
        )
    await asyncio.to_thread(write_lists, state, state.directory)
    client = await asyncio.to_thread(gcs.make_client)
    files = index_files(state.directory, state.index_id, checksums)
    volume = await upload_files(client, bucket, files)
    seconds = time.monotonic() - start
    _say(
        f"Uploaded the index to gs://{bucket}/indexes/{state.index_id}/ and verified it: "
        f"{size(volume)} in {duration(seconds)}."
    )


async def register(
    plan: Plan, state: State, work: WorkDirectory, server_url: str, name: str
) -> None:
    """Create the dataset and read its counts back; the bucket must not have changed meanwhile.

    The server lists the bucket itself, at some time between the two comparisons here. It does not
    find the images that vanished before, and it leaves their rows in the index unused.

    Raises:
        IngestError: the bucket changed, or the server did not register the dataset.
    """
    start = time.monotonic()
    wanted = DatasetInfo(state.index_id, state.present(TRAIN), state.present(VAL))
    async with Forager(server_url) as forager:
        # Without this question, a lost answer to an earlier run would lead to a second dataset.
        if await forager.dataset(name) != wanted:
            listing = await asyncio.to_thread(list_images, (plan.train, plan.val), work)
            await asyncio.to_thread(check_registrable, state, listing, as_listed=plan.as_listed)
            await forager.create_dataset(name, str(plan.train), str(plan.val), *wanted)
    listing = await asyncio.to_thread(list_images, (plan.train, plan.val), work)
    changes = await asyncio.to_thread(changed_lines, state, listing, as_listed=plan.as_listed)
    if changes:
        state.mark_outdated(changes)
    # Only now: a run that was killed before this compares again.
    state.mark_registered(forager.shown, viewer_url=forager.viewer_url)
    if changes:
        raise IngestError(outdated(name, changes))
    seconds = time.monotonic() - start
    _say(
        f"Registered {name} with {wanted.num_train:,} training and {wanted.num_val:,} validation "
        f"images in {duration(seconds)}."
    )


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
    pages = state.servers() if state else {}
    viewer_url = request.viewer_url or pages.get(shown_server(request.server_url))
    return dataset_page(request.server_url, viewer_url, request.name)


def print_result(request: Request, result: str) -> None:
    """Print it. Everything else is done by now, whatever happens to the output."""
    try:
        print(result, flush=True)
        sys.stdout.flush()
    except OSError as error:
        done = "Every check passed" if request.dry_run else f"{request.name} is registered"
        raise IngestError(
            f"{done}. Only the summary could not be printed ({error.strerror})."
        ) from error


def _say(message: str) -> None:
    say(message)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        leave(int(ended.code or 0))
