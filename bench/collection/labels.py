"""What does a large label file cost? `python -m bench.collection.labels`

ingest_labels.py reads, checks and sends a file of many images with three annotations each to a
server of generation B that only counts them. A dry run only asks that server what it has. Parsing
the whole file at once took 11 s and 1.35 GB for 1,000,000 images.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
from aiohttp import web

from bench.support.measure import interleave, options, show
from common.program import ROOT
from testing.servers.guarded import guarded

IMAGES: web.AppKey[int] = web.AppKey("images", int)
UNITS = {"processor time": "s", "time": "s", "memory": "GB"}


def three_annotations(number: int, boxes: bool) -> list[object]:
    """Three annotations of image `number`."""
    if not boxes:
        return [
            f"category {number % 80}",
            {"category": f"colour {number % 11}", "value": "NEGATIVE"},
            {"category": "seen", "mode": "far away"},
        ]
    corners = {"x1": 1.5, "y1": 2.25, "x2": 100 + number % 500, "y2": 99.5}
    return [
        {"category": f"category {(number + n) % 80}", "is_box": True, **corners} for n in range(3)
    ]


def image_name(number: int) -> str:
    """The identifier of image `number`, which is in row `number` of the index."""
    return f"image-{number:09}"


def write_labels(path: Path, images: int, boxes: bool) -> None:
    """A label file in Forager's format."""
    with open(path, "w") as file:
        for number in range(images):
            name = json.dumps(f"train/part-{number % 100:03}/{image_name(number)}.jpg")
            start = ",\n" if number else "{"
            file.write(f"{start}{name}: {json.dumps(three_annotations(number, boxes))}")
        file.write("}\n")


async def answer(request: web.Request) -> web.Response:
    """Answer as a server of generation B that has labelled training images but keeps nothing.

    The same server is the bucket with the lists of the index.
    """
    images = request.app[IMAGES]
    if "identifiers.json" in request.path:
        known = 0 if "val_" in request.path else images
        return web.json_response({image_name(number): number for number in range(known)})
    if "manifest" in request.path:
        return web.Response(status=404)
    if "get_category_counts" in request.path:
        return web.json_response({"category 0": {"POSITIVE": images}})
    if request.method == "GET":
        return web.json_response({"index_id": "i", "num_train": images, "num_val": 0})
    if request.method == "OPTIONS":
        return web.json_response({})
    payload = await request.json()
    stored = payload.get("annotations", payload.get("identifiers"))
    return web.json_response({"created": len(stored)})


@contextlib.contextmanager
def counting_server(images: int) -> Iterator[str]:
    """The address of such a server, in a thread of this process."""
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 30)
    app[IMAGES] = images
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run(server: str, label_file: Path, *options: str) -> dict[str, float]:
    """One run of the command in a process of its own."""
    command = [sys.executable, str(ROOT / "ingest_labels.py"), "bench", str(label_file), *options]
    env = {**os.environ, "STORAGE_EMULATOR_HOST": server, "SERVER_URL": server}
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        command += ["--user", "ann@example.org", "--work_dir", directory]
        process = subprocess.Popen(**guarded(command), env=env, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            err.seek(0)
            raise RuntimeError(err.read().decode())
    return {
        "processor time": usage.ru_utime + usage.ru_stime,
        "time": time.perf_counter() - start,
        "memory": usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6),
    }


@click.command()
@click.option("--images", default=1_000_000, show_default=True)
@options
def main(images: int, runs: int, json_file: Path | None) -> None:
    """Processor time, time and memory of ingest_labels.py for labels and for boxes."""
    with counting_server(images) as server, tempfile.TemporaryDirectory() as directory:
        files = {kind: Path(directory, kind) for kind in ("labels", "boxes")}
        for kind, path in files.items():
            write_labels(path, images, boxes=kind == "boxes")
        ways = {kind: functools.partial(run, server, path) for kind, path in files.items()}
        ways["dry run"] = functools.partial(run, server, files["labels"], "--dry_run")
        results = interleave(ways, runs, UNITS)
    show(f"{images:,} images with 3 annotations each", results, json_file)


if __name__ == "__main__":
    main()
