"""The parameters of a request that name a field or a column of one's own: limits, texts, orders."""

from collections.abc import Callable

import numpy as np
from aiohttp import web

from local_forager.indexes.fields import ABOUT, Field, read_number
from local_forager.page.state import View
from local_forager.types import PageError

ENDS = ("min_", "max_")  # before the name of a field
IS = "is_"  # before the name of a column of texts
SORTS = {  # names of orders by the fields that every index has; others are NAME and -NAME
    **{"smallest": "bytes", "largest": "-bytes", "narrowest": "width", "widest": "-width"},
    **{"lowest": "height", "tallest": "-height", "portrait": "aspect", "landscape": "-aspect"},
}


async def field_of(name: str, view: View) -> Field:
    """The field of this name; PageError if it is not known of these images."""
    if field := view.fields.get(name):
        return field
    if name == "bytes":
        return await view.page.object_sizes(view.dataset, view.index)
    if name in ABOUT:
        raise PageError(409, view.index.lacks[ABOUT[name]["group"]])
    raise PageError(400, f"The dataset has no field named {name}.")


async def sort_field(sort: str, view: View) -> tuple[Field, int] | None:
    """The field that an order is by, and 1 for the smallest first; None for the order of rows."""
    if not sort:
        return None
    name = SORTS.get(sort, sort)
    return await field_of(name.removeprefix("-"), view), -1 if name.startswith("-") else 1


def limit_of(
    request: web.Request, name: str, read: Callable[[str], float] = read_number
) -> float | None:
    """A limit, as `read` understands it; None if the parameter is absent."""
    text = request.query.get(name)
    try:
        return None if text is None else read(text)
    except ValueError as error:
        raise PageError(400, f"{name} {error}.") from None


async def within(request: web.Request, view: View) -> dict[str, np.ndarray]:
    """For each field or column that the request limits, bool (n,): the images that it keeps.

    The keys are min_NAME of a field and is_NAME of a column, so that they are no other filters'.
    """
    found = {}
    for name in dict.fromkeys(key[4:] for key in request.query if key.startswith(ENDS)):
        field = await field_of(name, view)
        low, high = (limit_of(request, end + name, field.limit) for end in ENDS)
        steps = field.steps(field.values())
        passing = ~np.isnan(steps)
        if low is not None:
            passing &= steps >= field.steps(low)
        if high is not None:
            passing &= steps <= field.steps(high)
        found[ENDS[0] + name] = passing
    for key in dict.fromkeys(key for key in request.query if key.startswith(IS)):
        name = key.removeprefix(IS)
        column = view.table.columns.texts.get(name)
        if column is None or not column.values:
            raise PageError(400, f"The dataset has no column of texts named {name}.")
        wanted = [
            column.values.index(text) for text in request.query.getall(key) if text in column.values
        ]
        found[key] = np.isin(column.codes, wanted)
    return found
