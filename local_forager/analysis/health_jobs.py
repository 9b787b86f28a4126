"""The checks of a dataset's health as jobs in the background, one by one, with progress."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from local_forager.analysis.health import (
    Groups,
    Near,
    disagreeing,
    exact_duplicates,
    leaks,
    near_duplicates,
)
from local_forager.analysis.index_copy import Index
from local_forager.analysis.label_table import LabelTable
from local_forager.types import Finding

AUTOMATIC_ROWS = 20_000  # images up to which every check starts by itself: 7 seconds of work
PAIRS_A_SECOND = 3e7  # measured on 2 cores with 512 numbers an image, to say how long it will take


class Stopped(Exception):
    """Raised within a job when the server ends."""


@dataclass
class Job:
    progress: float = 0.0
    future: Future[Any] | None = None

    def result(self) -> Any:
        """What the job found, None while it has not ended; raises what it raised."""
        return self.future.result() if self.future and self.future.done() else None


class Jobs:
    """Jobs by a key that names what they depend on; each runs once."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._jobs: dict[Hashable, Job] = {}
        self._closed = False

    def start(self, key: Hashable, function: Callable[[Callable[[float], None]], Any]) -> Job:
        """The job of this key, begun now if it was not before; function is told how to report."""
        if key not in self._jobs:
            job = self._jobs[key] = Job()

            def report(progress: float) -> None:
                job.progress = progress
                if self._closed:
                    raise Stopped

            job.future = self._executor.submit(function, report)
        return self._jobs[key]

    def get(self, key: Hashable) -> Job | None:
        return self._jobs.get(key)

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)


def duration(index: Index, by: str) -> str:
    """About how long comparing all pairs takes, in words."""
    pairs = len(index.names) ** 2 / 2 * index.embeddings[by].dimensions / 512
    minutes = pairs / PAIRS_A_SECOND / 60
    return f"about {minutes:,.0f} minutes" if minutes >= 1.5 else "about a minute"


class Health:
    """The findings for one index and embedding, with the labels of one version."""

    def __init__(self, jobs: Jobs, index_id: str, index: Index, by: str) -> None:
        self._jobs, self._index_id, self._index, self._by = jobs, index_id, index, by

    def _job(self, kind: str, version: int, start: bool, function: Any) -> Job | None:
        key = (kind, self._index_id, self._by, version)
        if start or len(self._index.names) <= AUTOMATIC_ROWS:
            return self._jobs.start(key, function)
        return self._jobs.get(key)

    def exact(self) -> Job | None:
        embedding, failed = self._index.embeddings[self._by], self._index.failed
        return self._job("exact", 0, True, lambda report: exact_duplicates(embedding, failed))

    def near(self, start: bool) -> Job | None:
        embedding, failed = self._index.embeddings[self._by], self._index.failed
        return self._job("near", 0, start, partial(near_duplicates, embedding, failed))

    def disagree(self, table: LabelTable, version: int, start: bool) -> Job | None:
        embedding, failed = self._index.embeddings[self._by], self._index.failed
        check = partial(disagreeing, embedding, table.positive(), failed)
        return self._job("disagree", version, start, check)

    def groups(
        self, name: str, table: LabelTable, version: int, start: bool = False
    ) -> Groups | None:
        """The images of a finding, singles as groups of one; None until they are known."""
        if name == "failed":
            return [[row] for row in self._index.failed.nonzero()[0].tolist()]
        if name == "exact":
            job = self.exact()
            return job.result() if job else None
        if name == "disagree":
            job = self.disagree(table, version, start)
            rows = job.result() if job else None
            return None if rows is None else [[row] for row in rows]
        job = self.near(start)
        near: Near | None = job.result() if job else None
        if near is None:
            return None
        return near.groups if name == "near" else leaks(self._index, near.groups)

    def findings(self, table: LabelTable, version: int, start: bool) -> list[Finding]:
        jobs = {
            "exact": self.exact(),
            "near": self.near(start),
            "disagree": self.disagree(table, version, start),
        }
        jobs["leak"] = jobs["near"]
        found: list[Finding] = []
        for name, title in TITLES.items():
            groups = self.groups(name, table, version)
            job = jobs.get(name)
            state = "ready" if groups is not None else "working" if job else "waiting"
            grouped = name in ("exact", "near", "leak")
            found.append(
                {
                    "set": name,
                    "title": title,
                    "about": self._about(name, jobs["near"]),
                    "state": state,
                    "progress": 1.0 if state == "ready" else job.progress if job else 0.0,
                    "images": sum(map(len, groups or ())),
                    "groups": len(groups or ()) if grouped else 0,
                }
            )
        return found

    def _about(self, name: str, near_job: Job | None) -> str:
        about = ABOUT[name]
        near: Near | None = near_job.result() if near_job else None
        if name in ("near", "leak") and near:
            about += f" Here that is a distance of {near.distance:.3g} or less."
            if not near.complete:
                about += " There are more than a million such pairs; the search stopped there."
        elif name in ("near", "leak") and near_job is None:
            about += f" Comparing all pairs takes {duration(self._index, self._by)}."
        return about


TITLES = {
    "failed": "Failed images",
    "exact": "Exact duplicates",
    "near": "Near duplicates",
    "leak": "In train and validation",
    "disagree": "Labels that neighbours contradict",
}
NEAR = "closer than a twentieth of the typical distance between two images"
ABOUT = {
    "failed": "Images that could not be read at ingest: they have no vectors and no thumbnail.",
    "exact": "Groups of images whose vectors are the same to the bit.",
    "near": f"Groups of images that are {NEAR}, identical ones included.",
    "leak": f"Groups {NEAR} that have images of both splits: validation is too easy there.",
    "disagree": "Images with a positive label whose five nearest labelled images share none of "
    "their categories.",
}
