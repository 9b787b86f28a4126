"""Which images a view shows, in which order, and how their sizes are distributed.

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
from local_forager.indexes.index import MAX_CLASS, POSITIVE, Index
from local_forager.indexes.vectors import COMPARED_BY, Vectors
from local_forager.page.questions import PREFIX
from local_forager.page.state import View
from local_forager.types import Histogram, HistogramList, PageError, StillWorking

DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
MAX_TERMS = 50  # labels in one request
MAX_BYTES = 10**12  # of a file
MAX_PIXELS = 10**9  # of a side
FIELDS = {"bytes": MAX_BYTES, "width": MAX_PIXELS, "height": MAX_PIXELS, "aspect": MAX_PIXELS}
BY_SIZE = {  # sort -> field, and 1 for the smallest first
    **{"smallest": ("bytes", 1), "largest": ("bytes", -1)},
    **{"narrowest": ("width", 1), "widest": ("width", -1)},
    **{"lowest": ("height", 1), "tallest": ("height", -1)},
    **{"portrait": ("aspect", 1), "landscape": ("aspect", -1)},
}
BY_NEIGHBOURS = {"outliers": (0, -1), "typical": (1, 1)}  # column of neighbour_distances, sign
SORTS = ("name", "name-backwards", *BY_SIZE, *BY_NEIGHBOURS)
MAX_COMPARED = 200_000  # images; comparing all pairs takes about 20 minutes
MAX_DISTANCE = 2  # of opposite vectors
MAX_TEXT = 1_000  # characters of a text to search for
WAIT = 1.0  # seconds after which a request is told to ask again
POLL = 0.05  # seconds between looks at a job
BINS = 40  # of a histogram, at most
STEPS = {"aspect": 1000}  # of a value in the index, in one of the answer; others are whole numbers

Found = TypeVar("Found")


def number(
    request: web.Request, name: str, default: int, low: int, high: int, scale: int = 1
) -> int:
    """A number between low and high; with a scale a decimal one, in as many parts of one."""
    text = request.query.get(name)
    if text is None:
        return default
    valid = DECIMAL.fullmatch(text) if scale > 1 else re.fullmatch("[0-9]{1,15}", text)
    if not valid or not low <= (found := round(scale * float(text))) <= high:
        limits = f"from {low / scale:,.0f} to {high / scale:,.0f}"
        raise PageError(400, f"{name} is not a number {limits}.")
    return found


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
    text = request.query.get("distance")
    if text is None:
        return None
    if not DECIMAL.fullmatch(text) or float(text) > MAX_DISTANCE:
        raise PageError(400, f"distance is not a number from 0 to {MAX_DISTANCE}.")
    return float(text)


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


async def measures(view: View, field: str) -> np.ndarray:
    """int64 (n,): one field of each image, -1 where it is not known; an aspect in thousandths.

    Raises:
        PageError: the field is not known for this index.
    """
    sizes = view.index.sizes
    if not isinstance(sizes, str):
        return sizes.of(field)
    if field != "bytes":
        raise PageError(409, sizes)
    return await view.page.object_sizes(view.dataset, view.index)


async def within(request: web.Request, view: View) -> dict[str, np.ndarray]:
    """For each field that the request limits, bool (n,): the images within its limits."""
    found = {}
    for field, most in FIELDS.items():
        low, high = f"min_{field}", f"max_{field}"
        if low not in request.query and high not in request.query:
            continue
        scale = 1000 if field == "aspect" else 1
        least = number(request, low, 0, 0, most, scale)
        greatest = number(request, high, most, 0, most, scale)
        values = await measures(view, field)
        found[field] = (values >= least) & (values <= greatest)
    return found


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
    name = choice(request, "set", ("", *CHECKS))
    if not name:
        return None
    health = view.health(embedding_choice(request), distance_choice(request))
    await wait_for(view, lambda: health.is_ready(name, start=True) or None)
    return await view.page.compute(partial(health.groups, name))


async def listing(request: web.Request, view: View) -> Listing:
    """The images that the request asks for."""
    chosen, sort = chosen_rows(request, view), choice(request, "sort", ("", *SORTS))
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
    if sort in BY_SIZE:
        field, sign = BY_SIZE[sort]
        values = await measures(view, field)
        order = order[values[order] >= 0]
        order = order[np.argsort(sign * values[order], kind="stable")]
        return Listing(order, distances=values[order] / STEPS.get(field, 1))
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


def edges_of(values: np.ndarray) -> np.ndarray:
    """int64, ascending: bin i has the values from edges[i] up to, not including, edges[i + 1].

    Up to BINS bins of logarithmic width hold all values of 0 or more; empty if there are none.
    """
    known = values[values >= 0]
    if not len(known):
        return np.zeros(0, np.int64)
    low, after = int(known.min()), int(known.max()) + 1
    spaced = np.rint(np.geomspace(max(low, 1), after, BINS + 1)).astype(np.int64)
    return np.unique([low, *spaced[1:-1], after])


def histogram(field: str, values: np.ndarray, chosen: np.ndarray) -> Histogram | None:
    """The distribution of a field over all images and over the chosen ones; None without values."""
    edges, step = edges_of(values), STEPS.get(field, 1)
    if not len(edges):
        return None
    bins = np.searchsorted(edges, values, side="right")  # 0 for values below the first edge
    return {
        "field": field,
        "step": 1 / step,
        "edges": (edges / step).tolist(),
        "images": np.bincount(bins, minlength=len(edges))[1:].tolist(),
        "chosen": np.bincount(bins[chosen], minlength=len(edges))[1:].tolist(),
    }


async def histograms(request: web.Request, view: View) -> HistogramList:
    """Of each field that is known. The chosen images pass all filters but those of the field."""
    chosen = chosen_rows(request, view)
    if (groups := await finding(request, view)) is not None:
        found = np.zeros(len(chosen), bool)
        found[[row for group in groups for row in group]] = True
        chosen &= found
    allowed = await within(request, view)
    answer: HistogramList = {"histograms": []}
    for field in FIELDS:
        has_bytes = field == "bytes" and view.page.has_sizes(view.dataset)
        if isinstance(view.index.sizes, str) and not has_bytes:
            continue
        others = [mask for other, mask in allowed.items() if other != field]
        part = np.logical_and.reduce([chosen, *others])
        values = await measures(view, field)
        if one := await view.page.compute(partial(histogram, field, values, part)):
            answer["histograms"].append(one)
    return answer
