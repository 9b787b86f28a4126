"""The conclusions of a trial, as data for its report and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.network.activity import Requests
from common.terminal import count, duration, size, table
from dataset.state.rows import State
from preflight.checks import ROW_BYTES
from report.forecast import (
    UPLOAD_BYTES_PER_S,
    Forecast,
    Trial,
    cost,
    describe_sizes,
    forecast,
    measured_pace,
)
from report.prices import EXAMPLES_DATE, Prices
from report.run import CHECKS, EMBEDDING, LOADING, Report
from report.summary import limited_by

FEW = 50  # images: from fewer, a forecast is rough
REASONS_SHOWN = 10


def measured(
    report: Report,
    finished: Sequence[float],
    thumbnail_bytes: int,
    checks: Mapping[str, Requests],
) -> Trial:
    """What a pipeline that embedded a sample has measured.

    `finished` has the time.monotonic() at which each image was done, `checks` the requests before.
    """
    (embedding,) = (step for step in report.steps if step.name == EMBEDDING)
    during = {
        kind: number.minus(checks.get(kind, Requests()))
        for kind, number in report.requests().items()
    }
    return Trial(
        len(finished),
        measured_pace(embedding.began, finished),
        report.seconds_of(CHECKS) + report.seconds_of(LOADING),
        thumbnail_bytes,
        during,
        checks,
    )


def concluded(sample: State, listing: State, trial: Trial, prices: Prices) -> dict[str, Any]:
    """What report.json has under `trial`."""
    counts, whole = sample.tally(), listing.counts()
    found = forecast(trial, counts.failed, whole.images, whole.size, whole.images * ROW_BYTES)
    pixels = [(row[6], row[7]) for row in sample.manifest_rows() if row[6] is not None]
    sizes = describe_sizes(pixels)
    costs = cost(found, prices)
    return {
        "images": counts.images,
        "training": counts.training,
        "validation": counts.validation,
        "bytes": counts.size,
        "failed": counts.failed,
        "sizes": sizes._asdict() if sizes else None,
        "forecast": found._asdict(),
        "prices": prices._asdict(),
        "cost": costs,
    }


def describe_trial(report: Report) -> str:
    """What a trial prints on stdout."""
    content = report.trial
    assert content is not None
    found = Forecast(**content["forecast"])
    parts = [
        f"A trial of {content['images']:,} of {count(found.images, 'image')} "
        f"({content['training']:,} training, {content['validation']:,} validation). Nothing was "
        "uploaded or registered.",
        _stages(report),
        limited_by(report),
        "",
        f"Forecast for {count(found.images, 'image')}:",
        table(("what", "how much", ""), _forecast_rows(content, found), 3),
        *_failures(report),
        *_cost(content),
    ]
    if content["images"] < FEW:
        parts.append(f"From fewer than {FEW} images, this is a rough forecast.")
    return "\n".join(parts)


def _stages(report: Report) -> str:
    wall_s = report.seconds_of(EMBEDDING)
    rows = [
        (stage.name, f"{stage.rate:,.1f}" if stage.rate else "", f"{stage.busy_share(wall_s):.0%}")
        for stage in report.stages
        if stage.images
    ]
    return table(("stage", "images/s alone", "busy"), rows)


def _forecast_rows(content: dict[str, Any], found: Forecast) -> list[tuple[str, str, str]]:
    stored = found.thumbnail_bytes + found.index_bytes
    at = f"{UPLOAD_BYTES_PER_S / 1e6:.0f} MB/s assumed"
    rows = [
        ("time", duration(found.seconds), f"{found.images_per_s:,.1f} images/s"),
        ("  of it start-up", duration(found.startup_s), "checks, models, first image"),
        ("  and upload of the index", duration(found.upload_s), at),
        ("read", size(found.read_bytes), f"{size(found.read_bytes / found.images)} per image"),
        ("written to the bucket", size(stored), f"{size(found.index_bytes)} of it the index"),
        ("requests, Class A", f"{found.class_a:,}", "listing, thumbnails, index"),
        ("requests, Class B", f"{found.class_b:,}", "reading images"),
        ("disk", size(found.disk_bytes), "for the work directory"),
        ("cannot be read", *_share(content, found)),
    ]
    if sizes := content["sizes"]:
        (w1, h1), (w2, h2), (w3, h3) = (sizes[k] for k in ("smallest", "median", "largest"))
        different = count(sizes["different"], "size")
        rows.append(("median size", f"{w2} x {h2}", f"{different}, {w1} x {h1} to {w3} x {h3}"))
    return rows


def _share(content: dict[str, Any], found: Forecast) -> tuple[str, str]:
    images, failed = content["images"], content["failed"]
    if failed:
        return f"about {found.failed:,}", f"{failed:,} of {images:,} ({failed / images:.1%})"
    # The largest share that gives no failure in 5% of such samples.
    return "none found", f"so fewer than {min(1.0, 3 / images):.1%} of all, most probably"


def _failures(report: Report) -> list[str]:
    return [
        f"  {group['images']:,}: {group['reason']}" for group in report.failures[:REASONS_SHOWN]
    ]


def _cost(content: dict[str, Any]) -> list[str]:
    prices, costs = Prices(**content["prices"]), content["cost"]
    once = sum(value for name, value in costs.items() if name != "stored_month")
    values, unit = prices.values, prices.currency
    lines = [
        f"Cost: {once:,.2f} {unit} once: Class A {costs['class_a']:,.2f}, Class B "
        f"{costs['class_b']:,.2f}, reading {costs['read']:,.2f} (nothing within the bucket's "
        f"region), machine {costs['machine']:,.2f} at {values['machine_per_hour']:g} per hour. "
        f"Storage: {costs['stored_month']:,.2f} per month."
    ]
    if prices.examples:
        which = "All prices" if len(prices.examples) == len(values) else ", ".join(prices.examples)
        lines.append(f"{which}: examples of {EXAMPLES_DATE}. Give yours with --prices FILE.")
    return lines
