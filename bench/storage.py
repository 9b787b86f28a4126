"""How fast do objects move to and from storage? `python -m bench.storage`

Small objects: images of some 70 kB are fetched from a fast server on this machine and thumbnails
are uploaded to it, each checked against its checksum; google-cloud-storage in 16 threads, on which
gsutil builds, does the same for comparison. A large array: parallel parts against one stream, on a
link where a connection carries up to 1 MiB per round trip of 50 ms, as TCP does over a distance.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import click

import gcs
from bench.support.measure import Result, interleave, options, ratio, show, storage_server
from common.files import FileToUpload
from common.names import GsPath
from engine import decode
from storage import uploads
from storage.async_client import AsyncStorage
from storage.listing import listed
from storage.pace import WritePace
from testing.photographs import photograph

THREADS = 16
CONNECTIONS = 64
NO_LIMIT = 1e9  # uploads per second
WINDOW_KB, ROUND_TRIP_MS = 1024, 50
UNITS = {"rate": "objects/s", "CPU": "ms/object", "speed": "MB/s"}


def measured(count: int, function: Callable[[], object]) -> dict[str, float]:
    """Objects per second, and milliseconds of this process's CPU time per object."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    seconds = time.perf_counter() - wall
    return {"rate": count / seconds, "CPU": (time.process_time() - processor) / count * 1000}


async def _at_once(count: int, one: Callable[[int], Awaitable[object]]) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


def fetch(images: list[gcs.ListedObject]) -> None:
    async def run() -> None:
        async with AsyncStorage(CONNECTIONS) as objects:
            await _at_once(len(images), lambda i: objects.fetch("bench", images[i]))

    asyncio.run(run())


def put(count: int, data: bytes) -> None:
    async def run() -> None:
        async with AsyncStorage(CONNECTIONS, pace=WritePace(NO_LIMIT)) as objects:
            await _at_once(count, lambda i: objects.put("bench", f"t/{i}.jpg", data, "image/jpeg"))

    asyncio.run(run())


def fetch_in_threads(images: list[gcs.ListedObject]) -> None:
    bucket = gcs.make_client().bucket("bench")
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda o: bucket.blob(o.name).download_as_bytes(checksum=None), images))


def put_in_threads(count: int, data: bytes) -> None:
    bucket = gcs.make_client().bucket("bench")
    with ThreadPoolExecutor(THREADS) as threads:
        list(
            threads.map(
                lambda i: bucket.blob(f"t/{i}.jpg").upload_from_string(data, "image/jpeg"),
                range(count),
            )
        )


def small_objects(count: int, runs: int) -> list[Result]:
    """Rates and CPU time of fetches and uploads, ours and in threads."""
    path = photograph(640, 480)
    thumbnail = decode.thumbnail(
        decode.small_copy(decode.decode(decode.open_image(path.read_bytes())))
    )
    few = max(THREADS, count // 10)
    with storage_server(count, [path]):
        images = [found for page in listed(GsPath("bench", "train/")) for found in page]
        some = images[:few]
        ways = {
            "fetch": lambda: measured(len(images), lambda: fetch(images)),
            "fetch in threads": lambda: measured(len(some), lambda: fetch_in_threads(some)),
            "upload": lambda: measured(count, lambda: put(count, thumbnail)),
            "upload in threads": lambda: measured(few, lambda: put_in_threads(few, thumbnail)),
        }
        results = interleave(ways, runs, UNITS)
    for name in ("fetch", "upload"):
        rates = f"{name}: rate", f"{name} in threads: rate"
        results.append(ratio(results, f"{name} / {name} in threads", *rates))
    return results


def upload_array(path: Path, in_parts: bool) -> dict[str, float]:
    """MB/s of one upload under a new name, verification included."""
    size = path.stat().st_size
    file = FileToUpload(path, f"arrays/{uuid.uuid4()}", "application/octet-stream")
    part = uploads.MIN_PART_BYTES if in_parts else size
    start = time.perf_counter()
    client = gcs.make_client()
    with mock.patch.object(uploads, "MIN_PART_BYTES", part):
        asyncio.run(uploads.upload_files(client, "bench", [file]))
    return {"speed": size / (time.perf_counter() - start) / 1e6}


def large_array(megabytes: int, runs: int) -> list[Result]:
    """MB/s of one array over the slow link, in parts and in one stream."""
    server = storage_server(1, [photograph(640, 480)], ROUND_TRIP_MS, WINDOW_KB)
    with server, tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "embeddings.npy")
        path.write_bytes(os.urandom(megabytes << 20))
        ways = {
            "array in parts": lambda: upload_array(path, in_parts=True),
            "array in one stream": lambda: upload_array(path, in_parts=False),
        }
        results = interleave(ways, runs, UNITS)
    speeds = "array in parts: speed", "array in one stream: speed"
    return [*results, ratio(results, "parts / one stream", *speeds)]


@click.command()
@click.option("--objects", default=3000, show_default=True, help="Small objects per run.")
@click.option("--megabytes", default=256, show_default=True, help="Size of the large array.")
@options
def main(objects: int, megabytes: int, runs: int, json_file: Path | None) -> None:
    """Rates of small objects, and the speed of a large array over a slow link."""
    results = small_objects(objects, runs) + large_array(megabytes, runs)
    question = f"{objects:,} small objects, one process; {megabytes} MiB with 1 MiB per 50 ms"
    show(question, results, json_file)


if __name__ == "__main__":
    main()
