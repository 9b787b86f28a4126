"""How fast do small objects come and go? `python -m bench.fetch`

Images of some 70 kB from a fast server on this machine, and thumbnails to it, each checked against
its checksum; beside them google-cloud-storage in 16 threads, which the original's gsutil builds on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

import gcs
from bench.measure import interleave, options, photograph, ratio, show, storage_server
from common.names import GsPath
from engine import decode
from storage.async_client import AsyncStorage

THREADS = 16
CONNECTIONS = 64
UNITS = {"rate": "objects/s", "CPU": "ms/object"}


def measured(count: int, function: Callable[[], object]) -> dict[str, float]:
    """Objects a second, and milliseconds of this process's processor time an object."""
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


def fetch(listed: list[gcs.ListedObject]) -> None:
    async def run() -> None:
        async with AsyncStorage(CONNECTIONS) as objects:
            await _at_once(len(listed), lambda i: objects.fetch("bench", listed[i]))

    asyncio.run(run())


def put(count: int, data: bytes) -> None:
    async def run() -> None:
        async with AsyncStorage(CONNECTIONS) as objects:
            await _at_once(count, lambda i: objects.put("bench", f"t/{i}.jpg", data, "image/jpeg"))

    asyncio.run(run())


def fetch_in_threads(listed: list[gcs.ListedObject]) -> None:
    bucket = gcs.make_client().bucket("bench")
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda o: bucket.blob(o.name).download_as_bytes(checksum=None), listed))


def put_in_threads(count: int, data: bytes) -> None:
    bucket = gcs.make_client().bucket("bench")
    with ThreadPoolExecutor(THREADS) as threads:
        list(
            threads.map(
                lambda i: bucket.blob(f"t/{i}.jpg").upload_from_string(data, "image/jpeg"),
                range(count),
            )
        )


@click.command()
@click.option("--objects", "count", default=3000, show_default=True)
@options
def main(count: int, runs: int, json_file: Path | None) -> None:
    """Small objects a second, and the processor time of each."""
    path = photograph(640, 480)
    thumbnail = decode.thumbnail(decode.decode(decode.open_image(path.read_bytes())))
    few = count // 10
    with storage_server(count, [path]):
        client = gcs.make_client()
        listed = [o for page in gcs.list_objects(client, GsPath("bench", "train/")) for o in page]
        results = interleave(
            {
                "fetch": lambda: measured(len(listed), lambda: fetch(listed)),
                "fetch in 16 threads": lambda: measured(
                    few, lambda: fetch_in_threads(listed[:few])
                ),
                "thumbnails": lambda: measured(count, lambda: put(count, thumbnail)),
                "thumbnails in 16 threads": lambda: measured(
                    few, lambda: put_in_threads(few, thumbnail)
                ),
            },
            runs,
            UNITS,
        )
    for one, other in (
        ("fetch", "fetch in 16 threads"),
        ("thumbnails", "thumbnails in 16 threads"),
    ):
        results.append(ratio(results, f"{one} / in threads", f"{one}: rate", f"{other}: rate"))
    question = (
        f"Small objects: {path.stat().st_size / 1000:.0f} kB images fetched, "
        f"{len(thumbnail) / 1000:.0f} kB thumbnails uploaded, one process"
    )
    show(question, results, json_file)


if __name__ == "__main__":
    main()
