"""Add a dataset to Forager: check, embed, upload, register."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from common.options import (
    CONTEXT_SETTINGS,
    BatchSizeType,
    LimitType,
    Request,
    default_decode_workers,
    shared_options,
)

if TYPE_CHECKING:  # imported where they are used: --help waits for none of them
    from dataset.arrays import Arrays
    from dataset.rows import State
    from engine.stages import StageTime
    from preflight.plan import Plan

RESNET_WEIGHTS = Path(__file__).with_name("R-50.pkl")
CLIP_WEIGHTS = "openai/clip-vit-base-patch32"
FAILURES_SHOWN = 10
BFLOAT16_ADVICE = (
    "This processor multiplies bfloat16 faster: with --precision bfloat16 (and --restart, if an "
    "ingest has begun) two thirds of the time would do, at a cosine of 0.9999 to these vectors."
)
INTERRUPTED = 130  # exit code, as a shell gives it after Ctrl-C


@click.command(context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@click.argument("train_path")
@click.argument("val_path")
@shared_options
@click.option(
    "--resnet_batch_size",
    type=BatchSizeType(),
    default="auto",
    metavar="N",
    show_default=True,
    help="At most N images of one size in a ResNet forward pass; the numbers never depend on it.",
)
@click.option(
    "--clip_batch_size",
    type=BatchSizeType(),
    default="auto",
    metavar="N",
    show_default=True,
    help="At most N images in a CLIP forward pass; the numbers never depend on it.",
)
@click.option(
    "--resnet_weights",
    type=click.Path(path_type=Path),
    default=RESNET_WEIGHTS,
    metavar="FILE",
    help="Detectron2's R-50.pkl.  [default: R-50.pkl beside ingest.py]",
)
@click.option(
    "--clip_weights",
    default=CLIP_WEIGHTS,
    show_default=True,
    metavar="ID_OR_DIR",
    help="CLIP ViT-B/32: a hub id, or a local directory in the hub's layout.",
)
@click.option(
    "--backend",
    type=click.Choice(["fused", "transformers", "original"]),
    default="fused",
    show_default=True,
    help="What computes: ours, transformers, or the packages Detectron2 and clip if installed.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cuda, cuda:1 or cpu.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto stays within cosine 0.9999 of float32.",
)
@click.option(
    "--work_dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where arrays and state of this ingest lie.  [default: a directory named NAME]",
)
@click.option(
    "--decode_workers",
    type=click.IntRange(min=1),
    default=default_decode_workers,
    show_default="half as many again as there are cores",
    help="Threads that decode images.",
)
@click.option("--allow_empty_val", is_flag=True, help="Go on without validation images.")
@click.option(
    "--skip_bad_images",
    is_flag=True,
    help="Go on although some images cannot be embedded: their rows hold zeros.",
)
@click.option(
    "--max_bad",
    type=LimitType(),
    metavar="N|N%",
    help="With --skip_bad_images: stop all the same if more than this many cannot.",
)
@click.option(
    "--restart", is_flag=True, help="Forget what an earlier run did in the work directory."
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: on all GPUs of this machine, or on a cluster; docs/scaling.md.",
)
@click.option(
    "--ray_address",
    metavar="auto|HOST:PORT",
    help="The Ray cluster to join.  [default: --engine ray starts one on this machine]",
)
def main(**parameters: Any) -> None:
    """Embed the images of two directories on Cloud Storage and register them as a dataset.

    \b
    Example:
      SERVER_URL=http://host:8000 python ingest.py birds gs://bucket/train gs://bucket/val

    The same command again continues an ingest that was interrupted.
    """
    request = Request(**parameters)
    if request.max_bad and not request.skip_bad_images:
        raise click.UsageError("--max_bad goes with --skip_bad_images.")
    if request.ray_address and request.engine != "ray":
        raise click.UsageError("--ray_address goes with --engine ray.")
    asyncio.run(until_interrupted(ingest(request)))


async def until_interrupted(run: Coroutine[Any, Any, None]) -> None:
    """Wait for the run; Ctrl-C or SIGTERM cancels it, and then ends the process.

    What is done is recorded by then, so threads that wait for the network are not waited for. A
    second Ctrl-C does not even wait for the record: that costs seconds of work, like kill -9.
    """
    from common.signals import handle_in_loop

    loop, task = asyncio.get_running_loop(), asyncio.create_task(run)
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted:
            _exit_interrupted()
        interrupted = True
        loop.call_soon_threadsafe(task.cancel)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [handle_in_loop(number, interrupt) for number in signals]
    try:
        await task
    except asyncio.CancelledError:
        if interrupted:
            _exit_interrupted()
        raise
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _exit_interrupted() -> NoReturn:
    click.echo("Interrupted: the same command continues where this one stopped.", err=True)
    _leave(INTERRUPTED)


async def ingest(request: Request) -> None:
    """Check, embed, upload, register: the whole ingest.

    Raises:
        click.ClickException: what stopped it, for the user.
    """
    from common.files import disk_errors
    from common.memory import keep_freed_memory
    from preflight import plan

    start = time.monotonic()
    keep_freed_memory()
    with plan.work_directory(request) as work, disk_errors(work.path):
        checked = await plan.check(request, work)
        if request.dry_run:
            click.echo(plan.describe(request, checked))
            return
        state = await plan.begin(request, work, checked)
        times = await embed(request, checked, state) if state.has_pending() else []
        refuse_failures(request, work.path, state)
        times.append(await upload(request, work.path, state))
        times.append(await register(request, checked, state))
        print_summary(request, state, times, time.monotonic() - start)


async def embed(request: Request, checked: Plan, state: State) -> list[StageTime]:
    """Embed every pending image and upload its thumbnail."""
    from common.terminal import duration
    from dataset.arrays import Arrays

    counts = state.counts()
    start = time.monotonic()
    with Arrays(state.directory, counts.images) as arrays:
        if request.engine == "ray":
            from engine.ray.driver import embed_on_ray

            times = await embed_on_ray(request, checked, state, arrays, _say)
        else:
            times = await embed_here(request, checked, state, arrays)
    embedded = state.counts().done - counts.done
    _say(f"Embedded {embedded:,} images in {duration(time.monotonic() - start)}.")
    return times


async def embed_here(
    request: Request, checked: Plan, state: State, arrays: Arrays
) -> list[StageTime]:
    """The same with the models of this process."""
    from engine.loading import start_loading
    from engine.local import WINDOW_CPU, WINDOW_GPU, Pipeline
    from models import devices
    from preflight.plan import precision_of

    embedder = await (
        checked.embedder
        or start_loading(request, precision_of(request, state), checked.clip_weights)
    )
    state.set_options({"precision": embedder.precision})
    pipeline = Pipeline(
        state,
        arrays,
        embedder,
        image_bucket=checked.train.bucket,
        index_bucket=request.bucket,
        decode_workers=request.decode_workers,
        max_pixels=embedder.max_pixels,
        window=WINDOW_CPU if embedder.device == "cpu" else WINDOW_GPU,
    )
    async with pipeline:
        _say(f"Embedding on {embedder.device} in {embedder.precision}.")
        in_use = request.backend, embedder.device, embedder.precision, request.precision
        if in_use == ("fused", "cpu", "float32", "auto") and devices.bfloat16_is_faster():
            _say(BFLOAT16_ADVICE)
        await pipeline.run()
    return pipeline.times()


def refuse_failures(request: Request, directory: Path, state: State) -> None:
    """Write failed.json, and stop here if there are more failed images than were allowed.

    Raises:
        click.ClickException: how many failed, which, and what to do.
    """
    from common.terminal import printable

    counts = state.counts()
    if counts.done + counts.failed != counts.images:
        raise RuntimeError(f"{counts} do not add up: this is a bug in the ingest")
    path = directory / "failed.json"
    if not counts.failed:
        path.unlink(missing_ok=True)
        return
    failed = state.failed()
    listed = [{"object": name, "reason": reason} for name, reason in failed]
    path.write_text(json.dumps(listed, indent=1) + "\n")
    allowed = request.max_bad.of(counts.images) if request.max_bad else counts.images
    if request.skip_bad_images and counts.failed <= allowed:
        _say(f"Skipped {counts.failed:,} images that cannot be embedded: see {path}.")
        return
    examples = "".join(
        f"\n  {printable(name)}: {reason}" for name, reason in failed[:FAILURES_SHOWN]
    )
    if len(failed) > FAILURES_SHOWN:
        examples += "\n  ..."
    too_many = f", more than the {allowed:,} allowed" if request.skip_bad_images else ""
    raise click.ClickException(
        f"{counts.failed:,} of {counts.images:,} images cannot be embedded{too_many}; nothing was "
        f"registered.{examples}\nAll of them are in {path}. Replace or remove them and run the "
        "same command again (removing needs --restart), or go on without them with "
        "--skip_bad_images: their rows then hold zeros."
    )


async def upload(request: Request, directory: Path, state: State) -> StageTime:
    """Upload the index and verify every object of it."""
    import gcs
    from common.terminal import duration, size
    from dataset.lists import index_files, write_lists
    from engine.stages import StageTime
    from storage.uploads import upload_files

    start = time.monotonic()
    await asyncio.to_thread(write_lists, state, directory)
    client = await asyncio.to_thread(gcs.make_client)
    files = index_files(directory, state.index_id)
    volume = await upload_files(client, request.bucket, files)
    seconds = time.monotonic() - start
    _say(
        f"Uploaded the index to gs://{request.bucket}/indexes/{state.index_id}/ and verified it: "
        f"{size(volume)} in {duration(seconds)}."
    )
    return StageTime("upload", state.counts().images, seconds)


async def register(request: Request, checked: Plan, state: State) -> StageTime:
    """Create the dataset and read its counts back."""
    from common.terminal import duration
    from dataset.rows import TRAIN, VAL
    from engine.stages import StageTime
    from forager.answers import DatasetInfo
    from forager.client import Forager

    start = time.monotonic()
    wanted = DatasetInfo(state.index_id, state.counts(TRAIN).images, state.counts(VAL).images)
    async with Forager(request.server_url) as forager:
        # Without a first look, an answer lost by an earlier run would make this create a second.
        if await forager.dataset(request.name) != wanted:
            await forager.create_dataset(
                request.name, str(checked.train), str(checked.val), *wanted
            )
    state.set_options({"registered": "yes"})
    seconds = time.monotonic() - start
    _say(
        f"Registered {request.name} with {wanted.num_train:,} training and {wanted.num_val:,} "
        f"validation images in {duration(seconds)}."
    )
    return StageTime("register", sum(wanted[1:]), seconds)


def print_summary(request: Request, state: State, times: list[StageTime], wall_s: float) -> None:
    """The table of stages, what limited them, the tally, and where to look."""
    from common.terminal import duration
    from dataset.rows import TRAIN, VAL
    from engine.stages import limit, stage_table
    from forager.addresses import dataset_page

    click.echo(stage_table(times, wall_s))
    if sentence := limit(times, wall_s, request.decode_workers):
        click.echo(sentence)
    counts = state.counts()
    embedded = next((stage.images for stage in times if stage.name in ("ResNet", "models")), 0)
    click.echo(
        f"{request.name}: {counts.images:,} images ({state.counts(TRAIN).images:,} training, "
        f"{state.counts(VAL).images:,} validation), {counts.failed:,} failed, {embedded:,} "
        f"embedded now, in {duration(wall_s)}. "
        f"Look at {dataset_page(request.server_url, request.viewer_url, request.name)}"
    )


def _say(message: str) -> None:
    click.echo(message, err=True)


def _leave(code: int) -> NoReturn:
    """End the process at once, not through the interpreter's end.

    That takes half a second with models in memory, and torch aborts there while models load.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or a full disk
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        _leave(int(ended.code or 0))
