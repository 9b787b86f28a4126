"""The command that adds a dataset to Forager: check, embed, upload, register."""

from __future__ import annotations

from common.guard import guard

if __name__ == "__main__":
    guard()

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from common.addresses import dataset_page, shown_server
from common.errors import Findings, ImagesChanged, IngestError
from common.files import disk_errors
from common.names import dataset_name_error
from common.options import (
    CONTEXT_SETTINGS,
    OPTION_GROUPS,
    GroupedCommand,
    check_combinations,
    ingest_options,
    shared_options,
)
from common.process import raise_open_file_limit, shortages, until_interrupted
from common.terminal import print_result, printable, say, warn
from dataset.arrays import Arrays
from dataset.listing import Listing
from dataset.state import State
from dataset.work_directory import STATE, WorkDirectory
from engine.checkpoint import Recorder
from engine.loading import ModelLoader
from preflight.checks import check_arguments, check_listing, list_images
from preflight.describe import describe_changes, describe_plan, list_changes
from preflight.earlier import (
    changed_since,
    check_left_out,
    finished,
    is_still_there,
    what_restart_deletes,
)
from preflight.plan import Plan, begin_or_continue, make_plan
from preflight.request import Request, parse_request, without_validation
from preflight.sources import describe_reuse
from report.forecast import read_prices
from report.run import Report, RunOutcome, StepName, summarize
from report.trial import conclude, describe_trial, sampled
from steps.embed import Run, embed_here
from steps.finish import complete, outdated, register, upload

ROUNDS = 5  # in which the bucket may change before its registration


@click.command(cls=GroupedCommand, groups=OPTION_GROUPS, context_settings=CONTEXT_SETTINGS)
@click.argument(
    "name", help="The dataset to make: 1 to 50 letters, digits, dashes and underscores."
)
@click.argument("train_path", help="Directory of the training images, as gs://BUCKET/DIRECTORY.")
@click.argument(
    "val_path",
    required=False,
    help="That of the validation images, in the same bucket. Without it, all images are training "
    "images, after a question.",
)
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
    if parameters["val_path"] is None:
        settle_validation(parameters)
    report = Report(parameters)
    request = parse_request(parameters)
    with shortages():
        loader = (make_loader or ModelLoader)(request.models)
        asyncio.run(until_interrupted(ingest(request, loader, report), report.if_interrupted))


def settle_validation(parameters: dict[str, Any]) -> None:
    """Without VAL_PATH, take a directory without images for it, once the user has agreed.

    Raises:
        IngestError, UsageError: the user did not.
    """
    train = parameters["train_path"]
    if problem := dataset_name_error(parameters["name"]):
        raise IngestError(problem)
    try:
        val_path = without_validation(train)
    except ValueError as error:
        raise IngestError(str(error)) from error
    work_dir = parameters["work_dir"] or Path(parameters["name"])
    if not parameters["allow_empty_val"] and not os.path.exists(work_dir / STATE):
        step = (
            "name the directory of the validation images as VAL_PATH, or add --allow_empty_val if "
            f"all images in {printable(train)} are training images"
        )
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError(f"VAL_PATH is missing: {step}.")
        question = (
            f"There is no VAL_PATH. Take all images in {printable(train)} as training images, and "
            "none for validation?"
        )
        if not click.confirm(question, err=True):
            raise IngestError(f"Nothing was done: {step}.")
    parameters.update(val_path=val_path, allow_empty_val=True)


async def ingest(request: Request, loader: ModelLoader, report: Report) -> None:
    """Check, embed, upload, register: the whole ingest.

    Raises:
        IngestError: what stopped it, for the user.
    """
    try:
        raise_open_file_limit()
        check_arguments(request, loader)
        with WorkDirectory(request.work_dir) as work, report.kept_in(work.path):
            await ingest_in(work, request, loader, report)
    except BaseException as error:
        report.end(error)
        if request.mode.as_json:
            with contextlib.suppress(OSError):  # the message on stderr matters more
                print(report.text(), flush=True)
        raise
    ends = {RunOutcome.DRY_RUN: "Every check passed.", RunOutcome.TRIED: "The trial has ended."}
    done = ends.get(report.outcome, f"{request.target.name} is registered.")
    print_result(report.text() if request.mode.as_json else summarize(report), done)


async def ingest_in(
    work: WorkDirectory, request: Request, loader: ModelLoader, report: Report
) -> None:
    """The same in the work directory."""
    with shortages(), disk_errors(work.path):
        if request.mode.trial:
            await try_out(request, request.mode.trial, work, loader, report)
        else:
            await run_rounds(request, work, loader, report)


async def run_rounds(
    request: Request, work: WorkDirectory, loader: ModelLoader, report: Report
) -> None:
    """Finish the ingest, in several rounds if the bucket changes meanwhile."""
    report.state = state = work.state()
    what_it_holds = await asyncio.to_thread(finished, request, state, loader)
    if state and what_it_holds and await is_still_there(request, state):
        report.outcome, report.page = RunOutcome.FINISHED, page_of(request, state)
        report.keeps_earlier = True
        if state.outdated_by:
            raise IngestError(outdated(request.target.name, state.outdated_by))
        changed = await asyncio.to_thread(changed_since, request, state, work)
        report.message = f"This ingest is finished: {what_it_holds}. Look at {report.page}{changed}"
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
    run = Run(request=request, plan=plan, work=work, state=state, loader=loader, report=report)
    for _ in range(ROUNDS):
        newer = await one_round(run)
        if newer is None:
            report.outcome, report.page = RunOutcome.REGISTERED, page_of(request, state)
            return
        with report.step(StepName.CHECKS):
            changes = await asyncio.to_thread(take_newer, run, newer)
    raise IngestError(
        f"The bucket changed in each of {ROUNDS} rounds, so nothing was registered. The last time:"
        f"{changes}\nAll that is computed is kept. Run the same command again when "
        f"{' and '.join(map(str, request.target.paths))} hold still for the time of one listing."
    )


async def one_round(run: Run) -> Listing | None:
    """Embed, upload and register the listed images.

    Returns the newer listing if the bucket has changed; then nothing is registered.
    """
    try:
        checksums = await complete(run)
    except ImagesChanged as error:
        warn(error.message)
        return await asyncio.to_thread(list_images, run.request.target.paths, run.work)
    with run.report.step(StepName.UPLOAD):
        await upload(run, checksums)
    with run.report.step(StepName.REGISTRATION):
        return await register(run)


def take_newer(run: Run, listing: Listing) -> str:
    """Make a newer listing the images of this ingest. Blocks.

    Returns what it changed, a line for each kind.

    Raises:
        IngestError: it cannot be ingested, or leaves out most of what is computed.
    """
    findings, state, mode = Findings(), run.state, run.request.mode
    check_listing(findings, listing, run.request.target.paths, mode.allow_empty_val)
    changes = state.changes(listing.path)
    check_left_out(findings, changes, mode.accept_changes)
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
    with sampled(plan.listing, images, work.path) as sample:
        report.done_before = 0
        done_at: list[float] = []  # the time.monotonic() of each image
        run = Run(request=request, plan=plan, work=work, state=sample, loader=loader, report=report)
        with Arrays(sample.directory, sample.slots()) as arrays:
            recorder = Recorder(sample, arrays, finished=done_at)
            try:
                pipeline = await embed_here(run, recorder, None)
            except ImagesChanged as error:
                raise IngestError(f"{error.message}\nRun the same command again.") from error
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
    image_bucket, index_bucket = request.target.paths[0].bucket, request.target.bucket
    what = describe_plan(plan.listing, image_bucket, index_bucket, reuse, reused_bytes)
    if plan.earlier and plan.start_over:
        return f"Would start over: this deletes {what_restart_deletes(plan.earlier)}.\n{what}"
    if continued and plan.changes:
        return f"{describe_changes(plan.changes, 'the last run')}\n{what}"
    return what


def page_of(request: Request, state: State | None) -> str:
    """The web page of the dataset, as the server that SERVER_URL names has it."""
    target, pages = request.target, state.servers() if state else {}
    viewer_url = target.viewer_url or pages.get(shown_server(target.server_url))
    return dataset_page(target.server_url, viewer_url, target.name)


if __name__ == "__main__":
    main.run()
