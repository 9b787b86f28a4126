"""Which images a view shows, in which order, and how their fields are distributed."""

import hashlib
from functools import partial
from typing import NamedTuple

import numpy as np
from aiohttp import web

from local_forager.analysis import subsets
from local_forager.analysis.comparisons import neighbour_distances
from local_forager.analysis.duplicates import BLOCK_ROWS, RowGroups, near_distance
from local_forager.analysis.health import CHECKS
from local_forager.indexes.fields import Field
from local_forager.indexes.own_columns import TextColumn
from local_forager.indexes.vectors import Progress, Vectors, in_order
from local_forager.page import filters
from local_forager.page.questions import PREFIX
from local_forager.page.state import View
from local_forager.types import FacetCounts, Histogram, HistogramList, PageError, TextCounts

BY_NEIGHBOURS = {"outliers": (0, -1), "typical": (1, 1)}  # column of neighbour_distances, sign
SORTS = ("name", "name-backwards", *BY_NEIGHBOURS)  # beside those by a field
FIELD_SORTS = {  # names of orders by the fields that every index has; others are NAME and -NAME
    **{"smallest": "bytes", "largest": "-bytes", "narrowest": "width", "widest": "-width"},
    **{"lowest": "height", "tallest": "-height", "portrait": "aspect", "landscape": "-aspect"},
}
MAX_COMPARED = 200_000  # images; comparing all pairs takes about 20 minutes
MAX_TEXT = 1_000  # characters of a text to search for
MAX_CHOSEN = 10_000  # images of a subset


class Listing(NamedTuple):
    """The images of a view in the order in which it shows them."""

    rows: np.ndarray  # int64
    leads: np.ndarray | None = None  # bool: the first image shown of a group
    distances: np.ndarray | None = None  # to what it compares with; or the sizes it is sorted by


def array_response(array: np.ndarray) -> web.Response:
    return web.Response(body=array.tobytes(), headers={"Cache-Control": "no-store"})


async def likeness(request: web.Request, view: View) -> np.ndarray | None:
    """float32 (n,): the cosine to sort by; None if the request names nothing to compare with."""
    index, by = view.index, filters.embedding_choice(request)
    if text := request.query.get("text"):
        by, vector = "clip", await view.page.text_vector(text[:MAX_TEXT])
    elif (like := request.query.get("like", "")).startswith(PREFIX):
        vector = await view.page.questions.vector(like, by, index)
    elif "like" in request.query and index.names:
        row = filters.number(request, "like", 0, 0, len(index.names) - 1)
        vector = np.array(index.embeddings[by].array[row])
    else:
        return None
    return await view.page.compute(partial(index.embeddings[by].similarities, vector))


def no_neighbour_sorts(images: int) -> str | None:
    """Why so many images cannot be sorted by their neighbours; None if they can."""
    if images <= MAX_COMPARED:
        return None
    return f"Only datasets of up to {MAX_COMPARED:,} images can be sorted by their neighbours."


async def distances_to_neighbours(request: web.Request, view: View) -> np.ndarray:
    """neighbour_distances of the index."""
    if problem := no_neighbour_sorts(len(view.index.names)):
        raise PageError(409, problem)
    by = filters.embedding_choice(request)
    search = partial(neighbour_distances, view.index.embeddings[by], view.index.failed)
    job = view.page.jobs.start(("neighbour distances", view.index, by), search)
    found: np.ndarray = await view.page.result_of(job)
    return found


async def finding(request: web.Request, view: View) -> RowGroups | None:
    """What the health check that the request names found; None if it names none."""
    if not (name := filters.choice(request, "set", ("", *CHECKS))):
        return None
    by, distance = filters.embedding_choice(request), filters.distance_choice(request)
    health = view.health(by, distance, filters.limit_of(request, "threshold"))
    if job := health.job(name, start=True):
        await view.page.result_of(job)
    return await view.page.compute(partial(health.groups, name))


async def all_masks(request: web.Request, view: View) -> dict[str, np.ndarray]:
    """The masks_of with what the health check found as "set"."""
    masks = await filters.masks_of(request, view)
    if (groups := await finding(request, view)) is not None:
        masks["set"] = np.zeros(len(view.index.names), bool)
        masks["set"][[row for group in groups for row in group]] = True
    return masks


async def listing(request: web.Request, view: View) -> Listing:
    """The images that the request asks for."""
    chosen = filters.passing(await filters.masks_of(request, view), view)
    sort = request.query.get("sort", "")
    by_field = FIELD_SORTS.get(sort, sort) if sort not in ("", *SORTS) else ""
    field = await filters.field_of(by_field.removeprefix("-"), view) if by_field else None
    if (groups := await finding(request, view)) is not None:
        vectors = view.index.embeddings[filters.embedding_choice(request)]
        return await view.page.compute(partial(grouped, groups, chosen, vectors))
    good = np.flatnonzero(chosen & ~view.index.failed)
    cosine = await likeness(request, view)
    if cosine is not None:
        order = in_order(good, -cosine)
        return Listing(order, distances=np.maximum(1 - cosine[order], 0))
    if sort in BY_NEIGHBOURS:
        column, sign = BY_NEIGHBOURS[sort]
        values = (await distances_to_neighbours(request, view))[:, column]
        order = in_order(good, sign * values)
        return Listing(order, distances=values[order])
    order = np.flatnonzero(chosen)
    if field:
        values = field.values()
        known = order[~np.isnan(values[order])]
        order = in_order(known, -values if by_field.startswith("-") else values)
        return Listing(order, distances=values[order])
    if sort:
        by_name, backwards = view.index.names.__getitem__, sort != "name"
        named = partial(sorted, order.tolist(), key=by_name, reverse=backwards)
        order = np.array(await view.page.compute(named), np.int64)
    return Listing(order)


def grouped(groups: RowGroups, chosen: np.ndarray, vectors: Vectors) -> Listing:
    """The chosen images of each group; distances are to the first one of the group."""
    shown = []  # row, first row of its group, whether it is the first that is shown of several
    for group in groups:
        kept = [row for row in group if chosen[row]]
        shown += [(row, group[0], row == kept[0] and len(group) > 1) for row in kept]
    rows, firsts, first_shown = np.array(shown, np.int64).reshape(-1, 3).T
    leads = first_shown.astype(bool)
    if not leads.any():
        return Listing(rows)
    distances = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        pairs = vectors.array[rows[part]], vectors.array[firsts[part]]
        distances[part] = 1 - np.einsum("ij,ij->i", *pairs)
    distances[rows == firsts] = 0
    return Listing(rows, leads, np.maximum(distances, 0))


async def rows(request: web.Request, view: View) -> web.Response:
    """The rows of a view: int32; the first row of a group of two or more is sent as -1 - row."""
    found = await listing(request, view)
    numbers = found.rows if found.leads is None else np.where(found.leads, ~found.rows, found.rows)
    return array_response(numbers.astype("<i4"))


async def distances(request: web.Request, view: View) -> web.Response:
    """The distance or size of each row of a view: float32, in the order of `rows`; or empty."""
    found = (await listing(request, view)).distances
    return array_response(np.array([] if found is None else found, "<f4"))


async def choose(request: web.Request, view: View) -> web.Response:
    """Rows of the view, int32, the most useful first. The body: the rows chosen before, int32."""
    index, kind = view.index, filters.choice(request, "kind", subsets.KINDS)
    by = filters.embedding_choice(request, "compare")
    count = filters.number(request, "count", 100, 1, MAX_CHOSEN)
    given = await filters.posted_rows(request, index)
    given = given[~index.failed[given]].astype(np.int64)
    candidates = np.zeros(len(index.names), bool)
    candidates[(await listing(request, view)).rows] = True
    candidates &= ~index.failed
    vectors = index.embeddings[by]

    def search(progress: Progress) -> np.ndarray:
        least = near_distance(vectors, index.failed)
        return subsets.choose(kind, vectors, candidates, count, given, least, progress)

    asked = hashlib.blake2b(candidates.tobytes() + given.tobytes()).digest()
    job = view.page.jobs.start(("subset", index, by, kind, count, asked), search)
    return array_response((await view.page.result_of(job)).astype("<i4"))


async def facet_counts(request: web.Request, view: View) -> FacetCounts:
    """How many images each choice of a filter has, of those that pass all other filters."""
    masks, index = await all_masks(request, view), view.index

    def count() -> FacetCounts:
        by_split = filters.passing(masks, view, "split")
        by_label = filters.passing(masks, view, "labels", "labelled")
        labelled = view.table.labelled(len(index.names))
        return {
            "train": int(by_split[: index.num_train].sum()),
            "val": int(by_split[index.num_train :].sum()),
            "labelled": int((by_label & labelled).sum()),
            "unlabelled": int((by_label & ~labelled).sum()),
            "categories": view.table.counts(by_label),
            "classes": index.class_counts(filters.passing(masks, view, "class")),
        }

    return await view.page.compute(count)


def histogram(field: Field, chosen: np.ndarray) -> Histogram | None:
    """The distribution of a field over all images and over the chosen ones; None without values."""
    edges, of_row = field.bins
    if not len(edges):
        return None
    return {
        "field": field.name,
        "step": float(field.step),
        "edges": field.shown(edges),
        "images": np.bincount(of_row, minlength=len(edges))[1:].tolist(),
        "chosen": np.bincount(of_row[chosen], minlength=len(edges))[1:].tolist(),
    }


def text_counts(name: str, column: TextColumn, chosen: np.ndarray) -> TextCounts:
    """How many images have each text of a column: all, and the chosen ones."""
    size = len(column.values) + 1  # -1, without a text, comes first
    images, part = (
        np.bincount(rows + 1, minlength=size) for rows in (column.codes, column.codes[chosen])
    )
    return {"column": name, "images": images[1:].tolist(), "chosen": part[1:].tolist()}


async def histograms(request: web.Request, view: View) -> HistogramList:
    """Of each field and column that is known; the chosen images pass all filters but its own."""
    masks = await all_masks(request, view)
    answer: HistogramList = {"histograms": [], "texts": []}
    for field in view.fields.values():
        others = filters.passing(masks, view, filters.ENDS[0] + field.name)
        if one := await view.page.compute(partial(histogram, field, others)):
            answer["histograms"].append(one)
    for name, column in view.table.columns.texts.items():
        if column.values:
            answer["texts"].append(
                text_counts(name, column, filters.passing(masks, view, filters.IS + name))
            )
    return answer
