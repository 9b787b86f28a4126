"""Is the code for GPUs right, and is the GPU busy? `python -m bench.gpu`

The first hour on a GPU in one command, in some 10 minutes: the fused operators, the precision, what
new shapes and launches cost, canvases, feeding, the whole ingest, memory. Each line has its limit
beside it, where there is one. With `--device cpu` a small version runs, to test the command itself.

It needs nothing but requirements.txt and has never run on a GPU: until it has, no figure is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from bench.end_to_end import forager, run_ingest
from bench.model import matrix_rate, resnet_operations
from bench.pipeline import MAIN_MS, stream
from bench.schedule import coco_sizes
from bench.support.device import REFERENCE, Bench, Line, Pixels, embed, model_rate, smooth
from bench.support.measure import machine, storage_server
from common.precision import Precision
from common.program import ROOT
from common.terminal import table
from dataset.arrays import DIMENSIONS
from embeddings import HEADROOM, sample_image
from engine import decode
from models import devices, resnet
from testing.photographs import encoded
from weights.resnet50 import read_resnet_weights

RESULTS = ROOT / "bench" / "results"
SIZES = ((480, 640), (720, 1280), (1080, 1920))  # height, width
SMALL = (96, 128)  # on a CPU


def convolutions(bench: Bench) -> list[Line]:
    """Every kind of convolution, with NaN in freed memory; infinite inputs; headroom."""
    arrays = read_resnet_weights(bench.weights / "R-50.pkl")
    lines, hidden = [], 0

    def feed_infinity(convolution: resnet.Convolution) -> resnet.Convolution:
        nonlocal hidden
        weight = convolution.weight
        x = torch.full((1, weight.shape[1], 9, 9), float("inf"), device=weight.device)
        x = x.to(weight.dtype, memory_format=torch.channels_last)
        if convolution.relu and not convolution.adds:
            hidden += bool(torch.isfinite(convolution(x)).all())
        return convolution

    with torch.inference_mode():
        for name in [Precision.FLOAT32] if bench.small else Precision:
            plain = resnet.build_resnet(arrays, bench.device, devices.DTYPES[name])
            model, refused = resnet.with_operator(plain, resnet.fused_operator(bench.device))
            kinds = f"{name}: kinds that fail ({', '.join(refused)})"
            lines.append(Line(kinds, len(refused), limit="<= 0"))
            hidden = 0
            model.with_convolutions(feed_infinity)
            lines.append(Line(f"{name}: convolutions that turn infinity into numbers", hidden))
        exact = resnet.build_resnet(arrays, bench.device, torch.float32)
        largest = resnet.largest_activation(exact, sample_image().to(bench.device))
    limit = torch.finfo(torch.float16).max / HEADROOM
    return [*lines, Line("largest activation", largest, limit=f"<= {limit:.0f}")]


def precision(bench: Bench) -> list[Line]:
    """The reference photographs against what the original packages computed."""
    some = slice(0, None, 4 if bench.small else 1)
    names = json.loads((REFERENCE / "expected" / "names.json").read_text())[some]
    files = [(REFERENCE / "images" / name).read_bytes() for name in names]
    prepared = [decode.prepare(decode.open_image(data)) for data in files]
    images, made = [image.pixels for image in prepared], not bench.small
    inputs = [None if made else image.clip_input for image in prepared]
    found, lines = embed(bench.embedder, images, inputs), []
    for place, name in enumerate(DIMENSIONS):
        expected = np.load(REFERENCE / "expected" / f"{name}.npy")[some]
        rows = np.stack([embedding.vectors[place] for embedding in found])
        cosine = float((rows * expected).sum(1).min())
        lines.append(Line(f"smallest cosine, {name}", cosine, limit=">= 0.9999"))
    return lines


def shapes(bench: Bench) -> list[Line]:
    """What the first pass of a new shape costs, and what it leaves in main memory."""
    count = 3 if bench.small else 30
    images = [bench.noise((64 * (3 + i // 6), 64 * (3 + i % 6)))[0] for i in range(count)]

    def run(image: Pixels) -> None:
        bench.embedder.start([image], [None])()

    run(bench.noise((100, 100))[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = [bench.seconds(partial(run, image)) for image in images]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    second = [bench.seconds(partial(run, image)) for image in images]
    return [
        Line("a new shape, first pass", 1000 * float(np.median(first)), "ms"),
        Line("the same, second pass", 1000 * float(np.median(second)), "ms"),
        Line("main memory per new shape", (after - before) / count / 1000, "MB"),
    ]


def launches(bench: Bench) -> list[Line]:
    """Time to launch a batch and to compute it; the launch beside threads that decode."""
    lines, size = [], SMALL if bench.small else SIZES[0]

    def timed(images: list[Pixels]) -> tuple[float, float]:
        """Seconds to launch a batch, and to have its numbers."""
        start = time.perf_counter()
        finish = bench.embedder.start(images, [None] * len(images))
        launched = time.perf_counter() - start
        finish()
        return launched, time.perf_counter() - start

    for n in (1, 2) if bench.small else (1, 4, 16, 32, 64):
        images = bench.noise(size, n)
        timed(images)
        launched, seconds = timed(images)
        lines.append(Line(f"launch of {n} images", 1000 * launched, "ms"))
        lines.append(Line(f"batch of {n} images", n / seconds, "images/s"))
    images = bench.noise(size, 1 if bench.small else 32)
    data = encoded(Image.fromarray(images[0]))
    for threads in (0, 1) if bench.small else (0, 8, 24):
        with busy_threads(threads, lambda: decode.prepare(decode.open_image(data), False)):
            launched, _ = timed(images)
        lines.append(Line(f"launch beside {threads} decoding threads", 1000 * launched, "ms"))
    return lines


@contextlib.contextmanager
def busy_threads(count: int, work: Callable[[], object]) -> Iterator[None]:
    """Threads that do this work again and again within the `with` block."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(max(1, count)) as pool:
        for _ in range(count):
            pool.submit(run)
        try:
            yield
        finally:
            stop.set()


def models(bench: Bench) -> list[Line]:
    """The models alone, at three sizes and at COCO's, and the share of the matrix rate."""
    lines = []
    best = matrix_rate(bench.device, bench.embedder.dtype, devices.cores())
    for height, width in (SMALL,) if bench.small else SIZES:
        rate = model_rate(bench, bench.noise((height, width), 2 if bench.small else 256), 1)
        lines.append(Line(f"models at {width}x{height}", rate, "images/s"))
        share = rate * resnet_operations(height, width) / best
        lines.append(Line(f"models at {width}x{height}, of the matrix rate", share))
    images = [bench.noise(size)[0] for size in coco_sizes(2 if bench.small else 1000)]
    return [*lines, Line("models at COCO's sizes", model_rate(bench, images, 1), "images/s")]


def feeding(bench: Bench) -> list[Line]:
    """Everything but the models, by the number of feeders; what is left to this process."""
    lines, feeders = [], 1
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "640x480.jpg")
        file.write_bytes(encoded(Image.fromarray(smooth(480, 640)), quality=90))
        while feeders <= (1 if bench.small else os.cpu_count() or 1):
            # Long enough that their start, half a second, counts little.
            found = stream([file], 20 if bench.small else 600 * feeders, feeders)
            lines.append(Line(f"feeding by {feeders} processes", found["rate"], "images/s"))
            feeders *= 2
    limit = "" if bench.small else f"<= {MAIN_MS}"
    return [*lines, Line("CPU time in this process per image", found["CPU"], "ms", limit)]


def ingest(bench: Bench) -> list[Line]:
    """The whole ingest against the models alone."""
    drawn = coco_sizes(3 if bench.small else 300)
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        for name, sizes in (("640x480", [(480, 640)]), ("COCO's sizes", drawn)):
            if bench.small:
                sizes = [(height // 8, width // 8) for height, width in sizes]
            images = [smooth(*size) for size in sizes]
            files = [Path(directory, f"{place}.jpg") for place in range(len(images))]
            for file, image in zip(files, images, strict=True):
                file.write_bytes(encoded(Image.fromarray(image), quality=90))
            repeated = (images * 512)[: 4 if bench.small else 512]
            alone = model_rate(bench, repeated, 1)
            # Long enough that loading the models counts little.
            count = 6 if bench.small else int(90 * alone)
            with storage_server(count, files), forager() as server:
                found = run_ingest(server, count, str(bench.device))
            lines.append(Line(f"ingest of {name}", found["embedding"], "images/s"))
            limit = "" if bench.small else ">= 0.9"
            lines.append(
                Line(f"ingest of {name} / models alone", found["embedding"] / alone, "x", limit)
            )
    return lines


def memory(bench: Bench) -> list[Line]:
    """Bytes per pixel at the peak; a batch while nearly all memory is taken."""
    images = bench.noise((480, 640), 1 if bench.small else 32)
    if bench.small:
        bench.embedder.start(images, [None])()
        return []
    torch.cuda.synchronize(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    bench.embedder.start(images, [None] * 32)()
    peak = torch.cuda.max_memory_allocated(bench.device) - before
    bound = devices.VALUES_PER_PIXEL * bench.embedder.dtype.itemsize
    per_pixel = peak / (32 * 512 * 640)
    lines = [Line("bytes per pixel at the peak", per_pixel, limit=f"<= {bound}")]
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(bench.device)
    taken = torch.empty(max(0, free - (256 << 20)), dtype=torch.uint8, device=bench.device)
    done = bench.embedder.start(images, [None] * 32)()
    del taken
    finite = all(np.isfinite(vector).all() for image in done for vector in image.vectors)
    return [*lines, Line("a batch beside a full memory is right", float(finite), limit=">= 1")]


PARTS: dict[str, Callable[[Bench], list[Line]]] = {
    part.__name__: part
    for part in (convolutions, precision, shapes, launches, models, feeding, ingest, memory)
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--device", default="auto", show_default=True, help="See ingest.py.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="Where to write the results.  [default: bench/results/DEVICE.json]",
)
def main(parts: tuple[str, ...], device: str, json_file: Path | None) -> None:
    """Measure all that concerns a GPU, or the PARTS that are named.

    \b
    Example:
      python -m bench.gpu convolutions precision
    """
    if device == "auto" and not torch.cuda.is_available():
        raise click.ClickException(f"{devices.why_no_gpu()} `--device cpu` runs a small version.")
    bench = Bench(device)
    lines = []
    for name in parts or PARTS:
        start = time.perf_counter()
        found = PARTS[name](bench)
        seconds = Line(f"{name}: time of this part", time.perf_counter() - start, "s")
        rows = [
            (line.name, line.unit, f"{line.value:,.5g}", line.limit, line.verdict())
            for line in (*found, seconds)
        ]
        click.echo(f"\n{name}: {(PARTS[name].__doc__ or '').strip()}")
        click.echo(table(("what", "unit", "value", "limit", ""), rows))
        lines += found
    kind = machine().get("gpu", "cpu").replace(" ", "-")
    path = json_file or RESULTS / f"{kind}.json"
    path.parent.mkdir(exist_ok=True)
    content = {
        "machine": machine(),
        "remarks": bench.embedder.remarks,
        "lines": [line._asdict() for line in lines],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    click.echo(f"\nWritten to {path}.")
    if missed := [line.name for line in lines if line.verdict() == "MISSED"]:
        raise click.ClickException(f"{len(missed)} limits missed: {', '.join(missed)}.")


if __name__ == "__main__":
    main()
