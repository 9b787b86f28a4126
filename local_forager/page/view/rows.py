"""Which images a view shows, and in which order."""

import asyncio
import time
from functools import partial
from typing import NamedTuple

import numpy as np
from aiohttp import web

from local_forager.analysis.health import TITLES, Health
from local_forager.analysis.health_checks import BLOCK_ROWS, Groups
from local_forager.analysis.ordering import neighbour_distances
from local_forager.indexes.vectors import Vectors
from local_forager.page.query import PageError, choice, embedding_choice, number
from local_forager.page.state import PAGE, View, view_of
from local_forager.page.view import ranges
from local_forager.page.view.filters import chosen_rows
from local_forager.types import Working

SORTS = ("name", "name-backwards", *ranges.SORTS, "outliers", "typical")
MAX_COMPARED = 200_000  # images; comparing all pairs takes about 20 minutes
MAX_TEXT = 1_000  # characters of a text to search for
WAIT = 1.0  # seconds after which a request is told to ask again
POLL = 0.05  # seconds between looks at a job


def array_response(array: np.ndarray) -> web.Response:
    return web.Response(body=array.tobytes(), headers={"Cache-Control": "no-store"})


async def likeness(request: web.Request, view: View) -> np.ndarray | None:
    """float32 (n,): the cosine to sort by; None if the request names no text and no image."""
    page, query, index = request.app[PAGE], request.query, view.index
    if query.get("text"):
        vector = await page.text_vector(query["text"][:MAX_TEXT])
        return await page.compute(index.embeddings["clip"].similarities, vector)
    if "like" in query and index.names:
        vectors = index.embeddings[embedding_choice(request)]
        row = number(request, "like", 0, 0, len(index.names) - 1)
        return await page.compute(vectors.similarities, np.array(vectors.array[row]))
    return None


async def neighbour_distances_of(request: web.Request, view: View) -> np.ndarray | None:
    """neighbour_distances of the index; None if that takes longer than WAIT."""
    if len(view.index.names) > MAX_COMPARED:
        raise PageError(
            409,
            f"Only datasets of up to {MAX_COMPARED:,} images can be sorted by their neighbours.",
        )
    by = embedding_choice(request)
    key = ("neighbour distances", view.dataset.index_id, by)
    search = partial(neighbour_distances, view.index.embeddings[by], view.index.failed)
    job = request.app[PAGE].jobs.start(key, search)
    until = time.monotonic() + WAIT
    while (result := job.result()) is None and time.monotonic() < until:
        await asyncio.sleep(POLL)
    found: np.ndarray | None = result
    return found


async def finding(request: web.Request, view: View, name: str) -> Groups | None:
    """The images that a health check found; None if that takes longer than WAIT."""
    by = embedding_choice(request)
    page = request.app[PAGE]
    health = Health(page.jobs, view.dataset.index_id, view.index, by, page.exact_rows)
    until = time.monotonic() + WAIT
    while True:
        groups = health.groups(name, view.table, view.version, start=True)
        if groups is not None or time.monotonic() > until:
            return groups
        await asyncio.sleep(POLL)


class Listing(NamedTuple):
    """The images of a view in the order in which it shows them."""

    rows: np.ndarray  # int64
    leads: np.ndarray  # bool: the first image shown of a group
    distances: np.ndarray | None  # float32 to what the view compares with; None if it does not


async def listing(request: web.Request, view: View) -> Listing | None:
    """The images that the request asks for; None while they are still being compared."""
    chosen = chosen_rows(request, view)
    names = view.index.names
    sort = choice(request, "sort", ("", *SORTS))
    for allowed in (await ranges.within(request, view)).values():
        chosen &= allowed
    name = choice(request, "set", ("", *TITLES))
    if name:
        groups = await finding(request, view, name)
        if groups is None:
            return None
        vectors = view.index.embeddings[embedding_choice(request)]
        return await request.app[PAGE].compute(grouped, groups, chosen, vectors)
    cosine = await likeness(request, view)
    order = np.flatnonzero(chosen)
    if cosine is None and sort in ("outliers", "typical"):
        column = 0 if sort == "outliers" else 1
        found = await neighbour_distances_of(request, view)
        if found is None:
            return None
        order = order[~view.index.failed[order]]
        values = found[order, column]
        order = order[np.argsort(-values if sort == "outliers" else values, kind="stable")]
        return Listing(order, np.zeros(len(order), bool), found[order, column])
    if cosine is None:
        if sort in ("name", "name-backwards"):
            ordered = sorted(order.tolist(), key=names.__getitem__, reverse=sort != "name")
            order = np.array(ordered, np.int64)
        elif sort:
            field, sign = ranges.SORTS[sort]
            values = await ranges.measures(request, view, field)
            order = order[values[order] >= 0]
            order = order[np.argsort(sign * values[order], kind="stable")]
        return Listing(order, np.zeros(len(order), bool), None)
    order = order[~view.index.failed[order]]
    order = order[np.argsort(-cosine[order], kind="stable")]
    return Listing(order, np.zeros(len(order), bool), np.maximum(1 - cosine[order], 0))


def grouped(groups: Groups, chosen: np.ndarray, vectors: Vectors) -> Listing:
    """The chosen images of each group; distances are to the first one of the group."""
    left = [[row for row in group if chosen[row]] for group in groups]
    rows = np.array([row for group in left for row in group], np.int64)
    firsts = np.array([group[0] for group in left for _ in group], np.int64)
    leads = np.array(
        [
            len(group) > 1 and row == kept[0]
            for group, kept in zip(groups, left, strict=True)
            for row in kept
        ],
        bool,
    )
    if not leads.any():
        return Listing(rows, leads, None)
    distances = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        pairs = vectors.array[rows[part]], vectors.array[firsts[part]]
        distances[part] = 1 - np.einsum("ij,ij->i", *pairs)
    distances[rows == firsts] = 0
    return Listing(rows, leads, np.maximum(distances, 0))


def comparing(request: web.Request) -> Working:
    return {"working": f"Comparing images: {request.app[PAGE].jobs.progress():.0%}"}


async def rows(request: web.Request) -> web.Response | Working:
    """The rows of a view: int32; the first row of a group of two or more is sent as -1 - row."""
    found = await listing(request, await view_of(request))
    if found is None:
        return comparing(request)
    return array_response(np.where(found.leads, -1 - found.rows, found.rows).astype("<i4"))


async def distances(request: web.Request) -> web.Response | Working:
    """The distance of each row of a view: float32, in the order of `rows`; empty if it has none."""
    found = await listing(request, await view_of(request))
    if found is None:
        return comparing(request)
    none = np.zeros(0, np.float32)
    return array_response((none if found.distances is None else found.distances).astype("<f4"))
