"""Chooses a diverse or typical subset of the images of a view, as a job."""

import hashlib

import numpy as np
from aiohttp import web

from local_forager.analysis import subsets
from local_forager.analysis.duplicates import near_distance
from local_forager.indexes.index import Index
from local_forager.indexes.vectors import COMPARED_BY, Progress
from local_forager.page.rows import (
    array_response,
    choice,
    listing,
    number,
    wait_for,
)
from local_forager.page.state import View
from local_forager.types import PageError

MAX_COUNT = 10_000  # images at once


def posted_rows(body: bytes, index: Index) -> np.ndarray:
    """The rows that a request has as 32-bit numbers: ascending, each once."""
    if len(body) % 4:
        raise PageError(400, "The rows are not 32-bit numbers.")
    rows = np.unique(np.frombuffer(body, "<i4"))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < len(index.names):
        raise PageError(400, f"There are {len(index.names):,} rows, from 0.")
    return rows


async def choose(request: web.Request, view: View) -> web.Response:
    """Rows of the view, int32, the most useful first. The body: the rows chosen before, int32."""
    index, kind = view.index, choice(request, "kind", subsets.KINDS)
    by, count = choice(request, "compare", COMPARED_BY), number(request, "count", 100, 1, MAX_COUNT)
    given = posted_rows(await request.read(), index)
    given = given[~index.failed[given]].astype(np.int64)
    candidates = np.zeros(len(index.names), bool)
    candidates[(await listing(request, view)).rows] = True
    candidates &= ~index.failed
    vectors = index.embeddings[by]

    def search(progress: Progress) -> np.ndarray:
        least = near_distance(vectors, np.flatnonzero(~index.failed))
        return subsets.choose(kind, vectors, candidates, count, given, least, progress)

    asked = hashlib.blake2b(candidates.tobytes() + given.tobytes()).digest()
    job = view.page.jobs.start(("subset", index, by, kind, count, asked), search)
    return array_response((await wait_for(view, job.result)).astype("<i4"))
