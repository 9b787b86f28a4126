"""The parameters of the page's requests, and the images that pass the filters among them."""

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from aiohttp import web

from local_forager.indexes.fields import ABOUT, Field, read_number
from local_forager.indexes.index import MAX_CLASS, POSITIVE, Index
from local_forager.indexes.vectors import COMPARED_BY
from local_forager.page.state import View
from local_forager.types import PageError

MAX_TERMS = 50  # labels in one request
MAX_DISTANCE = 2  # of opposite vectors
ENDS = ("min_", "max_")  # before the name of a field
IS = "is_"  # before the name of a column of texts


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


def flag(request: web.Request, name: str) -> bool:
    """Whether a parameter is 1, not 0 or absent."""
    return choice(request, name, ("0", "1")) == "1"


def yes(request: web.Request, name: str) -> bool | None:
    """Whether a parameter is yes or no; None if it is absent or empty."""
    return choice(request, name, ("yes", "no")) == "yes" if request.query.get(name) else None


def embedding_choice(request: web.Request, name: str = "by") -> str:
    return choice(request, name, COMPARED_BY)


def limit_of(
    request: web.Request, name: str, read: Callable[[str], float] = read_number
) -> float | None:
    """A limit, as `read` understands it; None if the parameter is absent."""
    text = request.query.get(name)
    try:
        return None if text is None else read(text)
    except ValueError as error:
        raise PageError(400, f"{name} {error}.") from None


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


async def posted_rows(request: web.Request, index: Index) -> np.ndarray:
    """The rows in the body of a request, as 32-bit numbers: ascending, each once."""
    body = await request.read()
    if len(body) % 4:
        raise PageError(400, "The rows are not 32-bit numbers.")
    rows = np.unique(np.frombuffer(body, "<i4"))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < len(index.names):
        raise PageError(400, f"There are {len(index.names):,} rows, from 0.")
    return rows


async def field_of(name: str, view: View) -> Field:
    """The field of this name; PageError if it is not known of these images."""
    if field := view.fields.get(name):
        return field
    if name == "bytes":
        return await view.page.object_sizes(view.dataset, view.index)
    if name in ABOUT:
        raise PageError(409, view.index.lacks[ABOUT[name].group])
    raise PageError(400, f"The dataset has no field named {name}.")


def passing(masks: Mapping[str, np.ndarray], view: View, *own: str) -> np.ndarray:
    """bool (n,): the images that pass all filters but its own, which are named by their keys."""
    others = [mask for name, mask in masks.items() if name not in own]
    every = np.ones(len(view.index.names), bool)
    found: np.ndarray = np.logical_and.reduce([every, *others])
    return found


async def masks_of(request: web.Request, view: View) -> dict[str, np.ndarray]:
    """For each filter of the request, bool (n,): the images that pass it.

    "labels" is what the images are chosen by, `category` and `or`; "terms" narrows them. The keys
    of fields and columns are min_NAME and is_NAME, so that they are no other filters'.
    """
    query, index = request.query, view.index
    masks = {name: mask for name, mask in _label_masks(request, view) if mask is not None}
    if split := choice(request, "split", ("", "train", "val")):
        masks["split"] = index.in_split(split)
    if (wanted := yes(request, "labelled")) is not None:
        masks["labelled"] = view.table.labelled(len(index.names)) == wanted
    if "class" in query:
        masks["class"] = index.classes == number(request, "class", 0, 0, MAX_CLASS)
    if (wanted := yes(request, "failed")) is not None:
        masks["failed"] = index.failed == wanted
    if text := query.get("name_part", "").lower():
        contains = (text in name.lower() for name in index.names)
        masks["name_part"] = np.fromiter(contains, bool, len(index.names))
    for name in dict.fromkeys(key[4:] for key in query if key.startswith(ENDS)):
        masks[ENDS[0] + name] = _within(request, await field_of(name, view))
    for key in dict.fromkeys(key for key in query if key.startswith(IS)):
        masks[key] = _with_text(key.removeprefix(IS), query.getall(key), view)
    return masks


def _label_masks(request: web.Request, view: View) -> Iterator[tuple[str, np.ndarray | None]]:
    """The images with `category` or a label of `or`; those with all of `with`, none of `without`.

    A label of `or`, `with` and `without` is a category, then NUL, which no category has, and a
    mode. Without the two it is a positive label; with an empty mode, a label in any mode.
    """
    query, images = request.query, len(view.index.names)

    def terms(name: str) -> list[np.ndarray]:
        labels = query.getall(name, [])
        if len(labels) > MAX_TERMS:
            raise PageError(400, f"There are more than {MAX_TERMS} labels in {name}.")
        parts = [label.partition("\0") for label in labels]
        return [
            view.table.marked(category, (mode or None) if given else POSITIVE, images)
            for category, given, mode in parts
        ]

    alternatives = terms("or")
    if "category" in query:
        alternatives.append(view.table.marked(query["category"], query.get("mode"), images))
    yield "labels", np.logical_or.reduce(alternatives) if alternatives else None
    narrowing = [*terms("with"), *(~mask for mask in terms("without"))]
    yield "terms", np.logical_and.reduce(narrowing) if narrowing else None


def _within(request: web.Request, field: Field) -> np.ndarray:
    """The images whose value is within min_NAME and max_NAME."""
    low, high = (limit_of(request, end + field.name, field.limit) for end in ENDS)
    steps = field.steps(field.values())
    found = ~np.isnan(steps)
    if low is not None:
        found &= steps >= field.steps(low)
    if high is not None:
        found &= steps <= field.steps(high)
    return found


def _with_text(name: str, texts: list[str], view: View) -> np.ndarray:
    """The images that have one of these texts in a column of one's own."""
    column = view.table.columns.texts.get(name)
    if column is None or not column.values:
        raise PageError(400, f"The dataset has no column of texts named {name}.")
    places = [column.values.index(text) for text in texts if text in column.values]
    found: np.ndarray = np.isin(column.codes, places)
    return found
