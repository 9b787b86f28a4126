"""How fast is the whole ingest? `python -m bench.end_to_end`

ingest.py as a command, from its start to its end and to its first image, checks, upload and
registration included. Beside it are the original's inference alone on the same images (each decoded
for each of its three stages, one at a time, batch norm as a layer, all cores in each operation) and
what no implementation can do without: importing torch and reading the weights.
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

from bench.support import original
from bench.support.measure import interleave, options, ratio, show, storage_server
from common.program import ROOT
from dataset.arrays import DIMENSIONS, array_path
from engine import decode
from testing.photographs import photograph
from testing.servers.guarded import guarded
from testing.servers.processes import local_forager
from testing.weights import seeded_weights

POLL_S = 0.02
UNITS = {"whole": "images/s", "embedding": "images/s", "first image": "s", "time": "s"}
LOADING = """
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file
from weights.resnet50 import read_resnet_weights
resnet = {name: torch.tensor(v) for name, v in read_resnet_weights(Path(sys.argv[1])).items()}
clip = load_file(sys.argv[2])
"""


def load() -> dict[str, float]:
    """Seconds to import torch and to read both files of weights into tensors."""
    weights = seeded_weights()
    files = str(weights / "R-50.pkl"), str(weights / "clip-vit-base-patch32/model.safetensors")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", LOADING, *files], check=True, cwd=ROOT)
    return {"time": time.perf_counter() - start}


def original_way(models: original.Original, device: torch.device) -> Callable[[bytes], None]:
    """What the original does with one image file, except for files and processes in between."""

    def decoded(data: bytes) -> np.ndarray:
        return np.array(decode.decode(decode.open_image(data)))

    def embed(data: bytes) -> None:
        with torch.inference_mode():
            models.resnet(torch.from_numpy(decoded(data))[None].to(device))
            scaled = decode.clip_input(decode.decode(decode.open_image(data)))
            models.clip(torch.from_numpy(np.array(scaled))[None].to(device))
            decode.thumbnail(decode.small_copy(decode.decode(decode.open_image(data))))

    return embed


def run_original(embed: Callable[[bytes], None], data: bytes, count: int) -> dict[str, float]:
    """Images per second of the original's inference, its models already loaded."""
    torch.set_num_threads(os.cpu_count() or 1)
    embed(data)
    start = time.perf_counter()
    for _ in range(count):
        embed(data)
    return {"whole": count / (time.perf_counter() - start)}


def ingest_command(server: str, device: str, work_dir: Path) -> list[str]:
    """The ingest of all images that the storage server has, under a new name."""
    weights = seeded_weights()
    command = [sys.executable, str(ROOT / "ingest.py"), f"bench-{time.time_ns()}"]
    command += ["gs://bench/d/train", "gs://bench/d/val", "--device", device]
    command += ["--resnet_weights", str(weights / "R-50.pkl")]
    command += ["--clip_weights", str(weights / "clip-vit-base-patch32")]
    return [*command, "--work_dir", str(work_dir), "--server_url", server]


def run_ingest(server: str, count: int, device: str) -> dict[str, float]:
    """Images per second of ingest.py and of its stream alone; seconds to its first image."""
    with tempfile.TemporaryDirectory() as directory:
        work, log = Path(directory, "work"), Path(directory, "log")
        start = time.perf_counter()
        with log.open("w") as output:
            command = ingest_command(server, device, work)
            process = subprocess.Popen(**guarded(command), stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None and not has_first_image(work):
            time.sleep(POLL_S)
        first_s = time.perf_counter() - start
        code = process.wait()
        seconds, said = time.perf_counter() - start, log.read_text()
    if code:
        raise click.ClickException(f"ingest.py failed:\n{said}")
    embedded = re.search(r"Embedded .* images in (?:(\d+) min )?([\d.]+) s", said)
    assert embedded, said
    embedding_s = 60 * int(embedded[1] or 0) + float(embedded[2])
    return {"whole": count / seconds, "embedding": count / embedding_s, "first image": first_s}


def has_first_image(work: Path) -> bool:
    """Whether every array of the index has its first numbers."""
    arrays = [array_path(work, name) for name in DIMENSIONS]
    return all(array.exists() and any(array.read_bytes()) for array in arrays)


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
    """Images per second of the whole ingest and of the original's inference, in turn."""
    path = photograph(*size)
    data = path.read_bytes()
    models = original.load(seeded_weights(), torch.device(device))
    embed = original_way(models, torch.device(device))
    with storage_server(count, [path]), forager() as server:
        ways = {
            "import and load": load,
            "ingest.py": lambda: run_ingest(server, count, device),
            "original": lambda: run_original(embed, data, max(10, count // 4)),
        }
        results = interleave(ways, runs, UNITS)
    for quantity in ("whole", "embedding"):
        names = f"ingest.py: {quantity}", "original: whole"
        results.append(ratio(results, f"ingest.py, {quantity} / original", *names))
    names = "ingest.py: first image", "import and load: time"
    results.append(ratio(results, "first image / import and load", *names))
    question = f"{count} images of {size[0]} x {size[1]} on {device}; original: {models.name}"
    show(question, results, json_file)


if __name__ == "__main__":
    main()
