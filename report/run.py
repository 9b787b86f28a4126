"""What one run of ingest.py did, collected as it goes: report.json, and the closing lines.

docs/report.md describes every field. A run that is killed leaves the report that it wrote at its
start, with the outcome `running`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.addresses import shown_address
from common.errors import IngestError
from common.files import write_atomically
from common.process import CONTINUES, interrupted_with
from common.program import program_digest
from common.terminal import count, duration, first_lines, printable, say, table, warned
from dataset.state import State
from dataset.work_directory import REPORT, TRIAL_REPORT
from engine.stages import Bottleneck, StageTime, limiting_stage
from report.forecast import Conclusions

FORMAT = 1  # of report.json
COUNTING_S = 2.0  # after Ctrl-C: 3 million rows; a report without counts ends sooner
BEGINS_AGAIN = (
    "Interrupted: nothing of a --trial or a --dry_run is kept, so the same command begins again."
)
REASONS = 100  # in the report; failed.json has all failures
ADDRESSES = ("server_url", "viewer_url", "ray_address")  # options that may hold a password
PACKAGES = ("torch", "numpy", "Pillow", "aiohttp", "google-cloud-storage")
NUMBER = re.compile(r"\d[\d,.]*")


class RunOutcome(str, Enum):
    """How a run ended, or that it is under way."""

    RUNNING = "running"
    REGISTERED = "registered"
    FINISHED = "finished"  # by an earlier run
    DRY_RUN = "dry_run"
    TRIED = "trial"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"


class StepName(str, Enum):
    """The steps of a run, which follow each other."""

    CHECKS = "checks"
    LOADING = "loading the models"
    REUSE = "reuse"
    EMBEDDING = "embedding"
    VERIFICATION = "verification"
    UPLOAD = "upload"
    REGISTRATION = "registration"


ONCE = {  # what to know of a step that took longer than the embedding
    StepName.CHECKS: "This time depends little on the number of images that are embedded.",
    StepName.LOADING: "This time does not depend on the number of images.",
    StepName.REUSE: "Run closer to the bucket.",
    StepName.VERIFICATION: "It reads all vectors from the disk, and lists the thumbnails.",
    StepName.UPLOAD: "Run closer to the index bucket.",
    StepName.REGISTRATION: "The server and this command list all images; both wait for the bucket.",
}


@dataclass
class Step:
    """One step of a run and its time."""

    name: StepName
    seconds: float = 0.0
    images: int | None = None  # if its time depends on their number alone
    began: float = 0.0  # time.monotonic()


class Report:
    """What one run does. `options` is its command line."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.state: State | None = None  # of the rows that are counted
        self.done_before: int | None = None  # rows before the embedding began
        self.embedded = 0  # by the rounds before this one
        self.steps: list[Step] = []
        self.stages: list[StageTime] = []
        self.outcome, self.message = RunOutcome.RUNNING, ""
        # A dry run changes nothing, and a repeated command leaves the report of what it repeats.
        self.keeps_earlier = bool(options.get("dry_run"))
        no_work_is_kept = options.get("dry_run") or options.get("trial")
        self.if_interrupted = BEGINS_AGAIN if no_work_is_kept else CONTINUES
        self.page: str | None = None
        self.trial: Conclusions | None = None
        self.counts: dict[str, Any] | None = None
        self.failures: list[dict[str, Any]] = []
        self.seconds = 0.0  # until it ended
        self._exit_code: int | None = None  # until it ends
        self._index_id: str | None = None
        self._start, self._started = time.monotonic(), datetime.now(timezone.utc)
        self._warned_before = len(warned)

    @contextlib.contextmanager
    def step(self, name: StepName) -> Iterator[Step]:
        """Measure a step; the `with` block may set its images."""
        step = Step(name, began=time.monotonic())
        self.steps.append(step)
        try:
            yield step
        finally:
            step.seconds = time.monotonic() - step.began

    def seconds_of(self, name: StepName) -> float:
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
        finally:
            self.end()
            if not self.keeps_earlier:
                self.write(directory)

    def end(self, error: BaseException | None = None) -> None:
        """Note how the run ended, and count its rows as long as the state is open.

        Only the first call does something: the one when the work directory is left.
        """
        if self._exit_code is not None:
            return
        self.seconds = time.monotonic() - self._start
        limit_s, self._exit_code = threading.TIMEOUT_MAX, 1 if error else 0
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            self.outcome, self.message = RunOutcome.INTERRUPTED, self.if_interrupted
            limit_s, self._exit_code = COUNTING_S, interrupted_with() or 1
        elif error:
            self.outcome = RunOutcome.STOPPED
            bug = f"{type(error).__name__}: {error}"
            self.message = error.message if isinstance(error, IngestError) else bug
        if self.state:
            # It may be closed or damaged, or take too long.
            with contextlib.suppress(sqlite3.Error), self.state.limited_to(limit_s):
                self.count_rows(self.state)

    def count_rows(self, state: State) -> None:
        """Note what became of the rows of a state."""
        tally, embedded = state.counts(), 0
        if self.done_before is not None:
            embedded = max(0, tally.done - self.done_before)
            for step in self.steps:
                if step.name == StepName.EMBEDDING:
                    step.images = embedded
        self.counts = {
            **asdict(tally),
            "embedded_now": embedded,
            "skipped": {printable(kind): number for kind, number, _ in state.skipped()},
        }
        self._index_id = state.option("index_id")
        self.failures = failures_by_reason(state) if tally.failed else []
        if self.outcome == RunOutcome.REGISTERED:
            reused = f"{tally.reused:,} reused, " if tally.reused else ""
            self.message = (
                f"{self.options['name']}: {count(tally.images, 'image')} ({tally.training:,} "
                f"training, {tally.validation:,} validation), {tally.failed:,} failed, {reused}"
                f"{embedded:,} embedded now, in {duration(self.seconds)}. Look at {self.page}"
            )

    def content(self) -> dict[str, Any]:
        """Everything so far, as report.json has it."""
        limit, wall_s = self.limit(), self.seconds_of(StepName.EMBEDDING)
        ended = self._started + timedelta(seconds=self.seconds)
        return {
            "format": FORMAT,
            "outcome": self.outcome,
            "exit_code": self._exit_code,
            "message": self.message,
            "started": self._started.isoformat(timespec="seconds"),
            "ended": None if self._exit_code is None else ended.isoformat(timespec="seconds"),
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
            "stages": [
                {
                    "name": stage.name,
                    "images": stage.images,
                    "seconds": round(stage.busy_s, 3),
                    "busy_share": round(stage.busy_share(wall_s), 4),
                    "images_per_s": round(stage.rate, 1) if stage.rate else None,
                }
                for stage in self.stages
            ],
            "limit": limit._asdict() if limit else None,
            "trial": asdict(self.trial) if self.trial else None,
            "warnings": warned[self._warned_before :],
        }

    def limit(self) -> Bottleneck | None:
        """The stage that slows the embedding down, if one does."""
        workers = self.options["decode_workers"]
        return limiting_stage(self.stages, self.seconds_of(StepName.EMBEDDING), workers)

    def text(self) -> str:
        """The report as JSON."""
        return json.dumps(self.content(), indent=1)

    def write(self, directory: Path) -> None:
        """Write report.json, of a run that is under way or has ended.

        A disk that fails here does not hide what the run has to say.
        """
        path = directory / (TRIAL_REPORT if self.options.get("trial") else REPORT)
        try:
            write_atomically(path, [self.text().encode() + b"\n"])
        except (OSError, IngestError) as error:
            reason = error.message if isinstance(error, IngestError) else error.strerror
            say(f"{path} could not be written ({reason}).")


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


def failures_by_reason(state: State) -> list[dict[str, Any]]:
    """Why images failed, the most frequent reason first; numbers within a reason count as equal."""
    groups: dict[str, dict[str, Any]] = {}
    for reason, images, example in state.failure_reasons():
        shown = {"reason": printable(reason, 300), "images": 0, "example": printable(example, 600)}
        groups.setdefault(NUMBER.sub("#", reason), shown)["images"] += images
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


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, and the GPUs if torch is loaded already."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Of Python, of this program (a digest of its modules) and of PACKAGES."""
    own = {"python": platform.python_version(), "program": program_digest()}
    return own | {package: version(package) for package in PACKAGES}


def _gpus() -> list[str]:
    if not (torch := sys.modules.get("torch")):
        return []
    try:
        return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    except (AttributeError, RuntimeError):  # it is being imported, or a GPU has failed
        return []


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
