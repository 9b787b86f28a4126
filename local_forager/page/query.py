"""Reads the parameters of the page's requests, and finds the images that pass their filters."""

import re

import numpy as np
from aiohttp import web

from local_forager.errors import PageError
from local_forager.indexes.index import MAX_CLASS, Index
from local_forager.indexes.vectors import COMPARED_BY
from local_forager.page.state import View

DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
MAX_TERMS = 50  # labels in one request
MAX_BYTES = 10**12  # of a file
MAX_PIXELS = 10**9  # of a side
FIELDS = {"bytes": MAX_BYTES, "width": MAX_PIXELS, "height": MAX_PIXELS, "aspect": MAX_PIXELS}


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


def row_in_path(request: web.Request, index: Index) -> int:
    row = int(request.match_info["row"])
    if row >= len(index.names):
        raise PageError(404, f"There is no row {row:,}: the index has {len(index.names):,} images.")
    return row


def chosen_rows(request: web.Request, view: View) -> np.ndarray:
    """bool (n,): the images that pass all filters except those of `within`."""
    query, index = request.query, view.index
    chosen = np.ones(len(index.names), bool)
    split = choice(request, "split", ("", "train", "val"))
    if split:
        others = slice(index.num_train, None) if split == "train" else slice(index.num_train)
        chosen[others] = False
    chosen &= _pass_labels(request, view)
    if (wanted := yes(request, "labelled")) is not None:
        labelled = np.zeros(len(chosen), bool)
        labelled[list(view.table.of_row)] = True
        chosen &= labelled == wanted
    if "class" in query:
        chosen &= index.classes == number(request, "class", 0, 0, MAX_CLASS)
    if (wanted := yes(request, "failed")) is not None:
        chosen &= index.failed == wanted
    if text := query.get("name_part", "").lower():
        chosen &= np.fromiter((text in name.lower() for name in index.names), bool, len(chosen))
    return chosen


def _pass_labels(request: web.Request, view: View) -> np.ndarray:
    """The images with `category` or a label of `or`, all labels of `with`, none of `without`."""
    query, rows = request.query, len(view.index.names)

    def marked(category: str, mode: str | None = None) -> np.ndarray:
        found = np.zeros(rows, bool)
        found[view.table.select(category, mode)] = True
        return found

    def terms(name: str) -> list[str]:
        categories: list[str] = query.getall(name, [])
        if len(categories) > MAX_TERMS:
            raise PageError(400, f"There are more than {MAX_TERMS} labels in {name}.")
        return categories

    alternatives = terms("or")
    chosen = np.full(rows, "category" not in query and not alternatives)
    if "category" in query:
        chosen |= marked(query["category"], query.get("mode"))
    for category in alternatives:
        chosen |= marked(category)
    for name, wanted in (("with", True), ("without", False)):
        for category in terms(name):
            chosen &= marked(category) == wanted
    return chosen


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
