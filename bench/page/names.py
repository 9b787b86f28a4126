"""How long do the names on the map take? `python -m bench.page.names --points 1000000`

The page shows made-up points, in a headless Chromium; the server has a small dataset only.
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.page.frames import NAME, frames, make_dataset
from bench.support.measure import Result, json_option, show
from local_forager.indexes.index import class_name
from testing.browser import TIMEOUT, chromium
from testing.servers.processes import local_forager

KINDS = 60  # clusters of points; most images of a kind have its class
CLASSES = 1_000
SERVED = 60  # images of the small dataset
MEASURES = "performance.getEntriesByName('names').map(one => one.duration)"
SHOWN = "document.querySelectorAll('.names button').length"
REST = 1_000  # milliseconds until the names are found again


def made_up(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Places, float32 (n, 2), and classes, int32 (n,), of images in clusters of unequal size."""
    rng = np.random.default_rng(0)
    frequency = (1 + np.arange(KINDS)) ** -0.6
    kinds = rng.choice(KINDS, points, p=frequency / frequency.sum())
    middles, wide = rng.uniform(-0.9, 0.9, (KINDS, 2)), rng.uniform(0.01, 0.06, (KINDS, 1))
    places = (middles[kinds] + wide[kinds] * rng.standard_normal((points, 2))).clip(-1, 1)
    others = rng.integers(0, CLASSES, points)
    classes = np.where(rng.random(points) < 0.6, 7 * kinds, others)
    return places.astype("<f4"), classes.astype("<i4")


def answer(body: bytes, route: Any) -> None:
    route.fulfill(body=body)


def serve(page: Any, points: int) -> None:
    """Answer the page's requests for the map with made-up points."""
    places, classes = made_up(points)
    numbers, counts = np.unique(classes, return_counts=True)

    def describe(route: Any) -> None:
        described = route.fetch().json() | {"rows": points, "rows_train": points}
        described["classes"] = [
            {"imagenet_class": number, "name": class_name(number), "count": count}
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        ]
        route.fulfill(body=json.dumps(described), content_type="application/json")

    page.route(f"**/page/{NAME}/dataset", describe)
    answers = {
        "map*": places,
        "column/class*": classes,
        "column/label*": np.full(points, -1, "<i4"),
        "column/split*": np.zeros(points, "<i4"),
        "rows*": np.arange(points, dtype="<i4"),
    }
    for path, array in answers.items():
        page.route(f"**/page/{NAME}/{path}", partial(answer, array.tobytes()))
    page.route("**/thumbnail/*", lambda route: route.fulfill(status=204))


def measure(page: Any, url: str, points: int) -> list[Result]:
    """The time in which names are found, for the whole map and a part of it, and that of frames."""
    serve(page, points)
    page.goto(f"{url}/{NAME}?view=map")
    page.locator(".names button").first.wait_for(state="attached", timeout=2 * TIMEOUT)
    results: list[Result] = []
    for what, zooms in (("the whole map", 0), ("a quarter of it", 2)):
        for _ in range(zooms):
            page.get_by_role("button", name="Zoom in").click()
        page.wait_for_timeout(REST)
        page.evaluate("performance.clearMeasures('names')")
        for key in ("ArrowLeft", "ArrowRight") * 3:
            page.locator("canvas").press(key)
            page.wait_for_timeout(REST)
        results.append(Result(f"find names, {what}", "ms", page.evaluate(MEASURES)))
        results.append(Result("names shown", "", [page.evaluate(SHOWN)]))
        results += frames(page, f"pan, {what}", "pan")
    return results


@click.command()
@click.option("--points", default=100_000, show_default=True, help="Made-up points on the map.")
@json_option
def main(points: int, json_file: Path | None) -> None:
    """Time how the names of clusters are found on a map of many points."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_dataset(directory, SERVED)
        with local_forager(directory, directory / "log") as server, chromium() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            results = measure(page, server.url, points)
    show(f"Names on a map of {points:,} made-up points", results, json_file)


if __name__ == "__main__":
    main()
