"""Which images pass the filters of a request."""

import numpy as np
from aiohttp import web

from local_forager.indexes.index import MAX_CLASS
from local_forager.page.query import PageError, choice, number
from local_forager.page.state import View

MAX_TERMS = 50  # labels in one request


def chosen_rows(request: web.Request, view: View) -> np.ndarray:
    """bool (n,): the images that pass all filters except those of ranges.py."""
    query, index = request.query, view.index
    chosen = np.ones(len(index.names), bool)
    split = choice(request, "split", ("", "train", "val"))
    if split:
        others = slice(index.num_train, None) if split == "train" else slice(index.num_train)
        chosen[others] = False
    chosen &= _labels(request, view)
    if query.get("labelled"):
        labelled = np.zeros(len(chosen), bool)
        labelled[list(view.table.of_row)] = True
        chosen &= labelled == (choice(request, "labelled", ("yes", "no")) == "yes")
    if "class" in query:
        chosen &= index.classes == number(request, "class", 0, 0, MAX_CLASS)
    if query.get("failed"):
        chosen &= index.failed == (choice(request, "failed", ("yes", "no")) == "yes")
    if text := query.get("name_part", "").lower():
        chosen &= np.fromiter((text in name.lower() for name in index.names), bool, len(chosen))
    return chosen


def _marked(view: View, category: str, mode: str | None) -> np.ndarray:
    marked = np.zeros(len(view.index.names), bool)
    marked[view.table.select(category, mode)] = True
    return marked


def _terms(request: web.Request, name: str) -> list[str]:
    categories: list[str] = request.query.getall(name, [])
    if len(categories) > MAX_TERMS:
        raise PageError(400, f"There are more than {MAX_TERMS} labels in {name}.")
    return categories


def _labels(request: web.Request, view: View) -> np.ndarray:
    """The images with `category` or a label of `or`, all labels of `with`, none of `without`."""
    query, alternatives = request.query, _terms(request, "or")
    chosen = np.full(len(view.index.names), "category" not in query and not alternatives)
    if "category" in query:
        chosen |= _marked(view, query["category"], query.get("mode"))
    for category in alternatives:
        chosen |= _marked(view, category, None)
    for name, wanted in (("with", True), ("without", False)):
        for category in _terms(request, name):
            chosen &= _marked(view, category, None) == wanted
    return chosen
