"""What does Ray cost on one machine, and what do more workers give? `python -m bench.ray_engine`

Both engines embed the same images with an embedder that sleeps as long as a model would compute.
Rates are counted from the first tenth of the rows on, when every part has started. Then come 1, 2
and 4 embedders with a CPU each, and the rows per second that the driver can write.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import click

from bench.collection.scale import PATHS
from bench.support.measure import Result, options, ratio, show, storage_server
from testing.embedders import CONSTANT, FakeEmbedder
from testing.photographs import photograph
from testing.servers.guarded import guarded

STARTED = 0.1  # of the rows: from there on every part runs
DRIVER_ROWS = 50_000  # 700 MB
PACK_ROWS = 32
UNITS = {"images": "images/s", "CPU": "ms/image"}


def sleeping_embedder(seconds: float, workers: int) -> FakeEmbedder:
    """An embedder that sleeps for each image instead of using the CPU."""
    return FakeEmbedder(
        seconds=seconds, constant=True, workers=workers, batch_size=1, makes_clip_inputs=True
    )


def one_run(setting: dict[str, Any]) -> dict[str, float]:
    """One engine over all rows, in this process: images per second, and CPU time per image."""
    from dataset.arrays import Arrays
    from dataset.work_directory import WorkDirectory
    from engine import checkpoint as recording
    from preflight import checks

    marks: list[tuple[float, float]] = []  # wall clock and processor time, at two rows
    recorded = 0
    done = recording.Recorder.record

    def marking(*args: Any) -> None:
        nonlocal recorded
        done(*args)
        recorded += 1
        if recorded in (start, rows):
            marks.append((time.perf_counter(), processor_time()))

    recording.Recorder.record = marking  # type: ignore
    with (
        tempfile.TemporaryDirectory() as directory,
        WorkDirectory(Path(directory, "work")) as work,
    ):
        state = checks.list_images(PATHS, work)
        state.set_options({"index_id": str(uuid.uuid4())})
        rows = state.counts().images
        start = int(STARTED * rows)
        with Arrays(Path(directory), rows) as arrays:
            (run_on_ray if setting["engine"] == "ray" else run_here)(state, arrays, setting)
        assert state.counts().done == rows
    (begun, used_before), (ended, used) = marks
    count = rows - start
    return {"images": count / (ended - begun), "CPU": (used - used_before) / count * 1000}


def run_here(state: Any, arrays: Any, setting: dict[str, Any]) -> None:
    """The engine of one machine."""
    from engine.checkpoint import Recorder
    from engine.pipeline import Pipeline
    from engine.threads import Job

    async def embed() -> None:
        embedder = sleeping_embedder(setting["seconds"], setting["threads"])
        recorder = Recorder(state, arrays)
        job = Job(
            image_bucket="bench",
            index_bucket="bench",
            index_id=state.index_id,
            max_pixels=embedder.max_pixels,
            with_clip_inputs=not embedder.makes_clip_inputs,
        )
        pipeline = Pipeline(job, embedder, recorder.record, decode_workers=2, in_processes=False)
        async with pipeline:
            await recorder.during(pipeline.run(state.pending(), state.counts().images))

    asyncio.run(embed())


def run_on_ray(state: Any, arrays: Any, setting: dict[str, Any]) -> None:
    """The same by Ray."""
    import ray.cloudpickle

    from engine.checkpoint import Recorder
    from engine.ray.cluster import Cluster, Pool, cpu_pool
    from engine.ray.driver import RayPipeline
    from engine.ray.workers import probe

    for module in ("testing.embedders", __name__):  # workers get the program alone
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    embedders, threads, seconds = setting["embedders"], setting["threads"], setting["seconds"]

    def load() -> FakeEmbedder:
        return sleeping_embedder(seconds, threads)

    with Cluster(None, num_cpus=setting["cpus"]) as cluster:
        pool = cpu_pool([setting["cpus"]])
        if embedders > 1 or threads == 1:
            pool = Pool(embedders, 0.9, 0, calls=2, pack_images=4, pack_bytes=4 << 20)
        pipeline = RayPipeline(
            cluster,
            lambda: pool,
            state,
            Recorder(state, arrays),
            load,
            probe(load),
            image_bucket="bench",
            index_bucket="bench",
        )
        asyncio.run(pipeline.run())


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
    """Rows per second from tables of results to marked rows, a checkpoint every two seconds."""
    from dataset.arrays import Arrays, Embedding
    from dataset.state import TRAIN, State
    from engine.checkpoint import Recorder
    from engine.decode import Embedded
    from engine.ray.tables import read_results, results
    from gcs import ListedObject

    async def take() -> None:
        for start in range(0, DRIVER_ROWS, PACK_ROWS):
            numbers = range(start, min(start + PACK_ROWS, DRIVER_ROWS))
            described = {"size": 1, "width": 1, "height": 1, "is_rotated": False}
            rows = [{"row": n, "name": f"t/{n}.jpg", **described} for n in numbers]
            table = results(rows, [CONSTANT] * len(rows), [0.0] * 8, [])
            begun = time.perf_counter()
            for row, width, height, is_rotated, embedding in read_results(table):
                assert isinstance(embedding, Embedding)
                assert width is not None and height is not None
                embedded = Embedded(
                    embedding=embedding, width=width, height=height, is_rotated=is_rotated
                )
                recorder.record(row, embedded)
            spent.append(time.perf_counter() - begun)
            await asyncio.sleep(0)

    spent: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as directory:
        state = State.create(Path(directory, "state.sqlite"))
        state.add(TRAIN, [ListedObject(f"t/{i}.jpg", 1, 0, 0) for i in range(DRIVER_ROWS)])
        state.number_rows()
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
    ways: dict[str, dict[str, Any]] = {"local": local, "ray": on_ray}
    values: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        for way, setting in ways.items():
            for quantity, value in in_own_process(rows, photo, **setting).items():
                values.setdefault((way, quantity), []).append(value)
        for n in (1, 2, 4):
            scaled = {**on_ray, "threads": 1, "embedders": n, "cpus": n + 1}
            rate = in_own_process(rows // 4 * n, small, **scaled)["images"]
            values.setdefault((f"{n} workers", "images"), []).append(rate)
    results = [
        Result(f"{way}: {quantity}", UNITS[quantity], v) for (way, quantity), v in values.items()
    ]
    results.append(ratio(results, "ray to local", "ray: images", "local: images"))
    for n in (2, 4):
        ideal = ratio(results, "", f"{n} workers: images", "1 workers: images")
        results.append(Result(f"{n} workers, to ideal", "x", [v / n for v in ideal.values]))
    results.append(Result("rows the driver writes", "rows/s", [driver_rate() for _ in range(runs)]))
    show("The engines on one machine, with a model that sleeps", results, json_file)


if __name__ == "__main__":
    main()
