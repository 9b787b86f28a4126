"""How fast does a large array upload? `python -m bench.arrays`

Parallel parts with compose against one stream, on a link where a connection carries at most one
window of 1 MiB a round trip of 50 ms, as TCP does over a distance.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import uuid
from pathlib import Path

import click

import gcs
from bench.measure import interleave, options, photograph, ratio, show, storage_server
from dataset.lists import IndexFile
from storage.uploads import upload_files

WINDOW_KB, ROUND_TRIP_MS = 1024, 50


def upload(path: Path, in_parts: bool) -> dict[str, float]:
    """MB/s of one upload under a new name, verification included."""
    size = path.stat().st_size
    file = IndexFile(path, f"arrays/{uuid.uuid4()}", "application/octet-stream")
    part = (16 << 20) if in_parts else size
    start = time.perf_counter()
    asyncio.run(upload_files(gcs.make_client(), "bench", [file], min_part_bytes=part))
    return {"rate": size / (time.perf_counter() - start) / 1e6}


@click.command()
@click.option("--megabytes", default=256, show_default=True)
@options
def main(megabytes: int, runs: int, json_file: Path | None) -> None:
    """MB/s of one array, in parallel parts and in one stream."""
    server = storage_server(1, [photograph(640, 480)], ROUND_TRIP_MS, WINDOW_KB)
    with server, tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "embeddings.npy")
        path.write_bytes(os.urandom(megabytes << 20))
        ways = {
            "parts": lambda: upload(path, in_parts=True),
            "one stream": lambda: upload(path, in_parts=False),
        }
        results = interleave(ways, runs, {"rate": "MB/s"})
    results.append(ratio(results, "parts / one stream", "parts: rate", "one stream: rate"))
    question = f"An array of {megabytes} MiB over a link of {ROUND_TRIP_MS} ms, 1 MiB a window"
    show(question, results, json_file)


if __name__ == "__main__":
    main()
