"""Which images a view shows, in which order, and how their fields are distributed.

Also how the parameters of the page's requests are read.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from aiohttp import web

from local_forager.analysis.comparisons import neighbour_distances
from local_forager.analysis.duplicates import BLOCK_ROWS, RowGroups
from local_forager.analysis.health import CHECKS
from local_forager.analysis.quality import LIMITS
from local_forager.indexes.fields import Field
from local_forager.indexes.index import MAX_CLASS, POSITIVE, Index
from local_forager.indexes.own_columns import TextColumn
from local_forager.indexes.vectors import COMPARED_BY, Vectors
from local_forager.page.questions import PREFIX
from local_forager.page.ranges import ENDS, IS, field_of, limit_of, sort_field, within
from local_forager.page.state import View
from local_forager.types import Histogram, HistogramList, PageError, StillWorking, TextCounts

MAX_TERMS = 50  # labels in one request
BY_NEIGHBOURS = {"outliers": (0, -1), "typical": (1, 1)}  # column of neighbour_distances, sign
SORTS = ("name", "name-backwards", *BY_NEIGHBOURS)  # beside those by a field
MAX_COMPARED = 200_000  # images; comparing all pairs takes about 20 minutes
MAX_DISTANCE = 2  # of opposite vectors
MAX_TEXT = 1_000  # characters of a text to search for
WAIT = 1.0  # seconds after which a request is told to ask again
POLL = 0.05  # seconds between looks at a job

Found = TypeVar("Found")


def number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number between low and high."""
    text = request.query.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,15}", text) or not low <= int(text) <= high:
        raise PageError(400, f"{name} is not a number from {low:,} to {high:,}.")
    return int(text)


def choice(request: web.Request, name: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed words; the first if the parameter is absent."""
    word = request.query.get(name, allowed[0])
    if word not in allowed:
        words = ", ".join(word for word in allowed if word)
        raise PageError(400, f"{name} is none of {words}.")
    return word


def yes(request: web.Request, name: str) -> bool | None:
    """Whether a parameter is yes or no; None if it is absent or empty."""
    return choice(request, name, ("yes", "no")) == "yes" if request.query.get(name) else None


def embedding_choice(request: web.Request) -> str:
    return choice(request, "by", COMPARED_BY)


def distance_choice(request: web.Request) -> float | None:
    """The distance of near duplicates in the request; None for the default."""
    distance = limit_of(request, "distance")
    if distance is not None and not 0 <= distance <= MAX_DISTANCE:
        raise PageError(400, f"distance is not a number from 0 to {MAX_DISTANCE}.")
    return distance


def row_in_path(request: web.Request, index: Index) -> int:
    row = int(request.match_info["row"])
    if row >= len(index.names):
        raise PageError(404, f"There is no row {row:,}: the index has {len(index.names):,} images.")
    return row


def chosen_rows(request: web.Request, view: View) -> np.ndarray:
    """bool (n,): the images that pass all filters except those of `within`."""
    every = np.ones(len(view.index.names), bool)
    return np.logical_and.reduce([every, *filter_masks(request, view).values()])


def filter_masks(request: web.Request, view: View) -> dict[str, np.ndarray]:
    """For each filter of the request, except those of `within`, bool (n,): the images that pass it.

    "labels" is what the images are chosen by, `category` and `or`; "terms" narrows them.
    """
    query, index = request.query, view.index
    masks = {name: mask for name, mask in _label_masks(request, view) if mask is not None}
    if split := choice(request, "split", ("", "train", "val")):
        masks["split"] = (np.arange(len(index.names)) < index.num_train) == (split == "train")
    if (wanted := yes(request, "labelled")) is not None:
        masks["labelled"] = view.table.labelled(len(index.names)) == wanted
    if "class" in query:
        masks["class"] = index.classes == number(request, "class", 0, 0, MAX_CLASS)
    if (wanted := yes(request, "failed")) is not None:
        masks["failed"] = index.failed == wanted
    if text := query.get("name_part", "").lower():
        contains = (text in name.lower() for name in index.names)
        masks["name_part"] = np.fromiter(contains, bool, len(index.names))
    return masks


def _label_masks(request: web.Request, view: View) -> Iterator[tuple[str, np.ndarray | None]]:
    """The images with `category` or a label of `or`; those with all of `with`, none of `without`.

    A label of `or`, `with` and `without` is a category, then NUL, which no category has, and a
    mode. Without the two it is a positive label; with an empty mode, a label in any mode.
    """
    query, rows = request.query, len(view.index.names)

    def marked(category: str, mode: str | None) -> np.ndarray:
        found = np.zeros(rows, bool)
        found[view.table.select(category, mode)] = True
        return found

    def terms(name: str) -> list[np.ndarray]:
        labels = query.getall(name, [])
        if len(labels) > MAX_TERMS:
            raise PageError(400, f"There are more than {MAX_TERMS} labels in {name}.")
        parts = [label.partition("\0") for label in labels]
        return [
            marked(category, (mode or None) if given else POSITIVE)
            for category, given, mode in parts
        ]

    alternatives = terms("or")
    if "category" in query:
        alternatives.append(marked(query["category"], query.get("mode")))
    yield "labels", np.logical_or.reduce(alternatives) if alternatives else None
    narrowing = [*terms("with"), *(~mask for mask in terms("without"))]
    yield "terms", np.logical_and.reduce(narrowing) if narrowing else None


class Listing(NamedTuple):
    """The images of a view in the order in which it shows them."""

    rows: np.ndarray  # int64
    leads: np.ndarray | None = None  # bool: the first image shown of a group
    distances: np.ndarray | None = None  # to what it compares with; or the sizes it is sorted by


def array_response(array: np.ndarray) -> web.Response:
    return web.Response(body=array.tobytes(), headers={"Cache-Control": "no-store"})


async def wait_for(view: View, result: Callable[[], Found | None]) -> Found:
    """What a job found; raises StillWorking if that takes longer than WAIT."""
    until = time.monotonic() + WAIT
    while (found := result()) is None:
        if time.monotonic() > until:
            raise StillWorking(f"Comparing images: {view.page.jobs.progress():.0%}")
        await asyncio.sleep(POLL)
    return found


async def likeness(request: web.Request, view: View) -> np.ndarray | None:
    """float32 (n,): the cosine to sort by; None if the request names nothing to compare with."""
    index = view.index
    if text := request.query.get("text"):
        vector = await view.page.text_vector(text[:MAX_TEXT])
        return await view.page.compute(partial(index.embeddings["clip"].similarities, vector))
    if "like" in request.query and index.names:
        by = embedding_choice(request)
        vectors = index.embeddings[by]
        if (token := request.query["like"]).startswith(PREFIX):
            vector = await view.page.questions.vector(token, by, index)
            return await view.page.compute(partial(vectors.similarities, vector))
        row = number(request, "like", 0, 0, len(index.names) - 1)
        return await view.page.compute(partial(vectors.similarities, np.array(vectors.array[row])))
    return None


def no_neighbour_sorts(images: int) -> str | None:
    """Why so many images cannot be sorted by their neighbours; None if they can."""
    if images <= MAX_COMPARED:
        return None
    return f"Only datasets of up to {MAX_COMPARED:,} images can be sorted by their neighbours."


async def distances_to_neighbours(request: web.Request, view: View) -> np.ndarray:
    """neighbour_distances of the index."""
    if problem := no_neighbour_sorts(len(view.index.names)):
        raise PageError(409, problem)
    by = embedding_choice(request)
    search = partial(neighbour_distances, view.index.embeddings[by], view.index.failed)
    job = view.page.jobs.start(("neighbour distances", view.index, by), search)
    return await wait_for(view, job.result)


async def finding(request: web.Request, view: View) -> RowGroups | None:
    """What the health check that the request names found; None if it names none."""
    if not (name := choice(request, "set", ("", *CHECKS))):
        return None
    threshold = limit_of(request, "threshold") if name in LIMITS else None
    health = view.health(embedding_choice(request), distance_choice(request), threshold)
    await wait_for(view, lambda: health.is_ready(name, start=True) or None)
    return await view.page.compute(partial(health.groups, name))


async def listing(request: web.Request, view: View) -> Listing:
    """The images that the request asks for."""
    chosen, sort = chosen_rows(request, view), request.query.get("sort", "")
    by_field = None if sort in SORTS else await sort_field(sort, view)
    for allowed in (await within(request, view)).values():
        chosen &= allowed
    if (groups := await finding(request, view)) is not None:
        vectors = view.index.embeddings[embedding_choice(request)]
        return await view.page.compute(partial(grouped, groups, chosen, vectors))
    good = np.flatnonzero(chosen & ~view.index.failed)
    cosine = await likeness(request, view)
    if cosine is not None:
        order = good[np.argsort(-cosine[good], kind="stable")]
        return Listing(order, distances=np.maximum(1 - cosine[order], 0))
    if sort in BY_NEIGHBOURS:
        found = await distances_to_neighbours(request, view)
        column, sign = BY_NEIGHBOURS[sort]
        order = good[np.argsort(sign * found[good, column], kind="stable")]
        return Listing(order, distances=found[order, column])
    order = np.flatnonzero(chosen)
    if by_field:
        field, sign = by_field
        values = field.values()
        order = order[~np.isnan(values[order])]
        order = order[np.argsort(sign * values[order], kind="stable")]
        return Listing(order, distances=values[order])
    elif sort:
        by_name = view.index.names.__getitem__
        order = np.array(sorted(order.tolist(), key=by_name, reverse=sort != "name"), np.int64)
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
    chosen = chosen_rows(request, view)
    if (groups := await finding(request, view)) is not None:
        found = np.zeros(len(chosen), bool)
        found[[row for group in groups for row in group]] = True
        chosen &= found
    allowed = await within(request, view)

    def others(own: str) -> np.ndarray:
        kept = [mask for other, mask in allowed.items() if other != own]
        part: np.ndarray = np.logical_and.reduce([chosen, *kept])
        return part

    fields = view.fields
    if "bytes" not in fields and view.page.has_sizes(view.dataset):
        fields["bytes"] = await field_of("bytes", view)
    answer: HistogramList = {"histograms": [], "texts": []}
    for field in fields.values():
        if one := await view.page.compute(partial(histogram, field, others(ENDS[0] + field.name))):
            answer["histograms"].append(one)
    for name, column in view.table.columns.texts.items():
        if column.values:
            answer["texts"].append(text_counts(name, column, others(IS + name)))
    return answer
