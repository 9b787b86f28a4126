"""Does a large dataset cost more than its share? `python -m bench.scale`

The whole pipeline with a trivial embedder, once with few rows and once with many, each in a process
of its own: time and processor time a row, the largest resident memory, and what listing and
checking the names take.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.measure import Result, options, photograph, show, storage_server
from common.findings import Findings
from common.names import GsPath
from common.options import default_decode_workers
from dataset.arrays import Arrays
from dataset.rows import State
from engine.local import WINDOW_CPU, Pipeline
from preflight import checks

PATHS = GsPath("bench", "d/train/"), GsPath("bench", "d/val/")
NAMES_ONLY = "names only"


class TrivialEmbedder:
    """The same vectors for every image, at once; CLIP's inputs are its own affair, as a GPU's."""

    device = "cpu"
    workers = 1
    clip_batch_size = 256
    makes_clip_inputs = True
    _vectors = np.full((256, 2048), 2048**-0.5, np.float32)

    def resnet_batch_size(self, height: int, width: int) -> int:
        return 256

    def start_resnet(self, images: Sequence[np.ndarray]) -> Callable[[], Any]:
        n = len(images)
        rows = self._vectors[:n], self._vectors[:n, :1024], np.zeros(n, np.int64)
        return lambda: rows

    def start_clip(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        return lambda: self._vectors[: len(inputs), :512]

    def start_both(self, images: Sequence[np.ndarray]) -> Callable[[], Any]:
        rows = *self.start_resnet(images)(), self.start_clip(images)()
        return lambda: rows


def one_run(rows: int, embed: bool) -> dict[str, float]:
    """List and check `rows` names and, if asked, run the pipeline over them, in this process."""
    processor = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        state = checks.list_images(PATHS, Path(directory, "state.sqlite"))
        findings = Findings()
        checks.check_images(findings, state, PATHS, False)
        findings.raise_if_any()
        figures = {"list and check, CPU": time.process_time() - processor}
        if embed:
            figures |= embed_all(state)
        state.close()
    figures["resident memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return figures


def embed_all(state: State, window: int = WINDOW_CPU) -> dict[str, float]:
    """Milliseconds a row that the pipeline takes with a trivial embedder, and of all processors."""
    state.set_options({"index_id": "bench"})
    rows = state.counts().images
    wall, processor = time.perf_counter(), time.process_time()

    async def embed() -> None:
        pipeline = Pipeline(
            state,
            arrays,
            TrivialEmbedder(),
            image_bucket="bench",
            index_bucket="bench",
            decode_workers=default_decode_workers(),
            window=window,
        )
        async with pipeline:
            await pipeline.run()

    with Arrays(state.directory, rows) as arrays:
        asyncio.run(embed())
    assert state.counts().done == rows
    return {
        "a row": (time.perf_counter() - wall) / rows * 1000,
        "a row, CPU": (time.process_time() - processor) / rows * 1000,
    }


UNITS = {
    "list and check, CPU": "s",
    "a row": "ms",
    "a row, CPU": "ms",
    "resident memory": "MB",
}


@click.command()
@click.option("--few", default=10_000, show_default=True)
@click.option("--many", default=100_000, show_default=True, help="The promise is for 1,000,000.")
@click.option("--names", default=1_000_000, show_default=True, help="To list and check only.")
@click.option("--one", hidden=True, help="Rows of one run in this process.")
@options
def main(few: int, many: int, names: int, one: str | None, runs: int, json_file: Path) -> None:
    """Time a row and resident memory with few and with many rows."""
    if one:
        count, _, what = one.partition(":")
        click.echo(json.dumps(one_run(int(count), what != NAMES_ONLY)))
        return
    results = []
    for rows, kind in ((few, ""), (many, ""), (names, NAMES_ONLY)):
        with storage_server(rows, [photograph(64, 48)]):
            command = [sys.executable, "-m", "bench.scale", "--one", f"{rows}:{kind}"]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for quantity, value in json.loads(printed).items():
            label = f"{rows:,} rows {kind}".strip()
            results.append(Result(f"{label}: {quantity}", UNITS[quantity], [value]))
    by_name = {result.name: result.median for result in results}
    grown = by_name[f"{many:,} rows: resident memory"] - by_name[f"{few:,} rows: resident memory"]
    results.append(Result("memory above few rows", "MB", [grown]))
    show("Rows listed and run through the pipeline with a trivial embedder", results, json_file)


if __name__ == "__main__":
    main()
