"""Which images a view shows, and in which order."""

import asyncio
import time

import numpy as np
from aiohttp import web

from local_forager.analysis.health import TITLES, Health
from local_forager.analysis.health_checks import Groups
from local_forager.page.query import choice, embedding_choice, number
from local_forager.page.state import PAGE, View, view_of
from local_forager.types import Working

MAX_TEXT = 1_000  # characters of a text to search for
WAIT = 1.0  # seconds after which a request is told to ask again
POLL = 0.05  # seconds between looks at a job


def array_response(array: np.ndarray) -> web.Response:
    return web.Response(body=array.tobytes(), headers={"Cache-Control": "no-store"})


def chosen_rows(request: web.Request, view: View) -> np.ndarray:
    """bool (n,): the images that pass the filters of the request."""
    query, index = request.query, view.index
    chosen = np.ones(len(index.names), bool)
    split = choice(request, "split", ("", "train", "val"))
    if split:
        others = slice(index.num_train, None) if split == "train" else slice(index.num_train)
        chosen[others] = False
    if "category" in query:
        labelled = np.zeros(len(chosen), bool)
        labelled[view.table.select(query["category"], query.get("mode"))] = True
        chosen &= labelled
    if query.get("labelled"):
        labelled = np.zeros(len(chosen), bool)
        labelled[list(view.table.of_row)] = True
        chosen &= labelled == (choice(request, "labelled", ("yes", "no")) == "yes")
    if "class" in query:
        chosen &= index.classes == number(request, "class", 0, 0, 2**31 - 1)
    return chosen


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


async def finding(request: web.Request, view: View, name: str) -> Groups | None:
    """The images that a health check found; None if that takes longer than WAIT."""
    by = embedding_choice(request)
    health = Health(request.app[PAGE].jobs, view.dataset.index_id, view.index, by)
    until = time.monotonic() + WAIT
    while True:
        groups = health.groups(name, view.table, view.version, start=True)
        if groups is not None or time.monotonic() > until:
            return groups
        await asyncio.sleep(POLL)


async def rows(request: web.Request) -> web.Response | Working:
    """The rows of a view: int32, little-endian; the first row of each group is sent as -1 - row."""
    view = await view_of(request)
    chosen = chosen_rows(request, view)
    name = choice(request, "set", ("", *TITLES))
    if name:
        groups = await finding(request, view, name)
        if groups is None:
            return {"working": "The images are being compared."}
        found: list[int] = []
        for group in groups:
            left = [row for row in group if chosen[row]]
            found += [-1 - row if len(group) > 1 and row == left[0] else row for row in left]
        return array_response(np.array(found, "<i4"))
    cosine = await likeness(request, view)
    order = np.flatnonzero(chosen)
    if cosine is not None:
        order = order[~view.index.failed[order]]
        order = order[np.argsort(-cosine[order], kind="stable")]
    return array_response(order.astype("<i4"))
