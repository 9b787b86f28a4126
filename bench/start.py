"""How soon does a command answer? CPU time of --help, and of importing click alone.

python -m bench.start
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import click

from bench.support.measure import interleave, options, ratio, show
from common.program import ROOT

WAYS = {
    "import click": ["-c", "import click"],
    "ingest.py --help": [str(ROOT / "ingest.py"), "--help"],
    "ingest_labels.py --help": [str(ROOT / "ingest_labels.py"), "--help"],
}


def cpu_s(arguments: list[str]) -> dict[str, float]:
    """CPU time of a Python process with these arguments."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {"CPU time": usage.ru_utime + usage.ru_stime}


@click.command()
@options
def main(runs: int, json_file: Path | None) -> None:
    """Compare the start of both commands with that of click alone."""
    ways = {way: partial(cpu_s, words) for way, words in WAYS.items()}
    results = interleave(ways, runs, {"CPU time": "s"})
    base, *commands = WAYS
    for command in commands:
        name = f"{command} / {base}"
        results.append(ratio(results, name, f"{command}: CPU time", f"{base}: CPU time"))
    show("How soon does a command answer?", results, json_file)


if __name__ == "__main__":
    main()
