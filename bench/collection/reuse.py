"""Adding 1% to a collection with --reuse: what reading, matching and copying the other rows costs.

Part of `python -m bench.collection.scale`, which runs it in a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import operator
import resource
import tempfile
import time
import uuid
from pathlib import Path

import click
import google_crc32c

from bench.collection.scale import NEW, PATHS, embed_idly
from common.precision import Precision
from dataset.arrays import Arrays
from dataset.listing import Listing
from dataset.manifest import NAME, manifest_path, write_manifest
from dataset.matches import Matches
from dataset.state import Outcome, State
from dataset.work_directory import REUSE, WorkDirectory
from engine.reuse import Copier
from engine.stages import FETCH, MODELS
from preflight import checks
from preflight.sources import Computed, SourceReader
from storage.async_client import AsyncStorage
from storage.pace import WritePace
from testing.embedders import CONSTANT

BUCKET = PATHS[0].bucket
PAGE = 10_000  # rows that are recorded at once
COMPUTED = Computed("1" * 64, "2" * 64, "fused", frozenset({Precision.FLOAT32}))
UNLIMITED = 1e6  # writes per second: what is measured is this program


def reuse_run(rows: int) -> dict[str, float]:
    """Processor seconds and requests to reuse 99% of `rows` rows, and the memory of it all."""
    with (
        tempfile.TemporaryDirectory(dir=".") as directory,
        WorkDirectory(Path(directory, "work")) as work,
    ):
        index_id = str(uuid.uuid4())
        listing = checks.list_images(PATHS, work)
        images = make_source(listing, Path(directory), index_id)
        state = work.draft(listing)
        state.set_options({"index_id": str(uuid.uuid4())})
        matches = work.new_matches(REUSE)
        with Arrays(work.path, rows) as arrays:
            figures = asyncio.run(_run(state, arrays, matches, work.path, index_id, images))
        assert state.counts().reused == images and state.counts().done == rows
    figures["reuse, resident memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return figures


def make_source(listing: Listing, directory: Path, index_id: str) -> int:
    """Upload the manifest of an index of the listed images without one of NEW; returns its rows."""
    old = Listing(directory / "source-listing.sqlite")
    for split, images in itertools.groupby(listing.images(), operator.itemgetter(0)):
        old.add(split, (image for _, image in images if not is_new(image.name)))
    state = State.create(directory / "source.sqlite")
    state.take(old.path)
    old.close()
    checksum = google_crc32c.value(b"".join(vector.tobytes() for vector in CONSTANT.vectors))
    rows = state.counts().images
    for start in range(0, rows, PAGE):
        numbers = range(start, min(start + PAGE, rows))
        state.record(Outcome(row, 0, None, checksum, 64, 48) for row in numbers)
    weights = {"resnet_weights": COMPUTED.resnet_weights, "clip_weights": COMPUTED.clip_weights}
    rest = {"backend": COMPUTED.backend, "precision": Precision.FLOAT32, "index_id": index_id}
    state.set_options({**weights, **rest})
    write_manifest(state)
    state.close()

    async def upload() -> None:
        async with AsyncStorage(1) as objects:
            data = manifest_path(directory).read_bytes()
            await objects.put(
                BUCKET, f"indexes/{index_id}/{NAME}", data, "application/octet-stream"
            )

    asyncio.run(upload())
    return rows


def is_new(name: str) -> bool:
    """Whether testing.servers.storage_server has the other image under an object's name."""
    return int(name.rpartition("/")[2].partition(".")[0]) % NEW == NEW - 1


async def _run(
    state: State, arrays: Arrays, matches: Matches, work: Path, index_id: str, images: int
) -> dict[str, float]:
    start = time.process_time()
    async with AsyncStorage(1) as objects:
        reader = SourceReader(
            objects=objects, bucket=BUCKET, work=work, wanted=COMPUTED, matches=matches
        )
        source = await reader.index("old", index_id, images)
    matches.match(state.path)
    planned = time.process_time()
    pace = WritePace(UNLIMITED)
    await Copier(state, arrays, [source], matches, BUCKET, pace=pace).run()
    copied = time.process_time()
    times = await embed_idly(state, arrays)
    stages = {stage.name: float(stage.images) for stage in times}
    return {
        "reuse, planning, CPU": planned - start,
        "reuse, copying, CPU": copied - planned,
        "reuse, images fetched": stages[FETCH],
        "reuse, images in the models": stages[MODELS],
    }


@click.command()
@click.argument("rows", type=int)
def main(rows: int) -> None:
    """Print the figures of one run as JSON; STORAGE_EMULATOR_HOST names the server."""
    click.echo(json.dumps(reuse_run(rows)))


if __name__ == "__main__":
    main()
