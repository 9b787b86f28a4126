"""How well does a trial foretell an ingest? `python -m bench.trial`

`ingest.py --trial 200` forecasts 2,000 images, then `ingest.py` ingests them. The images have the
sizes of SIZES in turn. Compared are the images per second after the start, the start itself, and
the time of both together, without the upload.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from bench.end_to_end import forager, ingest_command
from bench.support.measure import interleave, options, ratio, show, storage_server
from common.program import ROOT
from testing.photographs import photograph
from testing.servers.guarded import guarded

SIZES = ((160, 120), (120, 160), (200, 150), (240, 160))
SIMULATED = """
import sys
from functools import partial
import ingest
from testing.embedders import FakeEmbedder, LoaderWithoutModels
embedder = FakeEmbedder(seconds=float(sys.argv[1]), constant=True)
ingest.main(sys.argv[2:], obj=partial(LoaderWithoutModels, embedder=embedder))
"""
UNITS = {"rate": "images/s", "start": "s", "whole": "s"}
STEPS = ("checks", "loading the models", "embedding")


def report(command: list[str], model_s: float) -> dict[str, Any]:
    """What the command's report says; with `model_s`, models that sleep so long per image."""
    if model_s:
        command = [sys.executable, "-c", SIMULATED, str(model_s), *command[2:]]
    done = subprocess.run(**guarded([*command, "--json"]), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise click.ClickException(f"ingest.py failed:\n{done.stderr}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def foretold(server: str, device: str, trial: int, model_s: float) -> dict[str, float]:
    """What a trial forecasts: images per second, seconds of the start, seconds without upload."""
    with tempfile.TemporaryDirectory() as work:
        command = [*ingest_command(server, device, Path(work)), "--trial", str(trial)]
        found = report(command, model_s)["trial"]["forecast"]
    whole = found["seconds"] - found["upload_s"]
    return {"rate": found["images_per_s"], "start": found["startup_s"], "whole": whole}


def ingested(server: str, device: str, model_s: float) -> dict[str, float]:
    """The same of an ingest, with the first image in the rate: 1 of 2,000."""
    with tempfile.TemporaryDirectory() as work:
        found = report(ingest_command(server, device, Path(work)), model_s)
    seconds = {step["name"]: step["seconds"] for step in found["steps"]}
    whole, images = sum(seconds[name] for name in STEPS), found["counts"]["images"]
    before = whole - seconds["embedding"]
    return {"rate": images / seconds["embedding"], "start": before, "whole": whole}


@click.command()
@click.option("--images", default=2000, show_default=True)
@click.option("--trial", default=200, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--model_s", default=0.0, help="Seconds per image of models that only sleep.")
@options
def main(
    images: int, trial: int, device: str, model_s: float, runs: int, json_file: Path | None
) -> None:
    """The forecast of a trial against the ingest that follows it."""
    with storage_server(images, [photograph(*size) for size in SIZES]), forager() as server:
        ways = {
            "trial": lambda: foretold(server, device, trial, model_s),
            "ingest": lambda: ingested(server, device, model_s),
        }
        results = interleave(ways, runs, UNITS)
    for quantity in ("rate", "whole"):
        names = f"trial: {quantity}", f"ingest: {quantity}"
        results.append(ratio(results, f"trial / ingest, {quantity}", *names))
    models = f"models that sleep {model_s} s per image" if model_s else device
    show(f"A trial of {trial} images against {images} on {models}", results, json_file)


if __name__ == "__main__":
    main()
