"""How fast is the whole ingest? `python -m bench.end_to_end`

ingest.py as a command, start-up, checks, upload and registration included, against the original's
inference alone on the same images: each decoded for each of its three stages, one at a time, batch
norm as a layer, all cores in each operation.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch

from bench import original
from bench.measure import interleave, options, photograph, ratio, show, storage_server
from common.program import ROOT
from engine import decode
from testing.servers import local_forager
from testing.weights import seeded_weights

UNITS = {"whole": "images/s", "embedding only": "images/s"}


def original_way(models: original.Original, device: torch.device) -> Callable[[bytes], None]:
    """What the original does with one image file, except for files and processes in between."""

    def decoded(data: bytes) -> np.ndarray:
        return np.array(decode.decode(decode.open_image(data)))

    def embed(data: bytes) -> None:
        with torch.inference_mode():
            models.resnet(torch.from_numpy(decoded(data))[None].to(device))
            scaled = decode.clip_input(decode.decode(decode.open_image(data)))
            models.clip(torch.from_numpy(np.array(scaled))[None].to(device))
            decode.thumbnail(decode.decode(decode.open_image(data)))

    return embed


def run_original(embed: Callable[[bytes], None], data: bytes, count: int) -> dict[str, float]:
    """Images a second of the original's inference, its models already loaded."""
    torch.set_num_threads(os.cpu_count() or 1)
    embed(data)
    start = time.perf_counter()
    for _ in range(count):
        embed(data)
    return {"whole": count / (time.perf_counter() - start)}


def ingest_command(server: str, device: str, work_dir: str) -> list[str]:
    """The ingest of all that bench.storage_server holds, under a new name."""
    weights = seeded_weights()
    command = [sys.executable, str(ROOT / "ingest.py"), f"bench-{time.time_ns()}"]
    command += ["gs://bench/d/train", "gs://bench/d/val", "--device", device]
    command += ["--resnet_weights", str(weights / "R-50.pkl")]
    command += ["--clip_weights", str(weights / "clip-vit-base-patch32")]
    return [*command, "--work_dir", work_dir, "--server_url", server]


def run_ingest(server: str, count: int, device: str) -> dict[str, float]:
    """Images a second of ingest.py from its start to its end, and of its stream alone."""
    with tempfile.TemporaryDirectory() as directory:
        command = ingest_command(server, device, f"{directory}/work")
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise click.ClickException(f"ingest.py failed:\n{done.stdout}{done.stderr}")
    said = re.search(r"Embedded .* images in (?:(\d+) min )?([\d.]+) s", done.stderr)
    assert said, done.stderr
    embedding_s = 60 * int(said[1] or 0) + float(said[2])
    return {"whole": count / seconds, "embedding only": count / embedding_s}


@contextlib.contextmanager
def forager() -> Iterator[str]:
    """A local Forager, which lists the bucket itself, as the real one does."""
    with (
        tempfile.TemporaryDirectory() as directory,
        local_forager(Path(directory, "data"), Path(directory, "log")) as server,
    ):
        yield server.url


@click.command()
@click.option("--images", "count", default=100, show_default=True)
@click.option("--size", nargs=2, type=int, default=(640, 480), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@options
def main(count: int, size: tuple[int, int], device: str, runs: int, json_file: Path | None) -> None:
    """Images a second of the whole ingest and of the original's inference, in turn."""
    path = photograph(*size)
    data = path.read_bytes()
    models = original.load(seeded_weights(), torch.device(device))
    embed = original_way(models, torch.device(device))
    with storage_server(count, [path]), forager() as server:
        ways = {
            "ingest.py": lambda: run_ingest(server, count, device),
            "original": lambda: run_original(embed, data, max(10, count // 4)),
        }
        results = interleave(ways, runs, UNITS)
    for quantity in UNITS:
        names = f"ingest.py: {quantity}", "original: whole"
        results.append(ratio(results, f"ingest.py, {quantity} / original", *names))
    question = f"{count} images of {size[0]} x {size[1]} on {device}; original: {models.name}"
    show(question, results, json_file)


if __name__ == "__main__":
    main()
