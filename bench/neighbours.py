"""How long exact neighbours take: made-up unit vectors in the index's format, one at a time."""

import resource
import shutil
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from local_forager.analysis.index_copy import DIMENSIONS
from local_forager.analysis.neighbours import Embedding
from testing.synthetic import vectors

COUNT = 24  # neighbours asked for, as the page does


def memory() -> tuple[float, float]:
    """MB of this process in memory: what it allocated, and with the mapped file."""
    fields = dict(
        line.split(":")
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Rss")
    )
    kilobytes = {name: int(text.split()[0]) for name, text in fields.items()}
    return kilobytes["RssAnon"] / 1e3, sum(kilobytes.values()) / 1e3


def measure(path: Path, rows: int, dimensions: int, queries: int) -> list[float]:
    """Milliseconds of each query, after one that maps the file."""
    embedding, failed = Embedding(path, rows, dimensions), np.zeros(rows, bool)
    times = []
    for row in np.random.default_rng(1).integers(0, rows, queries + 1):
        begin = time.perf_counter()
        embedding.neighbours(int(row), COUNT, failed)
        times.append(1000 * (time.perf_counter() - begin))
    return times


@click.command(context_settings={"show_default": True})
@click.option("--rows", default=100_000, help="Images in the made-up index.")
@click.option("--queries", default=20, help="Searches to time for each embedding.")
@click.option(
    "--work_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the arrays are written (2 to 8 kB an image); a temporary directory otherwise.",
)
def main(rows: int, queries: int, work_dir: Path | None) -> None:
    """Time the nearest images of one image among all, by each embedding.

    \b
    Example:
        python -m bench.neighbours --rows 1000000
    """
    directory = Path(tempfile.mkdtemp(dir=work_dir))
    click.echo("embedding      |      rows | array, MB | first, ms | median, ms | slowest, ms")
    try:
        for name, dimensions in DIMENSIONS.items():
            path = directory / f"{name}.f32"
            with path.open("wb") as file:
                for chunk in vectors(rows, dimensions):
                    chunk.tofile(file)
            first, *times = measure(path, rows, dimensions, queries)
            click.echo(
                f"{name:14} | {rows:9,} | {path.stat().st_size / 1e6:9,.0f} | {first:9,.1f} "
                f"| {np.median(times):10,.1f} | {max(times):11,.1f}"
            )
            path.unlink()
    finally:
        shutil.rmtree(directory)
    allocated, mapped = memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    click.echo(
        f"memory: {allocated:,.0f} MB allocated, {mapped:,.0f} MB with the mapped file; "
        f"{peak:,.0f} MB at most, mapped file included"
    )


if __name__ == "__main__":
    main(prog_name="python -m bench.neighbours")
