"""How fast is everything but the models? `python -m bench.pipeline`

The whole stream with a trivial embedder: fetched, decoded, thumbnails uploaded, rows written. That
is the rate at which this machine can feed a GPU; beside it, decoding alone on the same cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from bench.decode import SIZES, for_a_gpu, rate
from bench.measure import Result, interleave, options, photograph, ratio, show, storage_server
from bench.scale import PATHS, embed_all
from common.memory import keep_freed_memory
from engine.local import WINDOW_GPU
from preflight import checks

MIXED_SIZES = [(400 + 24 * i, 700 - 18 * i) for i in range(20)]
UNITS = {"rate": "images/s", "CPU": "ms an image"}


def stream(files: list[Path], count: int) -> dict[str, float]:
    """Images a second of the stream, and processor time an image in this process."""
    with storage_server(count, files), tempfile.TemporaryDirectory() as directory:
        state = checks.list_images(PATHS, Path(directory, "state.sqlite"))
        figures = embed_all(state, WINDOW_GPU)
        state.close()
    return {"rate": 1000 / figures["a row"], "CPU": figures["a row, CPU"]}


def ways(sizes: list[tuple[int, int]], count: int) -> dict[str, Callable[[], dict[str, float]]]:
    files = [photograph(*size) for size in sizes]
    data = [file.read_bytes() for file in files]
    name = f"{sizes[0][0]}x{sizes[0][1]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    return {
        f"{name} stream": lambda: stream(files, count),
        f"{name} decode": lambda: rate(for_a_gpu, data, count),
    }


@click.command()
@click.option("--megapixels", default=100, show_default=True, help="In all, of each size a run.")
@options
def main(megapixels: int, runs: int, json_file: Path | None) -> None:
    """Images a second of the stream without models, and of decoding alone."""
    keep_freed_memory()
    results: list[Result] = []
    for sizes in (*([size] for size in SIZES), MIXED_SIZES):
        pixels = sum(width * height for width, height in sizes) / len(sizes)
        both = ways(sizes, max(20, int(megapixels * 1e6 / pixels)))
        results += interleave(both, runs, UNITS)
        names = list(both)
        title = f"{names[0]} / {names[1]}"
        results.append(ratio(results, title, f"{names[0]}: rate", f"{names[1]}: rate"))
    show("The stream with a trivial embedder, and decoding alone, all cores", results, json_file)


if __name__ == "__main__":
    main()
