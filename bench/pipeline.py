"""How fast is everything but the models? `python -m bench.pipeline`

The whole stream with an embedder that does nothing: images are fetched and decoded, thumbnails
uploaded, rows written. This is the rate at which this machine can feed a GPU. Beside it is decoding
alone on the same cores: for a GPU, which makes CLIP's input itself, and for a CPU. The share of
quality (dataset/quality.py) is that of the CPU time of decoding for a CPU, in one thread.

With feeders, the CPU time is that of the process with the models, which should leave the
interpreter to the launches: up to MAIN_MS per image of 640x480.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import click
from PIL import Image

from bench.collection.scale import PATHS, embed_all
from bench.support.measure import Result, interleave, options, ratio, show, storage_server
from common.options import default_decode_workers
from dataset.quality import Quality
from dataset.quality import measure as quality_of
from dataset.work_directory import WorkDirectory
from engine import decode
from engine.pipeline import WINDOW_GPU
from preflight import checks
from testing.photographs import photograph

SIZES = ((640, 480), (1280, 720), (1920, 1080))
MIXED_SIZES = [(400 + 24 * i, 700 - 18 * i) for i in range(20)]
FED_SIZE = (640, 480)
FED_IMAGES = 4  # times as many: feeders take half a second to start
MAIN_MS = 0.3
UNITS = {"rate": "images/s", "CPU": "ms/image", "share": "%"}


def decode_all(files: list[bytes], count: int, with_clip_input: bool) -> dict[str, float]:
    """Decoded images per second on all cores; the files take turns."""

    def one(data: bytes) -> None:
        decode.prepare(decode.open_image(data), with_clip_input)

    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(one, itertools.islice(itertools.cycle(files), count)))
    return {"rate": count / (time.perf_counter() - start)}


def quality(files: list[bytes], count: int) -> dict[str, float]:
    """What brightness, contrast, sharpness and colourfulness take of decoding."""
    seconds = 0.0

    def measure(small: Image.Image) -> Quality:
        nonlocal seconds
        start = time.thread_time()
        measured = quality_of(small)
        seconds += time.thread_time() - start
        return measured

    start = time.thread_time()
    with mock.patch.object(decode, "measure", measure):
        for data in itertools.islice(itertools.cycle(files), count):
            decode.prepare(decode.open_image(data))
    return {"share": 100 * seconds / (time.thread_time() - start)}


def stream(files: list[Path], count: int, feeders: int = 0) -> dict[str, float]:
    """Images per second of the stream, and CPU time per image in this process."""
    with (
        storage_server(count, files),
        tempfile.TemporaryDirectory() as directory,
        WorkDirectory(Path(directory, "work")) as work,
    ):
        figures = embed_all(work.draft(checks.list_images(PATHS, work)), WINDOW_GPU, feeders)
    return {"rate": 1000 / figures["per row"], "CPU": figures["per row, CPU"]}


def ways(sizes: list[tuple[int, int]], count: int) -> dict[str, Callable[[], dict[str, float]]]:
    """What is compared for images of these sizes, in turn."""
    files = [photograph(*size) for size in sizes]
    data = [file.read_bytes() for file in files]
    name = f"{sizes[0][0]}x{sizes[0][1]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    return {
        f"{name} stream": lambda: stream(files, count),
        f"{name} decode for a GPU": lambda: decode_all(data, count, with_clip_input=False),
        f"{name} decode for a CPU": lambda: decode_all(data, count, with_clip_input=True),
        f"{name} quality": lambda: quality(data, count),
    }


def fed(count: int, runs: int) -> list[Result]:
    """The stream of FED_SIZE with one feeder, with two and with all, beside that in threads."""
    files, name = [photograph(*FED_SIZE)], f"{FED_SIZE[0]}x{FED_SIZE[1]}"
    numbers = sorted({1, 2, default_decode_workers()})
    results = interleave(
        {
            f"{name} stream, {number} feeders": partial(
                stream, files, FED_IMAGES * count, feeders=number
            )
            for number in numbers
        },
        runs,
        UNITS,
    )
    limit = Result(f"{name}, feeders: limit of CPU", UNITS["CPU"], [MAIN_MS])
    return [*results, limit]


@click.command()
@click.option(
    "--megapixels", default=100, show_default=True, help="Per run and size, all images together."
)
@options
def main(megapixels: int, runs: int, json_file: Path | None) -> None:
    """Images per second of the stream without models, and of decoding alone."""
    results: list[Result] = []
    for sizes in (*([size] for size in SIZES), MIXED_SIZES):
        pixels = sum(width * height for width, height in sizes) / len(sizes)
        compared = ways(sizes, max(20, int(megapixels * 1e6 / pixels)))
        results += interleave(compared, runs, UNITS)
        one, other, *_ = compared
        results.append(ratio(results, f"{one} / {other}", f"{one}: rate", f"{other}: rate"))
    results += fed(max(20, int(megapixels * 1e6 / (FED_SIZE[0] * FED_SIZE[1]))), runs)
    show("The stream without models, and decoding alone, all cores", results, json_file)


if __name__ == "__main__":
    main()
