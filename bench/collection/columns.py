"""What does it cost to add columns of one's own? `python -m bench.collection.columns`

The whole command for a CSV file with a number, a date and a text per image, against reading that
file alone. Opening the index is part of the command; its vectors are not read.
"""

import asyncio
import csv
import datetime
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

import click

from bench.support.measure import interleave, options, ratio, show
from common.program import ROOT
from dataset import manifest
from dataset.arrays import DIMENSIONS
from local_forager.indexes.index import NOT_FINITE
from local_forager.server.database import DATABASE_FILE, Database, ServerGeneration
from testing import synthetic

DAYS = 700
UNITS = {"time": "s"}


def write_index(data_dir: Path, names: list[str]) -> None:
    """A dataset "bench" of the local Forager whose vectors take no room on the disk."""
    index_id = str(uuid.uuid4())
    directory = data_dir / "indexes" / index_id
    directory.mkdir(parents=True)
    for name, content in synthetic.lists(names, len(names)).items():
        (directory / name).write_text(json.dumps(content))
    for name, dimensions in DIMENSIONS.items():
        with (directory / f"{name}.f32").open("wb") as file:
            file.truncate(4 * dimensions * len(names))
    classes = {os.path.basename(name): 0 for name in names}
    (directory / "imagenet.pickle").write_bytes(pickle.dumps(classes))
    sizes = synthetic.made_up_sizes(len(names))
    (directory / manifest.NAME).write_bytes(synthetic.manifest_of(names, sizes))
    (directory / NOT_FINITE).write_text("[]")
    (directory / "complete").touch()
    database = Database(data_dir / DATABASE_FILE, ServerGeneration.B)
    asyncio.run(database.create_dataset("bench", "gs://b/train/", "gs://b/val/", index_id))
    database.close()


def write_file(path: Path, names: list[str]) -> None:
    first = datetime.date(2024, 1, 1)
    with path.open("w", newline="") as file:
        write = csv.writer(file).writerow
        write(["image", "weight", "taken", "camera"])
        for row, name in enumerate(names):
            date = first + datetime.timedelta(days=row % DAYS)
            write([os.path.basename(name), row % 997 / 7, date.isoformat(), f"camera {row % 40}"])


def add(data_dir: Path, path: Path) -> dict[str, float]:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "local_forager", "columns", "bench", str(path)]
    subprocess.run(
        [*command, "--data_dir", str(data_dir)], cwd=ROOT, check=True, capture_output=True
    )
    return {"time": time.perf_counter() - begin}


def read(path: Path) -> dict[str, float]:
    begin = time.perf_counter()
    command = f"from pyarrow import csv; csv.read_csv({str(path)!r})"
    subprocess.run([sys.executable, "-c", command], check=True)
    return {"time": time.perf_counter() - begin}


@click.command()
@click.option("--images", default=1_000_000, show_default=True)
@options
def main(images: int, runs: int, json_file: Path | None) -> None:
    """Time of the columns command, and of reading its file alone, each a process of its own."""
    names = [f"train/part-{row % 100:03}/image-{row:09}.jpg" for row in range(images)]
    with tempfile.TemporaryDirectory() as directory:
        data_dir, path = Path(directory, "data"), Path(directory, "columns.csv")
        write_index(data_dir, names)
        write_file(path, names)
        ways = {
            "columns": partial(add, data_dir, path),
            "reading": partial(read, path),
        }
        results = interleave(ways, runs, UNITS)
    results.append(ratio(results, "columns / reading", "columns: time", "reading: time"))
    show(f"A CSV file with three columns for {images:,} images", results, json_file)


if __name__ == "__main__":
    main()
