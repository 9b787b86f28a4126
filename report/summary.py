"""The closing lines of a run for people: its time, what limited it, what failed."""

from __future__ import annotations

from common.terminal import count, duration, first_lines, table
from report.run import Report, RunOutcome, StepName

ONCE = {  # what to know of a step that took longer than the embedding
    StepName.CHECKS: "This time depends little on the number of images that are embedded.",
    StepName.LOADING: "This time does not depend on the number of images.",
    StepName.REUSE: "Run closer to the bucket.",
    StepName.VERIFICATION: "It reads all vectors from the disk, and lists the thumbnails.",
    StepName.UPLOAD: "Run closer to the index bucket.",
    StepName.REGISTRATION: "The server and this command list all images; both wait for the bucket.",
}


def summarize(report: Report) -> str:
    """What a finished run prints on stdout."""
    if report.outcome != RunOutcome.REGISTERED:
        return report.message
    lines = [steps_table(report)]
    wall_s = report.seconds_of(StepName.EMBEDDING)
    if stages := [stage for stage in report.stages if stage.images]:
        shares = ", ".join(f"{stage.name} {stage.busy_share(wall_s):.0%}" for stage in stages)
        lines.append(f"Busy while embedding: {shares} (100%: at work all the time).")
    longest = max(report.steps, key=lambda step: step.seconds).name
    if longest == StepName.EMBEDDING:
        lines.append(limited_by(report))
    else:
        lines.append(f"Longest step: {longest.value}. {ONCE[longest]}")
    if report.failures:
        images = sum(group["images"] for group in report.failures)
        lines += [f"Failed: {count(images, 'image')}.", failures(report)]
    return "\n".join([*lines, report.message])


def steps_table(report: Report) -> str:
    """The time of each step; images per second where the time depends on their number alone."""
    rows = []
    for step in report.steps:
        images, rate = "", ""
        if step.images is not None:
            images = f"{step.images:,}"
            rate = f"{step.images / step.seconds:,.1f}" if step.seconds > 0 else ""
        rows.append((step.name.value, duration(step.seconds), images, rate))
    rows.append(("in all", duration(report.seconds), "", ""))
    return table(("step", "time", "images", "images/s"), rows)


def limited_by(report: Report) -> str:
    """The stage that limited the embedding, and what would help."""
    if limit := report.limit():
        return f"Limited by: {limit.stage}. {limit.advice}"
    return "Limited by: no single stage; each waited for others part of the time."


def failures(report: Report) -> str:
    """Lines that say why images failed, the most frequent reasons first."""
    return first_lines([f"{group['images']:,}: {group['reason']}" for group in report.failures])
