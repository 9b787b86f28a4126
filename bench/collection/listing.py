"""How fast is a directory of many objects listed? `python -m bench.collection.listing`

A server on this machine answers each page of 1,000 names after 100 ms, about as Cloud Storage does.
One worker lists page after page; many list disjoint ranges of names at once.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from bench.support.measure import interleave, options, ratio, show, storage_server
from common.names import GsPath
from storage.listing import WORKERS, listed
from testing.photographs import photograph

PATH = GsPath("bench", "train/")
UNITS = {"rate": "names/s"}


def rate(workers: int, names: int) -> dict[str, float]:
    """Names per second; every name must have come once."""
    start = time.perf_counter()
    found = [o.name for page in listed(PATH, workers=workers) for o in page]
    seconds = time.perf_counter() - start
    expected = [f"{PATH.prefix}{number:09}.jpg" for number in range(names)]
    if sorted(found) != expected:
        raise AssertionError("the listing is not complete")
    return {"rate": names / seconds}


@click.command()
@click.option("--names", default=1_000_000, show_default=True)
@click.option("--page_ms", default=100.0, show_default=True, help="What a page takes.")
@options
def main(names: int, page_ms: float, runs: int, json_file: Path | None) -> None:
    """Names per second, one page after the other and in ranges at once."""
    objects = -(-names * 10 // 9)  # nine of ten are in the directory
    with storage_server(objects, [photograph(64, 48)], page_ms):
        ways = {"in ranges": lambda: rate(WORKERS, names), "in turn": lambda: rate(1, names)}
        results = interleave(ways, runs, UNITS)
    results.append(ratio(results, "ranges / turn", "in ranges: rate", "in turn: rate"))
    show(f"{names:,} names, {page_ms:.0f} ms per page of 1,000", results, json_file)


if __name__ == "__main__":
    main()
