"""The page's questions whose answers are arrays: rows of a view, the map and its colours."""

import asyncio
import time

import numpy as np
from aiohttp import web

from local_forager.analysis.health import Groups
from local_forager.analysis.health_jobs import TITLES, Health
from local_forager.analysis.projection import METHODS, umap_installed
from local_forager.page.page import (
    PAGE,
    PageError,
    View,
    answer_bytes,
    choice,
    embedding_choice,
    number,
    view_of,
)
from local_forager.types import Working

MAX_TEXT = 1_000  # characters
WAIT = 1.0  # seconds until an answer that takes longer is put off
UMAP_MISSING = "Install umap-learn beside local_forager to lay the map out by UMAP."


def chosen_rows(request: web.Request, view: View) -> np.ndarray:
    """bool (n,): the images that the filters in the query leave."""
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
    """float32 (n,): the cosine by which the query asks to sort, None where it does not."""
    page, query, index = request.app[PAGE], request.query, view.index
    if query.get("text"):
        vector = await page.text_vector(query["text"][:MAX_TEXT])
        return await page.compute(index.embeddings["clip"].similarities, vector)
    if "like" in query and index.names:
        embedding = index.embeddings[embedding_choice(request)]
        row = number(request, "like", 0, 0, len(index.names) - 1)
        return await page.compute(embedding.similarities, np.array(embedding.vectors[row]))
    return None


async def finding(request: web.Request, view: View, name: str) -> Groups | None:
    """The images that a check of the dataset's health found; None if it takes longer than WAIT."""
    by = embedding_choice(request)
    health = Health(request.app[PAGE].jobs, view.dataset.index_id, view.index, by)
    until = time.monotonic() + WAIT
    while True:
        groups = health.groups(name, view.table, view.version, start=True)
        if groups is not None or time.monotonic() > until:
            return groups
        await asyncio.sleep(0.05)


async def rows(request: web.Request) -> web.Response | Working:
    """The rows of a view: int32, little-endian; the first of a group of duplicates as -1 - row."""
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
        return answer_bytes(np.array(found, "<i4").tobytes())
    cosine = await likeness(request, view)
    order = np.flatnonzero(chosen)
    if cosine is not None:
        order = order[~view.index.failed[order]]
        order = order[np.argsort(-cosine[order], kind="stable")]
    return answer_bytes(order.astype("<i4").tobytes())


async def map_points(request: web.Request) -> web.Response | Working:
    """x and y of each row within -1..1: float32 pairs, little-endian; NaN for failed images."""
    view = await view_of(request)
    by, method = embedding_choice(request), choice(request, "method", METHODS)
    if method == "umap" and not umap_installed():
        raise PageError(409, UMAP_MISSING)
    future = request.app[PAGE].map(view.dataset.index_id, view.index, by, method)
    await asyncio.wait([future], timeout=WAIT)
    if not future.done():
        return {"working": "The map is being computed."}
    return answer_bytes(future.result())


async def column(request: web.Request) -> web.Response:
    """One int32 a row, little-endian, to colour by: see docs/page-api.md."""
    view = await view_of(request)
    kind = request.match_info["column"]
    values = np.full(len(view.index.names), -1, "<i4")
    if kind == "split":
        values[:] = 1
        values[: view.index.num_train] = 0
    elif kind == "class":
        values[:] = view.index.classes
    else:
        positive = view.table.positive()
        for place, category in reversed(list(enumerate(sorted(view.table.rows)))):
            values[positive.get(category, [])] = place
    return answer_bytes(values.tobytes())
