"""The map of a dataset: a point per image, and columns to colour the points by."""

import asyncio

import numpy as np
from aiohttp import web

from local_forager.analysis.projection import METHODS, umap_installed
from local_forager.page.query import PageError, choice, embedding_choice
from local_forager.page.state import PAGE, view_of
from local_forager.page.view.rows import WAIT, array_response
from local_forager.types import Working

MODES = ("POSITIVE", "NEGATIVE", "HARD_NEGATIVE", "UNSURE")  # others are custom modes
UMAP_MISSING = "Install umap-learn beside local_forager for a UMAP layout."


async def map_points(request: web.Request) -> web.Response | Working:
    """x and y of each row within -1 to 1: float32 pairs, little-endian; NaN for failed images."""
    view = await view_of(request)
    by, method = embedding_choice(request), choice(request, "method", METHODS)
    if method == "umap" and not umap_installed():
        raise PageError(409, UMAP_MISSING)
    future = request.app[PAGE].map(view.dataset.index_id, view.index, by, method)
    await asyncio.wait([future], timeout=WAIT)
    if not future.done():
        return {"working": "Computing the map"}
    return web.Response(body=future.result(), headers={"Cache-Control": "no-store"})


async def column(request: web.Request) -> web.Response:
    """One little-endian int32 per row; docs/page-api.md describes each column."""
    view = await view_of(request)
    kind = request.match_info["column"]
    values = np.full(len(view.index.names), -1, "<i4")
    if kind == "split":
        values[:] = 1
        values[: view.index.num_train] = 0
    elif kind == "class":
        values[:] = view.index.classes
    elif kind == "category":
        modes = view.table.rows.get(request.query.get("category", ""), {})
        for mode, rows in modes.items():
            values[rows] = MODES.index(mode) if mode in MODES else len(MODES)
    else:
        positive = view.table.positive()
        places = {category: place for place, category in enumerate(sorted(view.table.rows))}
        # The commonest first: the rarest label of an image, which says most about it, counts.
        for category in sorted(positive, key=lambda category: -len(positive[category])):
            values[positive[category]] = places[category]
    return array_response(values)
