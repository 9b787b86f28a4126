"""The checks of a health report: title, explanation, state and findings of each."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from local_forager.analysis import comparisons, duplicates
from local_forager.analysis.duplicates import NearPairs, RowGroups
from local_forager.analysis.jobs import BackgroundJob, Jobs
from local_forager.indexes.index import Index, LabelTable
from local_forager.indexes.vectors import Progress, faiss_installed, part
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


# Crops of scikit-image's photographs, without the one of stars, have a brightness of 53 to 129, a
# contrast above 27 and a sharpness above 130. With 30% of their light, brightness is below 36;
# blurred by 2 pixels in 200, sharpness is below 21; with 10% of the contrast, contrast is below 8.
# A photograph of the moon has a contrast of 13, and one of a page of text a brightness of 172.
LIMITS = {
    "dark": Limit("brightness", 40.0, True),
    "bright": Limit("brightness", 215.0, False),
    "blurred": Limit("sharpness", 25.0, True),
    "flat": Limit("contrast", 10.0, True),
}


class Check(NamedTuple):
    title: str
    about: str


NEAR = ("near", "leak")  # which a distance changes
GROUPED = ("exact", *NEAR)
CHECKS = {
    "failed": Check(
        "Failed images",
        "Images that could not be read at ingest. They have no vectors and no thumbnail.",
    ),
    "exact": Check("Exact duplicates", "Groups of images with identical vectors."),
    "near": Check(
        "Near duplicates",
        "Groups of almost identical images, exact duplicates included: a kept image, with the most "
        "pixels of its group, and the images within the distance of it.",
    ),
    "leak": Check(
        "In train and validation",
        "Groups of almost identical images with images of both splits. They make validation "
        "results look better than they are.",
    ),
    "disagree": Check(
        "Labels that contradict neighbours",
        f"Images whose {comparisons.LABELLED_NEIGHBOURS} nearest labelled images share none of "
        "their positive labels.",
    ),
    **{
        name: Check(
            f"{name.capitalize()} images",
            f"Their {limit.field} is at {'most' if limit.is_most else 'least'} {limit.value:g}. "
            "The range beside the images sets another limit.",
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Health:
    """The findings for one index, embedding and table."""

    jobs: Jobs
    index: Index
    by: str
    table: LabelTable
    exact_rows: int = PAIRS_ROWS  # in more, near duplicates are searched for in lists
    distance: float | None = None  # of near duplicates; None is the default
    farthest: float | None = None  # the one up to which pairs are searched for
    threshold: float | None = None  # of a set beyond a limit; None is its own

    @property
    def in_lists(self) -> bool:
        """Whether only similar images are compared for near duplicates, by an inverted file."""
        return len(self.index.names) > self.exact_rows and faiss_installed()

    def _search(self, kind: str, progress: Progress) -> NearPairs | RowGroups:
        """What the job of this kind finds."""
        if kind == "exact":
            return duplicates.exact_duplicates(self.index, self.by, progress)
        if kind == "disagree":
            vectors, positive = self.index.embeddings[self.by], self.table.positive()
            return comparisons.disagreeing(vectors, self.index.failed, positive, progress)
        if kind == "all pairs":
            return duplicates.near_pairs(self.index, self.by, progress, self.farthest)
        inverted = self.index.inverted_file(self.by, part(progress, 0, 0.5))
        rest = part(progress, 0.5, 1)
        return duplicates.near_pairs(self.index, self.by, rest, self.farthest, inverted)

    def _job(self, kind: str, start: bool) -> BackgroundJob | None:
        key = kind, self.index, self.by, self.table.version if kind == "disagree" else 0
        return self.jobs.start(key, partial(self._search, kind)) if start else self.jobs.get(key)

    def job(self, name: str, start: bool) -> BackgroundJob | None:
        """The job behind a check; None if it needs none, or was not started."""
        start = start or len(self.index.names) <= AUTOMATIC_ROWS
        if name == "failed" or name in LIMITS:
            return None
        if name not in NEAR:
            return self._job(name, start or name == "exact")
        every = self._job("all pairs", start and not self.in_lists)  # else only a person starts it
        if not self.in_lists or (every and every.result()):
            return every
        return self._job("in lists", start)

    def _duration(self, in_lists: bool) -> str:
        """About how long the comparison for near duplicates takes."""
        rows, dimensions = len(self.index.names), self.index.embeddings[self.by].dimensions
        of_all = rows**2 / 2 * dimensions / 512 / PAIRS_A_SECOND
        minutes = (rows / ROWS_A_SECOND if in_lists else of_all) / 60
        return f"about {minutes:,.0f} minutes" if minutes >= 1.5 else "about a minute"

    def all_pairs(self, start: bool) -> AllPairs:
        """The comparison of all pairs of a large index."""
        if not self.in_lists:
            return {"state": "none", "progress": 1.0, "duration": ""}
        job = self._job("all pairs", start)
        state = "waiting" if job is None else "ready" if job.result() else "working"
        progress = job.progress if job else 0.0
        return {"state": state, "progress": progress, "duration": self._duration(False)}

    def groups(self, name: str, start: bool = False) -> RowGroups | None:
        """The images of a finding, single images as groups of one; None until they are known.

        Raises:
            PageError: the index lacks what they are found by.
        """
        if name == "failed":
            return [[row] for row in self.index.failed.nonzero()[0].tolist()]
        if name in LIMITS:
            return [[row] for row in beyond(self.index, name, self.threshold).tolist()]
        job = self.job(name, start)
        found: NearPairs | RowGroups | None = job.result() if job else None
        if isinstance(found, NearPairs):
            distance = self.distance_in(found)
            if name == "near":
                return duplicates.near_groups(found, distance)
            return duplicates.leaks(found, distance, self.index.num_train)
        return found

    def pairs(self) -> NearPairs | None:
        """The pairs of near duplicates; None until they are known."""
        job = self.job("near", start=False)
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
            raise PageError(400, f"The distance {self.distance:g} is too large: {reach(pairs)}")
        return self.distance

    def findings(self, start: bool) -> list[Finding]:
        found: list[Finding] = []
        for name, check in CHECKS.items():
            limit = LIMITS.get(name)
            if limit and limit.field not in self.index.fields:
                continue
            groups, job = self.groups(name, start), self.job(name, start)
            state = "ready" if groups is not None else "working" if job else "waiting"
            found.append(
                {
                    "set": name,
                    "title": check.title,
                    "about": check.about + self._note(name, job),
                    "state": state,
                    "progress": 1.0 if state == "ready" else job.progress if job else 0.0,
                    "images": sum(map(len, groups or ())),
                    "groups": len(groups or ()) if name in GROUPED else 0,
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
            return f" The comparison takes {self._duration(self.in_lists)}."
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
        known = f"only the {duplicates.PAIR_LIMIT:,} nearest pairs are known"
        return f"{known}, up to a distance of {pairs.limit:.3g}."
    share = f"{duplicates.FAR_SHARE:.0%} of the median distance between two images"
    return f"pairs are searched for up to {pairs.limit:.3g}, {share}."
