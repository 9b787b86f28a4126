"""Copy what is computed elsewhere, embed the rest, and stop if too many images failed."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace

from common.errors import IngestError
from common.files import write_atomically
from common.precision import Precision, least_exact
from common.terminal import count, duration, first_lines, printable, say, warn
from dataset.arrays import Arrays
from dataset.manifest import precision_of_rows
from dataset.matches import Matches
from dataset.state import State
from dataset.work_directory import COPIES, WorkDirectory
from engine.checkpoint import Recorder
from engine.loading import ModelLoader
from engine.pipeline import Pipeline
from engine.reuse import Copier, Source
from engine.threads import Job
from preflight.earlier import what_restart_deletes
from preflight.plan import Plan
from preflight.request import Request
from preflight.sources import describe_reuse
from report.run import Report, StepName

BFLOAT16_ADVICE = (
    "This processor is faster with bfloat16: --precision bfloat16 would take about two thirds of "
    "the time. Its vectors differ slightly (cosine 0.9999), so it needs --restart{}."
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that the steps of one run share."""

    request: Request
    plan: Plan
    work: WorkDirectory
    state: State
    loader: ModelLoader
    report: Report


async def copy_computed(run: Run) -> None:
    """Copy what pending images need and other images have: here, or in what --reuse names."""
    plan, state, report = run.plan, run.state, run.report
    if await asyncio.to_thread(state.has_copies):
        matches = run.work.new_matches(COPIES)
        await asyncio.to_thread(matches.add, state.found(), usable=True)
        await asyncio.to_thread(matches.match, state.path)
        own = Source(
            name=str(state.directory),
            index_id=state.index_id,
            bucket=state.bucket,
            rows=state.slots(),
            precision=precision_of_rows(state) or Precision.FLOAT32,
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
        if before := state.option("reused_precision"):
            used.append(Precision(before))
        state.set_options({"reused_precision": least_exact(used)})
        step.images = await copy_matches(state, plan.reuse.sources, plan.reuse.matches)


async def copy_matches(state: State, sources: list[Source], matches: Matches) -> int:
    """Copy vectors and thumbnails of matched images; returns of how many."""
    with Arrays(state.directory, state.slots()) as arrays:
        copier = Copier(state, arrays, sources, matches, state.bucket)
        seconds = await copier.run()
    say(f"Copied vectors and thumbnails of {count(copier.copied, 'image')} in {duration(seconds)}.")
    if copier.damaged:
        warn(f"Embedded again, as their vectors are damaged there: {copier.damaged:,}.")
    if copier.without_thumbnail:
        warn(f"Embedded again, as their thumbnails are gone there: {copier.without_thumbnail:,}.")
    return copier.copied


async def embed(run: Run) -> None:
    """Embed every pending image and upload its thumbnail."""
    request, plan, state, report = run.request, run.plan, run.state, run.report
    before, start = state.counts().done, time.monotonic()
    report.done_before = before - report.embedded
    with Arrays(state.directory, state.slots()) as arrays:
        if request.workers.engine == "ray":
            from engine.ray.driver import embed_on_ray  # Ray takes seconds, and few have it

            clip = str(await asyncio.to_thread(run.loader.find_clip))
            models = replace(request.models, precision=plan.precision, clip_weights=clip)
            with report.step(StepName.EMBEDDING):
                await embed_on_ray(
                    state,
                    arrays,
                    models,
                    address=request.workers.ray_address,
                    image_bucket=request.target.paths[0].bucket,
                    index_bucket=request.target.bucket,
                    make_loader=type(run.loader),
                    times=report.stages,
                )
        else:
            bucket, recorder = request.target.bucket, Recorder(state, arrays)
            await embed_here(run, recorder, bucket)
    embedded = state.counts().done - before
    report.embedded += embedded
    say(f"Embedded {count(embedded, 'image')} in {duration(time.monotonic() - start)}.")


async def embed_here(run: Run, recorder: Recorder, index_bucket: str | None) -> Pipeline:
    """The same with the models of this process; without an index bucket nothing is uploaded."""
    request, plan, state, report = run.request, run.plan, run.state, run.report
    with report.step(StepName.LOADING):
        embedder = await run.loader.embedder(plan.precision)
    state.set_options({"precision": embedder.precision})
    job = Job(
        image_bucket=request.target.paths[0].bucket,
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
                await recorder.during(pipeline.run(state.pending(), state.counts().pending))
            finally:
                report.stages[:] = pipeline.times()
    for sentence in embedder.exceptions():
        warn(sentence)
    return pipeline


def refuse_failures(run: Run) -> None:
    """Write failed.json, and stop here if there are more failed images than were allowed.

    Raises:
        IngestError: how many failed, which, and what to do.
    """
    state, mode = run.state, run.request.mode
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
    allowed = mode.max_bad.of(counts.images) if mode.max_bad else counts.images
    if mode.skip_bad_images and counts.failed <= allowed:
        warn(f"Skipped {count(counts.failed, 'image')} that cannot be embedded: see {path}.")
        return
    lines = [f"{printable(name)}: {printable(reason)}" for name, reason in failed]
    too_many, option = "", "--skip_bad_images: their rows then hold zeros"
    if mode.skip_bad_images:
        too_many, option = f", more than the {allowed:,} allowed", f"--max_bad {counts.failed}"
    raise IngestError(
        f"{counts.failed:,} of {count(counts.images, 'image')} cannot be embedded{too_many}; "
        f"nothing was registered.\n{first_lines(lines)}\nAll of them are in {path}. Replace or "
        f"remove them and run the same command again, or continue without them with {option}."
    )
