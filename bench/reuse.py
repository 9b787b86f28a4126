"""Adding 1% to a collection with --reuse: what reading, matching and copying the other rows costs.

Part of `python -m bench.scale`; run by it in a process of its own.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
import uuid
from pathlib import Path

import google_crc32c

from common.names import GsPath
from common.options import default_decode_workers
from dataset.arrays import Arrays
from dataset.manifest import NAME, manifest_path, write_manifest
from dataset.matches import Matches
from dataset.rows import Outcome, State
from dataset.work_directory import REUSE, WorkDirectory
from engine.local import Pipeline
from engine.reuse import Copier
from engine.stages import FETCH, MODELS
from preflight import checks
from preflight.sources import Computed, SourceReader
from storage.async_client import AsyncStorage
from storage.pace import WritePace
from testing.embedders import CONSTANT, FakeEmbedder

BUCKET = "bench"
PATHS = GsPath(BUCKET, "d/train/"), GsPath(BUCKET, "d/val/")
NEW = 100  # one row of this number is new: testing.storage_server gives it another image
COMPUTED = Computed("1" * 64, "2" * 64, "fused", "float32")
UNLIMITED = 1e6  # writes per second: what is measured is this program


def reuse_run(rows: int) -> dict[str, float]:
    """Processor seconds and requests to reuse 99% of `rows` rows, and the memory of it all."""
    with (
        tempfile.TemporaryDirectory(dir=".") as directory,
        WorkDirectory(Path(directory, "work")) as work,
    ):
        index_id = str(uuid.uuid4())
        state = checks.list_images(PATHS, work)
        images = make_source(state, Path(directory), index_id)
        state.set_options({"index_id": str(uuid.uuid4())})
        matches = work.keep_open(Matches(work.path / REUSE))
        with Arrays(work.path, rows) as arrays:
            figures = asyncio.run(_run(state, arrays, matches, work.path, index_id, images))
        assert state.reused() == images and state.counts().done == rows
    figures["reuse, resident memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return figures


def make_source(listing: State, directory: Path, index_id: str) -> int:
    """Upload the manifest of an index of the listed images without one of NEW; returns its rows."""
    state = State.create(directory / "source.sqlite")
    number = -1
    for split in (0, 1):
        page = []
        for row in listing.pending():
            if row.listed.name.startswith(PATHS[split].prefix):
                number = int(row.listed.name.rpartition("/")[2].partition(".")[0])
                page += [row.listed] if number % NEW != NEW - 1 else []
            if len(page) == 10_000:
                state.add(split, page)
                page = []
        state.add(split, page)
    state.number_rows()
    checksum = 0
    for vector in CONSTANT.vectors:
        checksum = google_crc32c.extend(checksum, vector.tobytes())
    rows = state.counts().images
    for start in range(0, rows, 10_000):
        numbers = range(start, min(start + 10_000, rows))
        state.record(Outcome(row, 0, None, checksum, 64, 48) for row in numbers)
    weights = {"resnet_weights": COMPUTED.resnet_weights, "clip_weights": COMPUTED.clip_weights}
    rest = {"backend": COMPUTED.backend, "precision": COMPUTED.precision, "index_id": index_id}
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


async def _run(
    state: State, arrays: Arrays, matches: Matches, work: Path, index_id: str, images: int
) -> dict[str, float]:
    start = time.process_time()
    async with AsyncStorage(1) as objects:
        precisions = frozenset({COMPUTED.precision})
        reader = SourceReader(objects, BUCKET, work, COMPUTED, precisions, matches)
        source = await reader.index("old", index_id, images)
    matches.match(state.path)
    planned = time.process_time()
    pace = WritePace(UNLIMITED)
    await Copier(state, arrays, [source], matches, BUCKET, pace=pace).run()
    copied = time.process_time()
    embedder = FakeEmbedder(constant=True, batch_size=256, makes_clip_inputs=True)
    pipeline = Pipeline(
        state,
        arrays,
        embedder,
        image_bucket=BUCKET,
        index_bucket=BUCKET,
        decode_workers=default_decode_workers(),
    )
    async with pipeline:
        await pipeline.run()
    stages = {stage.name: float(stage.images) for stage in pipeline.times()}
    return {
        "reuse, planning, CPU": planned - start,
        "reuse, copying, CPU": copied - planned,
        "reuse, images fetched": stages[FETCH],
        "reuse, images in the models": stages[MODELS],
    }
