"""Filters and orders by what an image measures: bytes, width, height, aspect."""

from typing import NamedTuple

import numpy as np
from aiohttp import web

from local_forager.page.query import PageError, number, thousandths
from local_forager.page.state import PAGE, View

MAX_BYTES = 10**12  # of a file
MAX_PIXELS = 10**9  # of a side
FIELDS = {"bytes": MAX_BYTES, "width": MAX_PIXELS, "height": MAX_PIXELS, "aspect": MAX_PIXELS}
SORTS = {  # name -> field, and 1 for the smallest first
    **{"smallest": ("bytes", 1), "largest": ("bytes", -1)},
    **{"narrowest": ("width", 1), "widest": ("width", -1)},
    **{"lowest": ("height", 1), "tallest": ("height", -1)},
    **{"portrait": ("aspect", 1), "landscape": ("aspect", -1)},
}


class Limits(NamedTuple):
    """Both count as within; of an aspect in thousandths, as Sizes has it."""

    low: int
    high: int


async def measures(request: web.Request, view: View, field: str) -> np.ndarray:
    """int64 (n,): one field of each image, -1 where it is not known.

    Raises:
        PageError: the field is not known for this index.
    """
    if view.index.sizes is not None:
        return view.index.sizes.of(field)
    if field != "bytes":
        raise PageError(409, view.index.no_sizes)
    return await request.app[PAGE].object_sizes(view.dataset, view.index)


def limits(request: web.Request, field: str) -> Limits | None:
    """What the request allows of a field; None if it does not say."""
    low, high, most = f"min_{field}", f"max_{field}", FIELDS[field]
    if low not in request.query and high not in request.query:
        return None
    if field == "aspect":
        return Limits(thousandths(request, low, 0, most), thousandths(request, high, most, most))
    return Limits(number(request, low, 0, 0, most), number(request, high, most, 0, most))


async def within(request: web.Request, view: View) -> dict[str, np.ndarray]:
    """For each field that the request limits, bool (n,): the images within its limits."""
    found = {}
    for field in FIELDS:
        if limit := limits(request, field):
            values = await measures(request, view, field)
            found[field] = (values >= limit.low) & (values <= limit.high)
    return found
