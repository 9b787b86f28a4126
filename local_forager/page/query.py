"""Reads the parameters of the page's requests; a wrong one is a PageError."""

import re

from aiohttp import web

from dataset.arrays import DIMENSIONS
from local_forager.indexes.index import Index

DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
COMPARED_BY = ("clip", *(name for name in DIMENSIONS if name != "clip"))  # the default first


class PageError(Exception):
    """The request cannot be answered: a status and one sentence for the person at the page."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number between low and high."""
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text[:15]) <= high:
        raise PageError(400, f"{name} is not a number from {low:,} to {high:,}.")
    return int(text[:15])


def thousandths(request: web.Request, name: str, default: int, high: int) -> int:
    """A decimal number, in thousandths; `default` and `high` are so too."""
    text = request.query.get(name)
    if text is None:
        return default
    if not DECIMAL.fullmatch(text) or round(1000 * float(text)) > high:
        raise PageError(400, f"{name} is not a number from 0 to {high / 1000:,.0f}.")
    return round(1000 * float(text))


def choice(request: web.Request, name: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed words; the first if the parameter is absent."""
    word = request.query.get(name, allowed[0])
    if word not in allowed:
        words = ", ".join(word for word in allowed if word)
        raise PageError(400, f"{name} is none of {words}.")
    return word


def embedding_choice(request: web.Request) -> str:
    return choice(request, "by", COMPARED_BY)


def row_in_path(request: web.Request, index: Index) -> int:
    row = int(request.match_info["row"])
    if row >= len(index.names):
        raise PageError(404, f"There is no row {row:,}: the index has {len(index.names):,} images.")
    return row
