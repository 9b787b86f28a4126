"""A trial: a sample of both splits, and what it says of the whole collection, as data and text."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.terminal import count, duration, size, table
from dataset.listing import Listing, Split
from dataset.state import State
from dataset.work_directory import LISTING, STATE, TRIAL
from report.forecast import (
    EXAMPLES_DATE,
    UPLOAD_BYTES_PER_S,
    Conclusions,
    Forecast,
    Prices,
    cost,
    forecast,
    measured_pace,
)
from report.run import Report, StepName, failures, limited_by

FEW = 50  # images: from fewer, a forecast is rough


@contextlib.contextmanager
def sampled(listing: Listing, images: int, work: Path) -> Iterator[State]:
    """A state of some of the listed images; its directory is deleted after the `with` block."""
    directory = work / TRIAL
    shutil.rmtree(directory, ignore_errors=True)  # of a trial that was killed
    directory.mkdir()
    try:
        train, val = (listing.counts(split).images for split in Split)
        chosen = set(itertools.chain(*spread(train, val, images)))
        with (
            contextlib.closing(Listing(directory / LISTING)) as some,
            contextlib.closing(State.create(directory / STATE)) as sample,
        ):
            for row, (split, image) in enumerate(listing.images()):
                if row in chosen:
                    some.add(split, [image])
            sample.take(some.path)
            sample.set_options({"index_id": str(uuid.uuid4())})
            yield sample
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def spread(training: int, validation: int, images: int) -> tuple[list[int], list[int]]:
    """The rows of a sample: both splits by their share, each from its beginning to its end."""
    images = min(images, training + validation)
    share = round(images * validation / max(1, training + validation))
    of_val = min(max(share, 1 if images > 1 else 0), validation)
    of_train = min(images - of_val, training)
    return _evenly(training, of_train, 0), _evenly(validation, images - of_train, training)


def _evenly(count: int, wanted: int, first: int) -> list[int]:
    """`wanted` of the `count` rows from `first` on, at equal distances."""
    return [first + (2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def conclude(
    report: Report,
    sample: State,
    listing: Listing,
    prices: Prices,
    *,
    finished: Sequence[float],
    thumbnail_bytes: int,
) -> Conclusions:
    """What a trial that embedded a sample says of the listing.

    `finished` has the time of each image (time.monotonic), `thumbnail_bytes` is the size of all
    thumbnails together.
    """
    assert report.counts
    (embedding,) = (step for step in report.steps if step.name == StepName.EMBEDDING)
    whole = listing.counts()
    share = whole.images / len(finished)
    found = forecast(
        whole.images,
        whole.size,
        measured_pace(embedding.began, finished),
        before_s=report.seconds_of(StepName.CHECKS) + report.seconds_of(StepName.LOADING),
        failed=round(report.counts["failed"] * share),
        thumbnail_bytes=round(thumbnail_bytes * share),
    )
    pixels = [(row[6], row[7]) for row in sample.manifest_rows() if row[6] is not None]
    return Conclusions(
        sizes=describe_sizes(pixels), forecast=found, prices=prices, cost=cost(found, prices)
    )


def describe_sizes(pixels: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    """The sizes (width, height) of images, by the number of pixels; None without any."""
    if not pixels:
        return None
    ordered = sorted(pixels, key=lambda size: (size[0] * size[1], size))
    return {
        "smallest": ordered[0],
        "median": ordered[len(ordered) // 2],
        "largest": ordered[-1],
        "different": len(set(pixels)),
    }


def describe_trial(report: Report) -> str:
    """What a trial prints on stdout."""
    trial, counts = report.trial, report.counts
    assert trial and counts
    found = trial.forecast
    images = count(found.images, "image")
    wall_s = report.seconds_of(StepName.EMBEDDING)
    stages = [
        (stage.name, f"{stage.rate:,.1f}" if stage.rate else "", f"{stage.busy_share(wall_s):.0%}")
        for stage in report.stages
        if stage.images
    ]
    parts = [
        f"A trial of {counts['images']:,} of {images} ({counts['training']:,} training, "
        f"{counts['validation']:,} validation). Nothing was uploaded or registered.",
        table(("stage", "images/s alone", "busy"), stages),
        limited_by(report),
        "",
        f"Forecast for {images}:",
        table(("what", "how much", ""), [*_forecast_rows(found), *_image_rows(trial, counts)], 3),
        *([failures(report)] if report.failures else []),
        *_cost_lines(trial),
    ]
    if counts["images"] < FEW:
        parts.append(f"From fewer than {FEW} images, this is a rough forecast.")
    return "\n".join(parts)


def _forecast_rows(found: Forecast) -> list[tuple[str, str, str]]:
    stored = found.thumbnail_bytes + found.index_bytes
    at = f"{UPLOAD_BYTES_PER_S / 1e6:.0f} MB/s assumed"
    return [
        ("time", duration(found.seconds), f"{found.images_per_s:,.1f} images/s"),
        ("  of it start-up", duration(found.startup_s), "checks, models, first image"),
        ("  and upload of the index", duration(found.upload_s), at),
        ("read", size(found.read_bytes), f"{size(found.read_bytes / found.images)} per image"),
        ("written to the bucket", size(stored), f"{size(found.index_bytes)} of it the index"),
        ("requests, Class A", f"{found.class_a:,}", "listing, thumbnails, index"),
        ("requests, Class B", f"{found.class_b:,}", "reading images"),
        ("disk", size(found.disk_bytes), "for the work directory"),
    ]


def _image_rows(trial: Conclusions, counts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """How many images cannot be read, and the sizes of the others."""
    images, failed = counts["images"], counts["failed"]
    if failed:
        share = f"{failed:,} of {images:,} ({failed / images:.1%})"
        yield "cannot be read", f"about {trial.forecast.failed:,}", share
    else:
        # The largest share that gives no failure in 5% of such samples.
        share = f"so fewer than {min(1.0, 3 / images):.1%} of all, most probably"
        yield "cannot be read", "none found", share
    if sizes := trial.sizes:
        smallest, median, largest = (
            "{} x {}".format(*sizes[name]) for name in ("smallest", "median", "largest")
        )
        different = count(sizes["different"], "size")
        yield "median size", median, f"{different}, {smallest} to {largest}"


def _cost_lines(trial: Conclusions) -> list[str]:
    prices, costs, unit = trial.prices, trial.cost, trial.prices.currency
    once = sum(value for name, value in costs.items() if name != "stored_month")
    lines = [
        f"Cost: {once:,.2f} {unit} once: Class A {costs['class_a']:,.2f}, Class B "
        f"{costs['class_b']:,.2f}, reading {costs['read']:,.2f} (nothing within the bucket's "
        f"region), machine {costs['machine']:,.2f} at {prices.values['machine_per_hour']:g} per "
        f"hour. Storage: {costs['stored_month']:,.2f} per month."
    ]
    if prices.examples:
        all_of_them = len(prices.examples) == len(prices.values)
        which = "All prices" if all_of_them else ", ".join(prices.examples)
        lines.append(f"{which}: examples of {EXAMPLES_DATE}. Give yours with --prices FILE.")
    return lines
