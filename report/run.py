"""What one run of ingest.py did, collected as it goes: the content of report.json.

docs/report.md describes every field. A run that is killed leaves the report that it wrote at its
start, with the outcome `running`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import signals
from common.addresses import shown_address
from common.errors import IngestError
from common.files import write_atomically
from common.network.activity import CLASSES, Requests, activity, activity_since
from common.terminal import count, duration, printable, say
from dataset.state.rows import State
from dataset.work_directory import REPORT, TRIAL_REPORT
from engine.stages import Bottleneck, StageTime, limiting_stage
from report.machine import machine, versions

FORMAT = 1  # of report.json
RUNNING, REGISTERED, FINISHED = "running", "registered", "finished"
DRY_RUN, STOPPED, INTERRUPTED, TRIED = "dry_run", "stopped", "interrupted", "trial"
CHECKS, LOADING, REUSE = "checks", "loading the models", "reuse"
EMBEDDING, UPLOAD, REGISTRATION = "embedding", "upload", "registration"
COUNTING_S = 2.0  # after Ctrl-C: 3 million rows; a report without counts ends sooner
BEGINS_AGAIN = (
    "Interrupted: nothing of a --trial or a --dry_run is kept, so the same command begins again."
)
REASONS = 100  # in the report; failed.json has all failures
ADDRESSES = ("server_url", "viewer_url")  # options that may hold a password
NUMBER = re.compile(r"\d[\d,.]*")


@dataclass
class Step:
    """One step of a run: steps follow each other, while stages run at the same time."""

    name: str
    seconds: float = 0.0
    images: int | None = None  # if its time depends on their number alone
    began: float = 0.0  # time.monotonic()


class Report:
    """What one run does. `options` is its command line."""

    def __init__(self, options: Mapping[str, Any], decode_workers: int) -> None:
        self.options, self.decode_workers = options, decode_workers
        self.state: State | None = None  # of the rows that are counted
        self.done_before: int | None = None  # rows before the embedding began
        self.steps: list[Step] = []
        self.stages: list[StageTime] = []
        self.outcome, self.message = STOPPED, ""
        # A dry run changes nothing, and a repeated command leaves the report of what it repeats.
        self.keeps_earlier = bool(options.get("dry_run"))
        no_work_is_kept = options.get("dry_run") or options.get("trial")
        self.if_interrupted = BEGINS_AGAIN if no_work_is_kept else signals.CONTINUES
        self.page: str | None = None
        self.trial: dict[str, Any] | None = None  # the conclusions of one
        self._exit_code: int | None = None
        self._ended: str | None = None
        self._index_id: str | None = None
        self._start, self._started = time.monotonic(), _now()
        self._before = activity()
        self.seconds = 0.0  # until it ended
        self.counts: dict[str, Any] | None = None
        self.failures: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Measure a step; the `with` block may set its images."""
        step = Step(name, began=time.monotonic())
        self.steps.append(step)
        try:
            yield step
        finally:
            step.seconds = time.monotonic() - step.began

    def seconds_of(self, name: str) -> float:
        """Seconds that a step took; 0 if it was not made."""
        return sum(step.seconds for step in self.steps if step.name == name)

    @contextlib.contextmanager
    def kept_in(self, directory: Path) -> Iterator[None]:
        """Write the report into a locked work directory when the `with` block ends."""
        try:
            yield
        except BaseException as error:
            self.end(error)
            raise
        else:
            self.end()
        finally:
            if not self.keeps_earlier:
                self.write(directory)

    def begin(self, directory: Path) -> None:
        """Write the report of a run that is under way, which replaces that of an earlier run."""
        outcome, self.outcome = self.outcome, RUNNING
        self.write(directory)
        self.outcome = outcome

    def end(self, error: BaseException | None = None) -> None:
        """Note how the run ended, and count its rows as long as the state is open."""
        if self._ended:  # noted when the work directory was left
            return
        self.seconds, self._ended = time.monotonic() - self._start, _now()
        if self.outcome == FINISHED and error:
            self.outcome = STOPPED
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            self.outcome, self.message = INTERRUPTED, self.if_interrupted
            self._exit_code = signals.interrupted_with() or 1
        elif isinstance(error, IngestError):
            self._exit_code, self.message = 1, error.message
        elif error:
            self._exit_code, self.message = 1, f"{type(error).__name__}: {error}"
        else:
            self._exit_code = 0
        if self.state:
            limit_s = COUNTING_S if self.outcome == INTERRUPTED else threading.TIMEOUT_MAX
            # It may be closed or damaged, or take too long.
            with contextlib.suppress(sqlite3.Error), self.state.limited_to(limit_s):
                self.count_rows(self.state)

    def count_rows(self, state: State) -> None:
        """Note what became of the rows of a state."""
        tally, embedded = state.tally(), 0
        if self.done_before is not None:
            embedded = max(0, tally.done - self.done_before)
            for step in self.steps:
                if step.name == EMBEDDING:
                    step.images = embedded
        self.counts = {
            **tally._asdict(),
            "embedded_now": embedded,
            "skipped": {printable(kind): number for kind, number, _ in state.skipped()},
        }
        self._index_id = state.option("index_id")
        self.failures = failures_by_reason(state) if tally.failed else []
        if self.outcome == REGISTERED:
            reused = f"{tally.reused:,} reused, " if tally.reused else ""
            self.message = (
                f"{self.options['name']}: {count(tally.images, 'image')} ({tally.training:,} "
                f"training, {tally.validation:,} validation), {tally.failed:,} failed, {reused}"
                f"{embedded:,} embedded now, in {duration(self.seconds)}. Look at {self.page}"
            )

    def content(self) -> dict[str, Any]:
        """Everything so far, as report.json has it."""
        made = activity_since(self._before)
        limit = self.limit()
        return {
            "format": FORMAT,
            "outcome": self.outcome,
            "exit_code": self._exit_code,
            "message": self.message,
            "started": self._started,
            "ended": self._ended,
            "seconds": round(self.seconds, 3),
            "command": {"program": "ingest.py", "options": plain_options(self.options)},
            "versions": versions(),
            "machine": machine(),
            "dataset": {"index_id": self._index_id, "page": self.page},
            "counts": self.counts,
            "failures": self.failures,
            "steps": [
                {"name": step.name, "seconds": round(step.seconds, 3), "images": step.images}
                for step in self.steps
            ],
            "stages": self._stages(),
            "limit": limit._asdict() if limit else None,
            "trial": self.trial,
            "requests": {kind: _described(kind, number) for kind, number in made.requests.items()},
            "bytes": {
                "sent": sum(number.sent for number in made.requests.values()),
                "received": sum(number.received for number in made.requests.values()),
            },
            "warnings": made.warnings,
        }

    def requests(self) -> dict[str, Requests]:
        """The requests so far, by kind."""
        return activity_since(self._before).requests

    def limit(self) -> Bottleneck | None:
        """The stage that slows the embedding down, if one does."""
        return limiting_stage(self.stages, self.seconds_of(EMBEDDING), self.decode_workers)

    def _stages(self) -> list[dict[str, Any]]:
        wall_s = self.seconds_of(EMBEDDING)
        return [
            {
                "name": stage.name,
                "images": stage.images,
                "seconds": round(stage.busy_s, 3),
                "busy_share": round(stage.busy_share(wall_s), 4),
                "images_per_s": round(stage.rate, 1) if stage.rate else None,
            }
            for stage in self.stages
        ]

    def text(self) -> str:
        """The report as JSON."""
        return json.dumps(self.content(), indent=1)

    def write(self, directory: Path) -> None:
        """Write report.json. A disk that fails here does not hide what the run has to say."""
        path = directory / (TRIAL_REPORT if self.options.get("trial") else REPORT)
        try:
            write_atomically(path, [self.text().encode() + b"\n"])
        except (OSError, IngestError) as error:
            reason = error.message if isinstance(error, IngestError) else error.strerror
            say(f"{path} could not be written ({reason}).")


def failures_by_reason(state: State) -> list[dict[str, Any]]:
    """Why images failed, the most frequent reason first; numbers within a reason count as equal."""
    groups: dict[str, dict[str, Any]] = {}
    for reason, images, example in state.failure_reasons():
        kind = NUMBER.sub("#", reason)
        if kind in groups:
            groups[kind]["images"] += images
        else:
            groups[kind] = {
                "reason": printable(reason, 300),
                "images": images,
                "example": printable(example, 600),
            }
    return sorted(groups.values(), key=lambda group: -group["images"])[:REASONS]


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON has them, addresses without passwords and tokens."""
    return {name: _plain(value, name in ADDRESSES) for name, value in options.items()}


def _plain(value: Any, is_address: bool) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if type(value) is tuple:
        return [_plain(item, is_address) for item in value]
    text = str(value)
    if is_address or ("://" in text and not text.startswith("gs://")):
        return shown_address(text)
    return printable(text, 1000)


def _described(kind: str, number: Requests) -> dict[str, Any]:
    return {
        "requests": number.requests,
        "retries": number.retries,
        "class": CLASSES.get(kind),
        "sent_bytes": number.sent,
        "received_bytes": number.received,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
