"""How fast do files become model inputs and thumbnails? `python -m bench.decode`

Decoding once for all uses against the original's three times, on all cores.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from bench.measure import Result, interleave, options, photograph, ratio, show
from common.memory import keep_freed_memory
from engine import decode

SIZES = ((640, 480), (1280, 720), (1920, 1080))


def once(data: bytes) -> None:
    """As pipeline.py does for a CPU."""
    decode.prepare(decode.open_image(data))


def for_a_gpu(data: bytes) -> None:
    """As pipeline.py does for a GPU, which makes CLIP's input by itself."""
    decode.prepare(decode.open_image(data), with_clip_input=False)


def three_times(data: bytes) -> None:
    """As the original does: each of its three stages opens the file again."""
    np.asarray(decode.decode(decode.open_image(data)))
    decode.clip_input(decode.decode(decode.open_image(data)))
    decode.thumbnail(decode.decode(decode.open_image(data)))


def rate(function: Callable[[bytes], None], files: list[bytes], count: int) -> dict[str, float]:
    """Images a second on all cores; the files take turns."""
    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(function, itertools.islice(itertools.cycle(files), count)))
    return {"rate": count / (time.perf_counter() - start)}


@click.command()
@click.option("--megapixels", default=40, show_default=True, help="In all, of each size a run.")
@options
def main(megapixels: int, runs: int, json_file: Path | None) -> None:
    """Images a second, decoded, scaled for CLIP and made into a thumbnail."""
    keep_freed_memory()
    results: list[Result] = []
    for width, height in SIZES:
        data = photograph(width, height).read_bytes()
        count = max(8, int(megapixels * 1e6 / (width * height)))
        size = f"{width}x{height}"

        def run(
            function: Callable[[bytes], None], data: bytes = data, count: int = count
        ) -> Callable[[], dict[str, float]]:
            return lambda: rate(function, [data], count)

        ways = {f"{size} once": run(once), f"{size} three times": run(three_times)}
        results += interleave(ways, runs, {"rate": "images/s"})
        names = f"{size} once: rate", f"{size} three times: rate"
        results.append(ratio(results, f"{size} once / three times", *names))
    show("From a JPEG file to model inputs and a thumbnail, all cores", results, json_file)


if __name__ == "__main__":
    main()
