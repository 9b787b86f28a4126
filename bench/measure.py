"""What all benchmarks share: interleaved runs, the spread, the machine, a table and a JSON file."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click

from common.terminal import table

PACKAGES = ("torch", "numpy", "Pillow", "aiohttp", "google-cloud-storage")


class Result(NamedTuple):
    """One quantity over several runs."""

    name: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --runs and --json to a benchmark's command."""
    for option in (
        click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also to FILE."),
        click.option("--runs", default=3, show_default=True, help="Of each way, in turn."),
    ):
        command = option(command)
    return command


def interleave(
    ways: dict[str, Callable[[], dict[str, float]]], runs: int, units: dict[str, str]
) -> list[Result]:
    """Run each way in turn, `runs` times: drift of a shared machine then meets all alike.

    Each way returns quantities by name; `units` has their units.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        for way, function in ways.items():
            for quantity, value in function().items():
                values.setdefault((way, quantity), []).append(value)
    return [
        Result(f"{way}: {quantity}", units[quantity], measured)
        for (way, quantity), measured in values.items()
    ]


def ratio(results: list[Result], name: str, one: str, other: str) -> Result:
    """One quantity over another, run by run."""
    by_name = {result.name: result.values for result in results}
    return Result(name, "x", [a / b for a, b in zip(by_name[one], by_name[other], strict=True)])


def machine() -> dict[str, str]:
    """Processor, cores, GPU and versions, for the table's head."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": sys.version.split()[0],
    }
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found.update({package: version(package) for package in PACKAGES})
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show(question: str, results: list[Result], json_file: Path | None) -> None:
    """Print median, minimum and maximum of each result; write them all to `json_file`."""
    click.echo(question)
    click.echo(", ".join(f"{key} {value}" for key, value in machine().items()))
    rows = [
        (r.name, r.unit, *(f"{value:,.4g}" for value in (r.median, min(r.values), max(r.values))))
        for r in results
    ]
    click.echo(table(("what", "unit", "median", "min", "max"), rows))
    if json_file:
        content = {
            "question": question,
            "machine": machine(),
            "results": [result._asdict() for result in results],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def storage_server(
    images: int, files: list[Path], delay_ms: float = 0, window_kb: int = 0
) -> Iterator[str]:
    """testing.storage_server in a process of its own, selected as the storage emulator."""
    command = [sys.executable, "-m", "testing.storage_server", "--images", str(images)]
    command += [word for file in files for word in ("--image", str(file))]
    command += ["--delay_ms", str(delay_ms), "--window_kb", str(window_kb)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        os.environ["STORAGE_EMULATOR_HOST"] = address
        yield address
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        process.kill()
        process.communicate()


@functools.cache
def photograph(width: int, height: int) -> Path:
    """A JPEG file of this size made of scikit-image's astronaut, some 70 kB at 640 x 480."""
    from PIL import Image
    from skimage import data

    directory = Path(tempfile.gettempdir(), "forager-bench")
    directory.mkdir(exist_ok=True)
    path = directory / f"astronaut-{width}x{height}.jpg"
    if not path.exists():
        image = Image.fromarray(data.astronaut()).resize((width, height))
        image.save(path, "JPEG", quality=90)
    return path
