"""Does the cost per row grow with the dataset? `python -m bench.collection.scale`

The whole pipeline with an embedder that does nothing, once with few rows and once with many, each
in a process of its own: time and CPU time per row, the largest resident memory, and the CPU time of
listing and checking the names. Then --reuse, in reuse.py: a collection that grew by 1%.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import click

from bench.support.measure import Result, options, show, storage_server
from common.errors import Findings
from common.names import GsPath
from common.options import default_decode_workers
from dataset.arrays import Arrays
from dataset.state import State
from dataset.work_directory import WorkDirectory
from engine.checkpoint import Recorder
from engine.pipeline import WINDOW_CPU, Pipeline
from engine.stages import StageTime
from engine.threads import Job
from preflight import checks
from testing.embedders import FakeEmbedder
from testing.photographs import photograph
from testing.servers.guarded import guarded

PATHS = GsPath("bench", "d/train/"), GsPath("bench", "d/val/")
NAMES_ONLY = "names only"
REUSE = "reuse"
NEW = 100  # with --reuse, one row of this number is new: it has another image


def one_run(rows: int, embed: bool) -> dict[str, float]:
    """List and check `rows` names and, if asked, run the pipeline over them, in this process."""
    processor = time.process_time()
    with (
        tempfile.TemporaryDirectory() as directory,
        WorkDirectory(Path(directory, "work")) as work,
    ):
        listing = checks.list_images(PATHS, work)
        findings = Findings()
        checks.check_listing(findings, listing, PATHS, allow_empty_val=False)
        findings.raise_if_any()
        figures = {"list and check, CPU": time.process_time() - processor}
        if embed:
            figures |= embed_all(work.draft(listing))
    figures["resident memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return figures


def job_of(state: State) -> Job:
    """What every part of an engine needs to know."""
    return Job(
        image_bucket=PATHS[0].bucket,
        index_bucket=PATHS[0].bucket,
        index_id=state.index_id,
        max_pixels=FakeEmbedder.max_pixels,
        with_clip_inputs=False,
    )


async def embed_by(
    embedder: FakeEmbedder,
    state: State,
    arrays: Arrays,
    workers: int,
    in_processes: bool = False,
    window: int = WINDOW_CPU,
) -> list[StageTime]:
    """Run the pipeline with this embedder; so many workers decode the images."""
    recorder = Recorder(state, arrays)
    pipeline = Pipeline(
        job_of(state),
        embedder,
        recorder.record,
        decode_workers=workers,
        in_processes=in_processes,
        window=window,
    )
    async with pipeline:
        await recorder.during(pipeline.run(state.pending(), state.counts().images))
    return pipeline.times()


async def embed_idly(
    state: State, arrays: Arrays, window: int = WINDOW_CPU, feeders: int = 0
) -> list[StageTime]:
    """Run the pipeline with an embedder that does nothing, in batches as on a GPU.

    Images are decoded by so many feeders, or in threads.
    """
    embedder = FakeEmbedder(constant=True, batch_size=256, makes_clip_inputs=True)
    if feeders:
        embedder.device = "idle"  # batches gather as on a GPU
    workers = feeders or default_decode_workers()
    return await embed_by(embedder, state, arrays, workers, bool(feeders), window)


def embed_all(state: State, window: int = WINDOW_CPU, feeders: int = 0) -> dict[str, float]:
    """Milliseconds per row that the pipeline takes without models, and CPU time of this process."""
    state.set_options({"index_id": str(uuid.uuid4())})
    rows = state.counts().images
    wall, processor = time.perf_counter(), time.process_time()
    with Arrays(state.directory, rows) as arrays:
        asyncio.run(embed_idly(state, arrays, window, feeders))
    assert state.counts().done == rows
    return {
        "per row": (time.perf_counter() - wall) / rows * 1000,
        "per row, CPU": (time.process_time() - processor) / rows * 1000,
    }


UNITS = {
    "list and check, CPU": "s",
    "per row": "ms",
    "per row, CPU": "ms",
    "resident memory": "MB",
    "reuse, planning, CPU": "s",
    "reuse, copying, CPU": "s",
    "reuse, images fetched": "images",
    "reuse, images in the models": "images",
    "reuse, resident memory": "MB",
}


@click.command()
@click.option("--few", default=10_000, show_default=True)
@click.option("--many", default=100_000, show_default=True, help="The promise is for 1,000,000.")
@click.option("--names", default=1_000_000, show_default=True, help="To list and check only.")
@click.option("--reused", default=100_000, show_default=True, help="99% of them are reused.")
@click.option("--one", hidden=True, help="Rows of one run in this process.")
@options
def main(
    few: int, many: int, names: int, reused: int, one: str | None, runs: int, json_file: Path
) -> None:
    """Time per row and resident memory with few and with many rows."""
    if one:
        count, _, what = one.partition(":")
        click.echo(json.dumps(one_run(int(count), what != NAMES_ONLY)))
        return
    results = []
    images = [photograph(64, 48)] * (NEW - 1) + [photograph(48, 64)]
    for rows, kind in ((few, ""), (many, ""), (names, NAMES_ONLY), (reused, REUSE)):
        with storage_server(rows, images, index_rows=rows - rows // NEW):
            words = ["reuse", str(rows)] if kind == REUSE else ["scale", "--one", f"{rows}:{kind}"]
            command = [sys.executable, "-m", f"bench.collection.{words[0]}", *words[1:]]
            printed = subprocess.run(
                **guarded(command), capture_output=True, text=True, check=True
            ).stdout
        for quantity, value in json.loads(printed).items():
            label = f"{rows:,} rows {kind}".strip()
            results.append(Result(f"{label}: {quantity}", UNITS[quantity], [value]))
    by_name = {result.name: result.median for result in results}
    grown = by_name[f"{many:,} rows: resident memory"] - by_name[f"{few:,} rows: resident memory"]
    results.append(Result("memory above few rows", "MB", [grown]))
    show("Rows listed, and run through the pipeline without models", results, json_file)


if __name__ == "__main__":
    main()
