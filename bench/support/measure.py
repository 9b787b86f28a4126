"""Shared by all benchmarks: runs in turn, the spread, the machine, a table and a JSON file."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from common.terminal import table
from report.run import machine as this_machine
from report.run import versions
from testing.servers.guarded import guarded


class Result(NamedTuple):
    """One quantity over several runs."""

    name: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the results to FILE.",
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --runs and --json to a benchmark's command."""
    runs = click.option("--runs", default=3, show_default=True, help="Runs of each way, in turn.")
    return runs(json_option(command))


def interleave(
    ways: Mapping[str, Callable[[], dict[str, float]]], runs: int, units: dict[str, str]
) -> list[Result]:
    """Run each way in turn, `runs` times, so that a busy machine slows all of them alike.

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
    """Processor, cores, GPU and versions, for the head of the table."""
    here, found = this_machine(), {}
    if here["gpus"]:
        found["gpu"] = here["gpus"][0]
    return {"processor": here["processor"], "cores": str(here["cores"]), **found, **versions()}


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
    images: int,
    files: list[Path],
    delay_ms: float = 0,
    window_kb: int = 0,
    index_rows: int = 0,
) -> Iterator[str]:
    """testing.servers.storage_server in a process of its own; STORAGE_EMULATOR_HOST names it."""
    command = [sys.executable, "-m", "testing.servers.storage_server", "--images", str(images)]
    command += [word for file in files for word in ("--image", str(file))]
    command += ["--delay_ms", str(delay_ms), "--window_kb", str(window_kb)]
    command += ["--index_rows", str(index_rows)]
    process = subprocess.Popen(**guarded(command), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        os.environ["STORAGE_EMULATOR_HOST"] = address
        yield address
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        process.kill()
        process.communicate()
