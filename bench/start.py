"""How soon is the first image done? `python -m bench.start`

From the start of ingest.py, all checks included, until the first image's vectors are in the arrays,
against importing torch and loading the weights, which nothing can do without.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from bench.end_to_end import forager, ingest_command
from bench.measure import interleave, options, photograph, ratio, show, storage_server
from dataset.arrays import DIMENSIONS, array_path
from testing.weights import seeded_weights

IMAGES = 8
POLL_S = 0.005
UNITS = {"time": "s"}
LOADING = """
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file
from weights import read_resnet_weights
resnet = {name: torch.tensor(v) for name, v in read_resnet_weights(Path(sys.argv[1])).items()}
clip = load_file(sys.argv[2])
"""


def load() -> dict[str, float]:
    """Seconds to import torch and to read both files of weights into tensors."""
    weights = seeded_weights()
    files = str(weights / "R-50.pkl"), str(weights / "clip-vit-base-patch32/model.safetensors")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", LOADING, *files], check=True)
    return {"time": time.perf_counter() - start}


def first_image(server: str, device: str) -> dict[str, float]:
    """Seconds until ingest.py has written the first image's vectors."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory, "work")
        command = ingest_command(server, device, str(work))
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not all(map(_holds_numbers, (array_path(work, name) for name in DIMENSIONS))):
            if process.poll() is not None:
                raise click.ClickException(f"ingest.py ended with code {process.returncode}.")
            time.sleep(POLL_S)
        seconds = time.perf_counter() - start
        process.communicate()
    return {"time": seconds}


def _holds_numbers(array: Path) -> bool:
    return array.exists() and any(array.read_bytes())


@click.command()
@click.option("--size", nargs=2, type=int, default=(640, 480), show_default=True)
@click.option("--device", default="cpu", show_default=True)
@options
def main(size: tuple[int, int], device: str, runs: int, json_file: Path | None) -> None:
    """Seconds until the first image is done, and until torch and the weights are loaded."""
    with storage_server(IMAGES, [photograph(*size)]), forager() as server:
        ways = {"import and load": load, "first image": lambda: first_image(server, device)}
        results = interleave(ways, runs, UNITS)
    results.append(ratio(results, "start", "first image: time", "import and load: time"))
    show(f"The first image of {size[0]} x {size[1]} on {device}", results, json_file)


if __name__ == "__main__":
    main()
