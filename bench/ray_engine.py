"""What does Ray cost on one machine, and what do more workers give? `python -m bench.ray_engine`

Both engines embed the same images with an embedder that sleeps as long as a model would compute.
Rates are counted from the first tenth of the rows on, when every part has started. Then come 1, 2
and 4 actors with a CPU each, and the rows per second that the driver can write. "object store" is
what all processes put into Ray's object store, which crosses the network in a cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.collection.scale import PATHS, embed_by, job_of
from bench.support.measure import Result, interleave, options, ratio, show, storage_server
from dataset.arrays import Embedding
from testing.embedders import CONSTANT, FakeEmbedder
from testing.photographs import photograph
from testing.servers.guarded import guarded

STARTED = 0.1  # of the rows: from there on every part runs
DRIVER_ROWS = 50_000  # 700 MB
BLOCK_ROWS = 32
UNITS = {"images": "images/s", "CPU": "ms/image", "object store": "kB/image"}


class SleepingEmbedder(FakeEmbedder):
    """Sleeps for each image instead of using the CPU. Each has vectors of its own, as in life."""

    def __init__(self, seconds: float, workers: int) -> None:
        super().__init__(seconds=seconds, workers=workers, batch_size=1, makes_clip_inputs=True)

    def _embedding(self, pixels: np.ndarray) -> Embedding:
        return Embedding([vector.copy() for vector in CONSTANT.vectors], 0)


def one_run(setting: dict[str, Any]) -> dict[str, float]:
    """One engine over all rows, in this process: images per second, and CPU time per image."""
    from dataset.arrays import Arrays
    from dataset.work_directory import WorkDirectory
    from engine import checkpoint as recording
    from preflight import checks

    marks: list[tuple[float, float]] = []  # wall clock and processor time, at two rows
    recorded = 0
    record = recording.Recorder.record

    def marking(*args: Any) -> None:
        nonlocal recorded
        record(*args)
        recorded += 1
        if recorded in (start, rows):
            marks.append((time.perf_counter(), processor_time()))

    recording.Recorder.record = marking  # type: ignore
    with (
        tempfile.TemporaryDirectory() as directory,
        WorkDirectory(Path(directory, "work")) as work,
    ):
        state = work.draft(checks.list_images(PATHS, work))
        state.set_options({"index_id": str(uuid.uuid4())})
        rows = state.counts().images
        start = int(STARTED * rows)
        with Arrays(Path(directory), rows) as arrays:
            stored = (run_on_ray if setting["engine"] == "ray" else run_here)(
                state, arrays, setting
            )
        assert state.counts().done == rows
    (begun, used_before), (ended, used) = marks
    count = rows - start
    found = {"images": count / (ended - begun), "CPU": (used - used_before) / count * 1000}
    return found | ({"object store": stored / rows / 1000} if stored else {})


def run_here(state: Any, arrays: Any, setting: dict[str, Any]) -> int:
    """The engine of one machine. Returns 0: it has no object store."""
    embedder = SleepingEmbedder(setting["seconds"], setting["threads"])
    asyncio.run(embed_by(embedder, state, arrays, workers=2))
    return 0


def run_on_ray(state: Any, arrays: Any, setting: dict[str, Any]) -> int:
    """The same by Ray. Returns the bytes that went into the object store."""
    import ray.cloudpickle
    import ray.data

    from engine.checkpoint import Recorder
    from engine.ray.cluster import Cluster
    from engine.ray.driver import RayPipeline

    for module in ("testing.embedders", __name__):  # workers get the program alone
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    embedders, threads, seconds = setting["embedders"], setting["threads"], setting["seconds"]

    def load() -> SleepingEmbedder:
        return SleepingEmbedder(seconds, threads)

    datasets = []
    iterate = ray.data.Dataset.iter_batches

    def noting(dataset: Any, **how: Any) -> Any:
        datasets.append(dataset)
        return iterate(dataset, **how)

    ray.data.Dataset.iter_batches = noting
    with Cluster(None, num_cpus=setting["cpus"]) as cluster:
        pool = cluster.pool("cpu")
        if threads == 1:
            pool = pool._replace(size=embedders, cpus=1)
        pipeline = RayPipeline(
            cluster=cluster,
            choose_pool=lambda: pool,
            state=state,
            recorder=Recorder(state, arrays),
            load=load,
            job=job_of(state),
        )
        asyncio.run(pipeline.run())
    return sum(stored_bytes(dataset.stats()) for dataset in datasets)


def stored_bytes(stats: str) -> int:
    """The bytes of the blocks that all stages of a dataset made, from Ray's text about it."""
    totals = re.findall(r"Output size bytes per block: .* (\d+) total", stats)
    return sum(map(int, totals))


def processor_time() -> float:
    """Seconds that this process and all below it have used so far."""
    parents, used = {}, {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(directory.name)] = int(fields[1])
        used[int(directory.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    total = 0.0
    for process in parents:
        ancestor = process
        while ancestor not in (0, os.getpid()):
            ancestor = parents.get(ancestor, 0)
        total += used[process] if ancestor else 0.0
    return total


def in_own_process(rows: int, image: Path, **setting: Any) -> dict[str, float]:
    """One run in a process of its own, before a storage server of its own."""
    with storage_server(rows, [image]):
        command = [sys.executable, "-m", "bench.ray_engine", "--one", json.dumps(setting)]
        run = subprocess.run(**guarded(command), capture_output=True, text=True)
    if run.returncode:
        raise click.ClickException(run.stderr)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def driver_rate() -> float:
    """Rows per second from pickled results to marked rows, a checkpoint every two seconds."""
    from dataset.arrays import Arrays
    from dataset.listing import Listing, Split
    from dataset.quality import Quality
    from dataset.state import Row, State
    from engine.checkpoint import Recorder
    from engine.decode import About, Embedded
    from engine.ray.worker import BlockResult
    from gcs import ListedObject

    async def take() -> None:
        embedded = Embedded(CONSTANT, About(1, 1, False, 1, Quality(0, 0, 0, 0)))
        for start in range(0, DRIVER_ROWS, BLOCK_ROWS):
            numbers = range(start, min(start + BLOCK_ROWS, DRIVER_ROWS))
            rows = [Row(n, ListedObject(f"t/{n}.jpg", 1, 0, 0)) for n in numbers]
            # Each image has vectors of its own, which pickle would otherwise store once.
            results = [(row, pickle.loads(pickle.dumps(embedded))) for row in rows]
            data = pickle.dumps(BlockResult(start, results, "", []))
            begun = time.perf_counter()
            for row, result in pickle.loads(data).results:
                recorder.record(row, result)
            spent.append(time.perf_counter() - begun)
            await asyncio.sleep(0)

    spent: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as directory:
        listing = Listing(Path(directory, "listing.sqlite"))
        images = (ListedObject(f"t/{i}.jpg", 1, 0, 0) for i in range(DRIVER_ROWS))
        listing.add(Split.TRAIN, images)
        state = State.create(Path(directory, "state.sqlite"))
        state.take(listing.path)
        listing.close()
        with Arrays(Path(directory), DRIVER_ROWS) as arrays:
            recorder = Recorder(state, arrays)
            asyncio.run(recorder.during(take()))
            begun = time.perf_counter()
            recorder.commit()
            spent.append(time.perf_counter() - begun)
        assert state.counts().done == DRIVER_ROWS
        state.close()
    return DRIVER_ROWS / sum(spent)


@click.command()
@click.option("--rows", default=2_000, show_default=True)
@click.option("--seconds", default=0.2, show_default=True, help="Sleep per image.")
@click.option("--one", hidden=True, help="The setting of one run in this process, as JSON.")
@options
def main(rows: int, seconds: float, one: str | None, runs: int, json_file: Path) -> None:
    """Compare the engines on one machine, and Ray with itself on more workers."""
    if one:
        click.echo(json.dumps(one_run(json.loads(one))))
        return
    photo, small = photograph(640, 480), photograph(64, 48)
    local = {"engine": "local", "seconds": seconds, "threads": 2}
    on_ray = {**local, "engine": "ray", "embedders": 1, "cpus": 2}
    ways = {
        "local": partial(in_own_process, rows, photo, **local),
        "ray": partial(in_own_process, rows, photo, **on_ray),
    }
    for n in (1, 2, 4):
        scaled = {**on_ray, "threads": 1, "embedders": n, "cpus": n + 1}
        ways[f"{n} workers"] = partial(in_own_process, rows // 4 * n, small, **scaled)
    results = interleave(ways, runs, UNITS)
    results.append(ratio(results, "ray to local", "ray: images", "local: images"))
    for n in (2, 4):
        ideal = ratio(results, "", f"{n} workers: images", "1 workers: images")
        results.append(Result(f"{n} workers, to ideal", "x", [v / n for v in ideal.values]))
    results.append(Result("rows the driver writes", "rows/s", [driver_rate() for _ in range(runs)]))
    show("The engines on one machine, with a model that sleeps", results, json_file)


if __name__ == "__main__":
    main()
