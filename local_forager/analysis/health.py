"""The checks of a health report: title, explanation, state and findings of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from local_forager.analysis import comparisons, duplicates
from local_forager.analysis.duplicates import NearPairs, RowGroups
from local_forager.analysis.jobs import BackgroundJob, Jobs
from local_forager.indexes.index import Index, LabelTable
from local_forager.indexes.vectors import InvertedFile, Progress, faiss_installed
from local_forager.types import AllPairs, Finding, PageError

PAIRS_ROWS = 20_000  # images up to which all pairs are compared; in more, lists are faster
AUTOMATIC_ROWS = 20_000  # images up to which every check starts by itself: 7 seconds of work
PAIRS_A_SECOND = 3e7  # measured on 2 cores with 512 numbers per image
ROWS_A_SECOND = 8e3  # in lists, the inverted file included: 1,000,000 in 192 s of CPU time


class Limit(NamedTuple):
    """A set: the images whose field is at most, or at least, a value."""

    field: str
    value: float  # the threshold unless another is asked for
    is_most: bool
    title: str


# Crops of scikit-image's photographs, without the one of stars, have a brightness of 53 to 129, a
# contrast above 27 and a sharpness above 130. With 30% of their light, brightness is below 36;
# blurred by 2 pixels in 200, sharpness is below 21; with 10% of the contrast, contrast is below 8.
# A photograph of the moon has a contrast of 13, and one of a page of text a brightness of 172.
LIMITS = {
    "dark": Limit("brightness", 40.0, True, "Dark images"),
    "bright": Limit("brightness", 215.0, False, "Bright images"),
    "blurred": Limit("sharpness", 25.0, True, "Blurred images"),
    "flat": Limit("contrast", 10.0, True, "Flat images"),
}


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


def beyond(index: Index, name: str, threshold: float | None = None) -> np.ndarray:
    """int64, ascending: the rows of a set; PageError if the index lacks the field."""
    limit = LIMITS[name]
    field = index.fields.get(limit.field)
    if field is None:
        raise PageError(409, index.lacks["quality"])
    steps = field.steps(field.values())  # NaN, which is beyond nothing, where it is not known
    end = field.steps(limit.value if threshold is None else threshold)
    return np.flatnonzero(steps <= end if limit.is_most else steps >= end)


def duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"about {minutes:,.0f} minutes" if minutes >= 1.5 else "about a minute"


@dataclass(frozen=True, kw_only=True, eq=False)
class Health:
    """The findings for one index and embedding, with one version of the labels."""

    jobs: Jobs
    index: Index
    by: str
    table: LabelTable
    version: int = 0  # of the table
    exact_rows: int = PAIRS_ROWS  # in more, near duplicates are searched for in lists
    distance: float | None = None  # of near duplicates; None is the default
    farthest: float | None = None  # the one up to which pairs are searched for
    threshold: float | None = None  # of a set beyond a limit; None is its own

    @property
    def in_lists(self) -> bool:
        """Whether only similar images are compared for near duplicates, by an inverted file."""
        return len(self.index.names) > self.exact_rows and faiss_installed()

    def _job(
        self, kind: str, start: bool, function: Callable[[Progress], Any], version: int = 0
    ) -> BackgroundJob | None:
        key = kind, self.index, self.by, version
        return self.jobs.start(key, function) if start else self.jobs.get(key)

    def _exact(self) -> BackgroundJob:
        key = "exact", self.index, self.by, 0
        return self.jobs.start(key, partial(duplicates.exact_duplicates, self.index, self.by))

    def _every_pair(self, start: bool) -> BackgroundJob | None:
        return self._job("near", start, partial(self._search_pairs, self._exact()))

    def _search_pairs(
        self, exact: BackgroundJob, progress: Progress, inverted: InvertedFile | None = None
    ) -> NearPairs:
        """Near pairs; `exact` is the job of exact duplicates, which was started before this one."""
        copies: RowGroups = exact.future.result()  # jobs run one by one: it has ended
        return duplicates.near_pairs(self.index, self.by, copies, progress, self.farthest, inverted)

    def _search_lists(self, exact: BackgroundJob, progress: Progress) -> NearPairs:
        """Near pairs by the inverted file of an embedding, which is built first if needed."""
        inverted = self.index.inverted_file(self.by, lambda share: progress(share / 2))
        return self._search_pairs(exact, lambda share: progress((1 + share) / 2), inverted)

    def _job_of(self, name: str, start: bool) -> BackgroundJob | None:
        """The job behind a check; None if it needs none, or was not started."""
        start = start or len(self.index.names) <= AUTOMATIC_ROWS
        if name == "failed" or name in LIMITS:
            return None
        exact = self._exact()
        if name == "exact":
            return exact
        if name == "disagree":
            check = partial(
                comparisons.disagreeing,
                self.index.embeddings[self.by],
                self.index.failed,
                self.table.positive(),
            )
            return self._job("disagree", start, check, self.version)
        every = self._every_pair(start and not self.in_lists)  # else only a person starts it
        if not self.in_lists or (every and every.result()):
            return every
        return self._job("near in lists", start, partial(self._search_lists, exact))

    def _time_of_all_pairs(self) -> str:
        pairs = len(self.index.names) ** 2 / 2
        return duration(pairs * self.index.embeddings[self.by].dimensions / 512 / PAIRS_A_SECOND)

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
            return [[row] for row in self.index.failed.nonzero()[0].tolist()]
        if name in LIMITS:
            return [[row] for row in beyond(self.index, name, self.threshold).tolist()]
        job = self._job_of(name, start)
        found: NearPairs | RowGroups | None = job.result() if job else None
        if isinstance(found, NearPairs):
            distance = self.distance_in(found)
            if name == "near":
                return duplicates.near_groups(found, distance)
            return duplicates.leaks(found, distance, self.index.num_train)
        return found

    def start(self, name: str) -> BackgroundJob | None:
        """Start the job behind a finding; None if it needs none."""
        return self._job_of(name, start=True)

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
        if self.distance is None:
            return min(pairs.default, pairs.limit)
        if self.distance > pairs.limit:
            asked = f"The distance {self.distance:g} is too large"
            raise PageError(400, f"{asked}: {reach(pairs)}")
        return self.distance

    def findings(self, start: bool) -> list[Finding]:
        found: list[Finding] = []
        for name, check in CHECKS.items():
            limit = check.limit
            if limit and limit.field not in self.index.fields:
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
            rows = len(self.index.names)
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
