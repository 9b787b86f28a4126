"""What the commands print at the end: plain tables, amounts for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.terminal import table

LIMITING_SHARE = 0.7  # of the time, from which on a stage is said to limit the others
ADVICE = {
    "fetch": "the network or the bucket limits: run closer to the bucket",
    "decode": "decoding limits: try --decode_workers {more} on a machine with more cores",
    "ResNet": "the model limits: a faster GPU, or --engine ray on several, would help",
    "models": "the models limit: a faster GPU, or --engine ray on several, would help",
    "CLIP": "the model limits: a faster GPU, or --engine ray on several, would help",
    "thumbnails": "uploading thumbnails limits: run closer to the index bucket",
}


class StageTime(NamedTuple):
    """What one stage did: the mean seconds that its slots (threads, connections) were busy."""

    name: str
    images: int
    busy_s: float


def stage_table(times: Sequence[StageTime], wall_s: float) -> str:
    """Images, seconds busy, images a second and the busy share of each stage."""
    rows = [
        (
            stage.name,
            f"{stage.images:,}",
            f"{stage.busy_s:,.1f}",
            f"{stage.images / stage.busy_s:,.1f}" if stage.busy_s >= 0.001 else "-",
            f"{min(1.0, stage.busy_s / max(wall_s, 0.001)):.0%}",
        )
        for stage in times
    ]
    return table(("stage", "images", "seconds busy", "images/s", "busy"), rows)


def limit(times: Sequence[StageTime], wall_s: float, decode_workers: int) -> str | None:
    """One sentence on the stage that limits the others, if one does."""
    busiest = max(times, key=lambda stage: stage.busy_s)
    if busiest.name not in ADVICE or busiest.busy_s < LIMITING_SHARE * wall_s:
        return None
    advice = ADVICE[busiest.name].format(more=2 * decode_workers)
    return f"{busiest.name} was busy {busiest.busy_s / wall_s:.0%} of the time: {advice}."
