"""Long computations in the background, and the health report that is made of them.

The report has each check's title, explanation, state and findings.
"""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from local_forager.analysis import comparisons, duplicates
from local_forager.analysis.duplicates import NearPairs, RowGroups
from local_forager.analysis.quality import LIMITS, Limit, beyond
from local_forager.indexes.index import Index, LabelTable
from local_forager.indexes.vectors import InvertedFile, Progress, faiss_installed
from local_forager.types import AllPairs, Finding, PageError

KEPT_JOBS = 100  # that have ended
PAIRS_ROWS = 20_000  # images up to which all pairs are compared; in more, lists are faster
AUTOMATIC_ROWS = 20_000  # images up to which every check starts by itself: 7 seconds of work
PAIRS_A_SECOND = 3e7  # measured on 2 cores with 512 numbers per image
ROWS_A_SECOND = 8e3  # in lists, the inverted file included: 1,000,000 in 192 s of CPU time


@dataclass
class BackgroundJob:
    future: Future[Any] = field(init=False)
    progress: float = 0.0

    def result(self) -> Any:
        """The job's result, None until it has ended; raises what the job raised."""
        return self.future.result() if self.future.done() else None


class Jobs:
    """Jobs by a key that names everything their result depends on; each key runs once.

    Results are kept, except for those that were not asked for while KEPT_JOBS others were.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._jobs: dict[Hashable, BackgroundJob] = {}
        self._lock = threading.Lock()
        self._latest = BackgroundJob()  # the one that reported progress last
        self._closed = False

    def start(self, key: Hashable, function: Callable[[Progress], Any]) -> BackgroundJob:
        """The job of this key, started if it is new. It calls its argument to report progress."""

        def report(progress: float) -> None:
            job.progress = progress
            self._latest = job
            if self._closed:
                raise CancelledError

        with self._lock:
            if found := self._kept(key):
                return found
            job = self._jobs[key] = BackgroundJob()
            job.future = self._executor.submit(function, report)
            ended = [old for old, other in self._jobs.items() if other.future.done()]
            for old in ended[: max(0, len(self._jobs) - KEPT_JOBS)]:
                del self._jobs[old]
            return job

    def get(self, key: Hashable) -> BackgroundJob | None:
        with self._lock:
            return self._kept(key)

    def _kept(self, key: Hashable) -> BackgroundJob | None:
        """The job of this key, which becomes the last to be left out."""
        if found := self._jobs.pop(key, None):
            self._jobs[key] = found
        return found

    def progress(self) -> float:
        """The progress of the job that is running, 0 to 1."""
        return self._latest.progress

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)


class Check(NamedTuple):
    title: str
    about: str
    is_grouped: bool = False
    limit: Limit | None = None  # the set is the images beyond it


NEAR = ("near", "leak")  # which a distance changes
CHECKS = {
    "failed": Check(
        "Failed images",
        "Images that could not be read at ingest. They have no vectors and no thumbnail.",
    ),
    "exact": Check("Exact duplicates", "Groups of images with identical vectors.", True),
    "near": Check(
        "Near duplicates",
        "Groups of almost identical images, exact duplicates included: a kept image, with the most "
        "pixels of its group, and the images within the distance of it.",
        True,
    ),
    "leak": Check(
        "In train and validation",
        "Groups of almost identical images with images of both splits. They make validation "
        "results look better than they are.",
        True,
    ),
    "disagree": Check(
        "Labels that contradict neighbours",
        f"Images whose {comparisons.LABELLED_NEIGHBOURS} nearest labelled images share none of "
        "their positive labels.",
    ),
    **{
        name: Check(
            limit.title,
            f"Their {limit.field} is at {'most' if limit.is_most else 'least'} {limit.value:g}. "
            "The range beside the images sets another limit.",
            limit=limit,
        )
        for name, limit in LIMITS.items()
    },
}


def duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"about {minutes:,.0f} minutes" if minutes >= 1.5 else "about a minute"


class Health:
    """The findings for one index and embedding, with one version of the labels.

    `in_lists`: near duplicates are searched for among similar images only, by an inverted file.
    `start` starts the checks of an index of more than AUTOMATIC_ROWS. `distance` is that of near
    duplicates, None for the default; `farthest` the one up to which pairs are searched for;
    `threshold` that of a set beyond a limit, None for its own.
    """

    def __init__(
        self,
        jobs: Jobs,
        index: Index,
        by: str,
        exact_rows: int,
        table: LabelTable,
        version: int,
        *,
        distance: float | None = None,
        farthest: float | None = None,
        threshold: float | None = None,
    ) -> None:
        self._jobs, self._index, self._by = jobs, index, by
        self._table, self._version = table, version
        self._distance, self._farthest, self._threshold = distance, farthest, threshold
        self.in_lists = len(index.names) > exact_rows and faiss_installed()
        self._compared = index.embeddings[by], index.failed  # what every comparison begins with

    def _job(
        self, kind: str, start: bool, function: Callable[[Progress], Any], version: int = 0
    ) -> BackgroundJob | None:
        key = kind, self._index, self._by, version
        return self._jobs.start(key, function) if start else self._jobs.get(key)

    def _exact(self) -> BackgroundJob:
        key = "exact", self._index, self._by, 0
        return self._jobs.start(key, partial(duplicates.exact_duplicates, self._index, self._by))

    def _every_pair(self, start: bool) -> BackgroundJob | None:
        return self._job("near", start, partial(self._search_pairs, self._exact()))

    def _search_pairs(
        self, exact: BackgroundJob, progress: Progress, inverted: InvertedFile | None = None
    ) -> NearPairs:
        """Near pairs; `exact` is the job of exact duplicates, which was started before this one."""
        copies: RowGroups = exact.future.result()  # jobs run one by one: it has ended
        return duplicates.near_pairs(
            self._index, self._by, copies, progress, self._farthest, inverted
        )

    def _search_lists(self, exact: BackgroundJob, progress: Progress) -> NearPairs:
        """Near pairs by the inverted file of an embedding, which is built first if needed."""
        inverted = self._index.inverted_file(self._by, lambda share: progress(share / 2))
        return self._search_pairs(exact, lambda share: progress((1 + share) / 2), inverted)

    def _job_of(self, name: str, start: bool) -> BackgroundJob | None:
        """The job behind a check; None if it needs none, or was not started."""
        start = start or len(self._index.names) <= AUTOMATIC_ROWS
        if name == "failed" or name in LIMITS:
            return None
        exact = self._exact()
        if name == "exact":
            return exact
        if name == "disagree":
            check = partial(comparisons.disagreeing, *self._compared, self._table.positive())
            return self._job("disagree", start, check, self._version)
        every = self._every_pair(start and not self.in_lists)  # else only a person starts it
        if not self.in_lists or (every and every.result()):
            return every
        return self._job("near in lists", start, partial(self._search_lists, exact))

    def _time_of_all_pairs(self) -> str:
        pairs = len(self._index.names) ** 2 / 2
        return duration(pairs * self._compared[0].dimensions / 512 / PAIRS_A_SECOND)

    def all_pairs(self, start: bool) -> AllPairs:
        """The comparison of all pairs of a large index."""
        if not self.in_lists:
            return {"state": "none", "progress": 1.0, "duration": ""}
        job = self._every_pair(start)
        state = "waiting" if job is None else "ready" if job.result() else "working"
        progress = job.progress if job else 0.0
        return {"state": state, "progress": progress, "duration": self._time_of_all_pairs()}

    def groups(self, name: str, start: bool = False) -> RowGroups | None:
        """The images of a finding, single images as groups of one; None until they are known.

        Raises:
            PageError: the index lacks what they are found by.
        """
        if name == "failed":
            return [[row] for row in self._index.failed.nonzero()[0].tolist()]
        if name in LIMITS:
            return [[row] for row in beyond(self._index, name, self._threshold).tolist()]
        job = self._job_of(name, start)
        found: NearPairs | RowGroups | None = job.result() if job else None
        if isinstance(found, NearPairs):
            distance = self.distance_in(found)
            if name == "near":
                return duplicates.near_groups(found, distance)
            return duplicates.leaks(found, distance, self._index.num_train)
        return found

    def is_ready(self, name: str, start: bool = False) -> bool:
        """Whether the groups of a finding can be told."""
        job = self._job_of(name, start)
        return name == "failed" or name in LIMITS or (job is not None and job.result() is not None)

    def pairs(self) -> NearPairs | None:
        """The pairs of near duplicates; None until they are known."""
        job = self._job_of("near", start=False)
        pairs: NearPairs | None = job.result() if job else None
        return pairs

    def distance_in(self, pairs: NearPairs) -> float:
        """The distance that was asked for, or the default as far as pairs are known.

        Raises:
            PageError: pairs are not known up to this distance.
        """
        if self._distance is None:
            return min(pairs.default, pairs.limit)
        if self._distance > pairs.limit:
            asked = f"The distance {self._distance:g} is too large"
            raise PageError(400, f"{asked}: {reach(pairs)}")
        return self._distance

    def findings(self, start: bool) -> list[Finding]:
        found: list[Finding] = []
        for name, check in CHECKS.items():
            limit = check.limit
            if limit and limit.field not in self._index.fields:
                continue
            groups, job = self.groups(name, start), self._job_of(name, start)
            state = "ready" if groups is not None else "working" if job else "waiting"
            found.append(
                {
                    "set": name,
                    "title": check.title,
                    "about": check.about + self._note(name, job),
                    "state": state,
                    "progress": 1.0 if state == "ready" else job.progress if job else 0.0,
                    "images": sum(map(len, groups or ())),
                    "groups": len(groups or ()) if check.is_grouped else 0,
                    "field": limit.field if limit else "",
                    "least": limit.value if limit and not limit.is_most else None,
                    "most": limit.value if limit and limit.is_most else None,
                }
            )
        return found

    def _note(self, name: str, job: BackgroundJob | None) -> str:
        """What the comparison for near duplicates did, or how long it will take."""
        if name not in NEAR:
            return ""
        if job is None:
            rows = len(self._index.names)
            takes = duration(rows / ROWS_A_SECOND) if self.in_lists else self._time_of_all_pairs()
            return f" The comparison takes {takes}."
        pairs: NearPairs | None = job.result()
        if pairs is None:
            return ""
        note = f" The distance is {self.distance_in(pairs):.3g}."
        if not pairs.exact:
            note += " Only roughly similar images were compared: a few may be missing."
        return note


def reach(pairs: NearPairs) -> str:
    """Why pairs are known up to a distance, in one sentence."""
    if pairs.is_cut:
        return (
            f"only the {duplicates.PAIR_LIMIT:,} nearest pairs of images are known, and their "
            f"distance is up to {pairs.limit:.3g}."
        )
    return (
        f"pairs are searched for up to {pairs.limit:.3g}, {duplicates.FAR_SHARE:.0%} of the median "
        "distance between two images."
    )
