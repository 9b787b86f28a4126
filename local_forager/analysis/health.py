"""The health report of a dataset: each check's title, explanation, state and findings."""

from functools import partial
from typing import Any

from local_forager.analysis.approximate import open_or_build, path_of, usable
from local_forager.analysis.health_checks import (
    LABELLED_NEIGHBOURS,
    NEAR_SHARE,
    PAIR_LIMIT,
    Groups,
    Near,
    disagreeing,
    exact_duplicates,
    leaks,
    near_duplicates,
    near_duplicates_in_lists,
)
from local_forager.analysis.jobs import Job, Jobs, Progress
from local_forager.indexes.index import Index
from local_forager.indexes.label_table import LabelTable
from local_forager.types import AllPairs, Finding

AUTOMATIC_ROWS = 20_000  # images up to which every check starts by itself: 7 seconds of work
PAIRS_A_SECOND = 3e7  # measured on 2 cores with 512 numbers per image
ROWS_A_SECOND = 8e3  # in lists, the inverted file included: 1,000,000 in 192 s of CPU time

TITLES = {
    "failed": "Failed images",
    "exact": "Exact duplicates",
    "near": "Near duplicates",
    "leak": "In train and validation",
    "disagree": "Labels that contradict neighbours",
}
GROUPED = ("exact", "near", "leak")
ABOUT = {
    "failed": "Images that could not be read at ingest. They have no vectors and no thumbnail.",
    "exact": "Groups of images with identical vectors.",
    "near": "Groups of almost identical images, exact duplicates included.",
    "leak": "Groups of almost identical images with images of both splits. "
    "They make validation results look better than they are.",
    "disagree": f"Images whose {LABELLED_NEIGHBOURS} nearest labelled images share none of their "
    "positive labels.",
}


def duration(index: Index, by: str) -> str:
    """About how long comparing all pairs takes, in words."""
    pairs = len(index.names) ** 2 / 2 * index.embeddings[by].dimensions / 512
    return in_words(pairs / PAIRS_A_SECOND)


def in_words(seconds: float) -> str:
    minutes = seconds / 60
    return f"about {minutes:,.0f} minutes" if minutes >= 1.5 else "about a minute"


def near_in_lists(index: Index, by: str, progress: Progress) -> Near:
    """Near duplicates by the inverted file of an embedding, which is built first if needed."""
    vectors, failed, path = index.embeddings[by], index.failed, path_of(index.directory, by)
    inverted = open_or_build(path, vectors, failed, lambda share: progress(share / 2))
    return near_duplicates_in_lists(inverted, failed, lambda share: progress((1 + share) / 2))


class Health:
    """The findings for one index and embedding, with one version of the labels."""

    def __init__(self, jobs: Jobs, index_id: str, index: Index, by: str, exact_rows: int) -> None:
        self._jobs, self._index_id, self._index, self._by = jobs, index_id, index, by
        self._in_lists = usable(len(index.names), exact_rows)

    def _key(self, kind: str, version: int = 0) -> tuple[str, str, str, int]:
        return kind, self._index_id, self._by, version

    def _job(self, kind: str, version: int, start: bool, function: Any) -> Job | None:
        key = self._key(kind, version)
        if start or len(self._index.names) <= AUTOMATIC_ROWS:
            return self._jobs.start(key, function)
        return self._jobs.get(key)

    def exact(self) -> Job | None:
        vectors, failed = self._index.embeddings[self._by], self._index.failed
        return self._job("exact", 0, True, lambda report: exact_duplicates(vectors, failed))

    def near(self, start: bool) -> Job | None:
        """The comparison of all pairs; of a large index, of similar images until all pairs are."""
        vectors, failed = self._index.embeddings[self._by], self._index.failed
        if not self._in_lists:
            return self._job("near", 0, start, partial(near_duplicates, vectors, failed))
        every = self._jobs.get(self._key("near"))
        if every and every.result():
            return every
        return self._job("near in lists", 0, start, partial(near_in_lists, self._index, self._by))

    def all_pairs(self, start: bool) -> AllPairs:
        """The comparison of all pairs of a large index, which only a person starts."""
        if not self._in_lists:
            return {"state": "none", "progress": 1.0, "duration": ""}
        vectors, failed = self._index.embeddings[self._by], self._index.failed
        compare = partial(near_duplicates, vectors, failed)
        key = self._key("near")
        job = self._jobs.start(key, compare) if start else self._jobs.get(key)
        state = "waiting" if job is None else "ready" if job.result() else "working"
        progress = job.progress if job else 0.0
        return {"state": state, "progress": progress, "duration": duration(self._index, self._by)}

    def disagree(self, table: LabelTable, version: int, start: bool) -> Job | None:
        vectors, failed = self._index.embeddings[self._by], self._index.failed
        check = partial(disagreeing, vectors, table.positive(), failed)
        return self._job("disagree", version, start, check)

    def groups(
        self, name: str, table: LabelTable, version: int, start: bool = False
    ) -> Groups | None:
        """The images of a finding, single images as groups of one; None until they are known."""
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
            found.append(
                {
                    "set": name,
                    "title": title,
                    "about": self._about(name, jobs["near"]),
                    "state": state,
                    "progress": 1.0 if state == "ready" else job.progress if job else 0.0,
                    "images": sum(map(len, groups or ())),
                    "groups": len(groups or ()) if name in GROUPED else 0,
                }
            )
        return found

    def _about(self, name: str, near_job: Job | None) -> str:
        about = ABOUT[name]
        near: Near | None = near_job.result() if near_job else None
        if name in ("near", "leak") and near:
            about += (
                f" Their distance is at most {near.distance:.3g}, {NEAR_SHARE:.0%} of the median "
                "distance between two images."
            )
            if not near.exact:
                about += " Only roughly similar images were compared: a few may be missing."
            if not near.complete:
                about += f" The search stopped after {PAIR_LIMIT:,} such pairs; there are more."
        elif name in ("near", "leak") and near_job is None:
            rows = len(self._index.names)
            takes = in_words(rows / ROWS_A_SECOND) if self._in_lists else None
            about += f" The comparison takes {takes or duration(self._index, self._by)}."
        return about
