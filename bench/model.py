"""How fast are the models, and how near to the device's limit? `python -m bench.model`

Both models on random pixels that are already in memory, beside the original's way: float32, one
image at a time, batch norm as a layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch

from bench.support import original
from bench.support.device import synchronize
from bench.support.measure import Result, interleave, options, ratio, show
from embeddings import Embedder
from models import devices
from testing.weights import seeded_weights
from weights.clip import CLIP_LAYERS, CLIP_WIDTH
from weights.resnet50 import RESNET_STAGES

CLIP_TOKENS = 50
UNITS = {"rate": "images/s", "pixels": "megapixels/s", "share of matrix rate": ""}


def resnet_operations(height: int, width: int) -> float:
    """Floating-point operations (two per multiplication) of ResNet-50 on one image."""

    def halved(size: int) -> int:
        return -(-size // 2)

    height, width = halved(height), halved(width)
    total = height * width * 64 * 3 * 49
    height, width = halved(height), halved(width)
    channels = 64
    for stage, (blocks, middle) in enumerate(RESNET_STAGES):
        if stage:
            height, width = halved(height), halved(width)
        for block in range(blocks):
            inner = channels * middle + 9 * middle**2 + 4 * middle**2
            total += height * width * (inner + (4 * middle * channels if block == 0 else 0))
            channels = 4 * middle
    return 2.0 * total


def clip_operations() -> float:
    """Floating-point operations of ViT-B/32 on one image, without the products of attention."""
    return 2.0 * CLIP_TOKENS * CLIP_WIDTH * (12 * CLIP_WIDTH * CLIP_LAYERS + 3 * 32 * 32)


def matrix_rate(device: torch.device, dtype: torch.dtype, cores: int) -> float:
    """Floating-point operations per second in the best of some large matrix products."""
    size = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.set_num_threads(cores)
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        one @ other
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def embed(embedder: Embedder, images: list[np.ndarray], inputs: list[np.ndarray]) -> None:
    """Embed all images as the pipeline does: in batches, from as many threads."""
    step = embedder.batch_size(*images[0].shape[:2])

    def run(first: int) -> None:
        embedder.start(images[first : first + step], inputs[first : first + step])()

    with ThreadPoolExecutor(embedder.workers) as pool:
        list(pool.map(run, range(0, len(images), step)))


def compare_rates(
    embedder: Embedder, models: original.Original, size: tuple[int, int], count: int, runs: int
) -> list[Result]:
    """Images per second at one size (width, height), ours and the original's, in turn."""
    width, height = size
    device = torch.device(embedder.device)
    images = list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))
    inputs = [np.ascontiguousarray(np.resize(image, (224, 224, 3))) for image in images]
    best = matrix_rate(device, embedder.dtype, cores := devices.cores())
    operations = resnet_operations(height, width) + clip_operations()

    def measure(function: Callable[[], None], number: int) -> dict[str, float]:
        start = time.perf_counter()
        function()
        rate = number / (time.perf_counter() - start)
        share = rate * operations / best
        return {"rate": rate, "pixels": rate * width * height / 1e6, "share of matrix rate": share}

    def sequential(number: int) -> None:
        torch.set_num_threads(cores)
        with torch.inference_mode():
            for image, clip_input in zip(images[:number], inputs, strict=False):
                models.resnet(torch.from_numpy(image)[None].to(device))[0].cpu()
                models.clip(torch.from_numpy(clip_input)[None].to(device)).cpu()

    few = max(2, count // 4)
    embed(embedder, images, inputs)  # lay out the weights, choose the algorithms
    sequential(1)
    name = f"{width}x{height}"
    ways = {
        f"{name} ours": lambda: measure(lambda: embed(embedder, images, inputs), count),
        f"{name} original's way": lambda: measure(lambda: sequential(few), few),
    }
    results = interleave(ways, runs, UNITS)
    names = (f"{name} ours: rate", f"{name} original's way: rate")
    return [*results, ratio(results, f"{name} speed-up", *names)]


@click.command()
@click.option("--sizes", default="640x480,375x500,1280x720", show_default=True, help="WxH, ...")
@click.option("--images", default=0, help="Per size.  [default: 8, on a GPU 512]")
@click.option("--device", default="auto", show_default=True, help="See ingest.py.")
@click.option("--precision", default="auto", show_default=True, help="See ingest.py.")
@click.option("--weights", type=click.Path(path_type=Path), help="Directory of both models.")
@options
def main(
    sizes: str,
    images: int,
    device: str,
    precision: str,
    weights: Path | None,
    runs: int,
    json_file: Path | None,
) -> None:
    """Compare the rate of both models with the original's way.

    Example: python -m bench.model --sizes 640x480 --precision bfloat16
    """
    weights = weights or seeded_weights()
    results: list[Result] = []
    embedder = Embedder(
        weights / "R-50.pkl",
        weights / "clip-vit-base-patch32",
        device=device,
        precision=precision,
    )
    models = original.load(weights, torch.device(embedder.device))
    count = images or (512 if embedder.device.startswith("cuda") else 8)
    for size in sizes.split(","):
        width, height = (int(side) for side in size.split("x"))
        results += compare_rates(embedder, models, (width, height), count, runs)
    question = f"Both models on {embedder.device} in {embedder.precision}; original: {models.name}"
    show(question, results, json_file)


if __name__ == "__main__":
    main()
