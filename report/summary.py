"""The closing lines of a run for people: its time, what limited it, what failed."""

from __future__ import annotations

from common.terminal import count, duration, table
from report.run import (
    CHECKS,
    EMBEDDING,
    LOADING,
    REGISTERED,
    REGISTRATION,
    REUSE,
    UPLOAD,
    VERIFICATION,
    Report,
)

REASONS_SHOWN = 10
ONCE = {  # what to know of a step that took longer than the embedding
    CHECKS: "This time depends little on the number of images that are embedded.",
    LOADING: "This time does not depend on the number of images.",
    REUSE: "Run closer to the bucket.",
    VERIFICATION: "It reads all vectors from the disk, and lists the thumbnails.",
    UPLOAD: "Run closer to the index bucket.",
    REGISTRATION: "The server and this command list all images; both wait for the bucket.",
}


def summarize(report: Report) -> str:
    """What a finished run prints on stdout."""
    if report.outcome != REGISTERED:
        return report.message
    parts = (
        steps_table(report),
        busy_shares(report),
        limits(report),
        failed(report),
        report.message,
    )
    return "\n".join(part for part in parts if part)


def steps_table(report: Report) -> str:
    """The time of each step; images per second where the time depends on their number alone."""
    rows = []
    for step in report.steps:
        images, rate = "", ""
        if step.images is not None:
            images = f"{step.images:,}"
            rate = f"{step.images / step.seconds:,.1f}" if step.seconds > 0 else ""
        rows.append((step.name, duration(step.seconds), images, rate))
    rows.append(("in all", duration(report.seconds), "", ""))
    return table(("step", "time", "images", "images/s"), rows)


def busy_shares(report: Report) -> str:
    """How busy each stage was while images were embedded; "" if none were."""
    wall_s = report.seconds_of(EMBEDDING)
    stages = [stage for stage in report.stages if stage.images]
    shares = ", ".join(f"{stage.name} {stage.busy_share(wall_s):.0%}" for stage in stages)
    return f"Busy while embedding: {shares} (100%: at work all the time)." if stages else ""


def limits(report: Report) -> str:
    """What limited the run, and what would help."""
    longest = max(report.steps, key=lambda step: step.seconds)
    if longest.name != EMBEDDING:
        return f"Longest step: {longest.name}. {ONCE[longest.name]}"
    return limited_by(report)


def limited_by(report: Report) -> str:
    """The stage that limited the embedding, and what would help."""
    if limit := report.limit():
        return f"Limited by: {limit.stage}. {limit.advice}"
    return "Limited by: no single stage; each waited for others part of the time."


def failed(report: Report) -> str:
    """Failed images by reason."""
    if not report.failures:
        return ""
    images = sum(group["images"] for group in report.failures)
    shown = report.failures[:REASONS_SHOWN]
    lines = [f"  {group['images']:,}: {group['reason']}" for group in shown]
    more = ["  ..."] if len(report.failures) > len(shown) else []
    return "\n".join([f"Failed: {count(images, 'image')}.", *lines, *more])
