"""The closing lines of a run for people."""

from __future__ import annotations

from common.terminal import duration, table
from report.run import REGISTERED, Report


def summarize(report: Report) -> str:
    """What a finished run prints on stdout."""
    if report.outcome != REGISTERED:
        return report.message
    return f"{steps_table(report)}\n{report.message}"


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
