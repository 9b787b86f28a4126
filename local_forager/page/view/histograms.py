"""The distributions of what images measure, for the ranges of the filters."""

import numpy as np
from aiohttp import web

from local_forager.analysis.health import TITLES
from local_forager.analysis.histogram import counts_of, edges_of
from local_forager.page.query import choice
from local_forager.page.state import PAGE, view_of
from local_forager.page.view.filters import chosen_rows
from local_forager.page.view.ranges import FIELDS, measures, within
from local_forager.page.view.rows import comparing, finding
from local_forager.types import Histogram, HistogramList, Working

STEPS = {"aspect": 1000}  # of a value in the index, in one of the answer; others are whole numbers


def histogram(field: str, values: np.ndarray, chosen: np.ndarray) -> Histogram | None:
    """The distribution of a field over all images and over the chosen ones; None without values."""
    edges, step = edges_of(values), STEPS.get(field, 1)
    if not len(edges):
        return None
    every, part = counts_of(values, edges, [np.ones(len(values), bool), chosen])
    shown = edges if step == 1 else edges / step
    return {
        "field": field,
        "step": 1 / step,
        "edges": [float(edge) for edge in shown],
        "images": every,
        "chosen": part,
    }


async def histograms(request: web.Request) -> HistogramList | Working:
    """Of each field that is known. The chosen images pass all filters but those of the field."""
    view, page = await view_of(request), request.app[PAGE]
    chosen = chosen_rows(request, view)
    if name := choice(request, "set", ("", *TITLES)):
        groups = await finding(request, view, name)
        if groups is None:
            return comparing(request)
        found = np.zeros(len(chosen), bool)
        found[[row for group in groups for row in group]] = True
        chosen &= found
    allowed = await within(request, view)
    answer: HistogramList = {"histograms": []}
    for field in FIELDS:
        if view.index.sizes is None and not (field == "bytes" and page.has_sizes(view.dataset)):
            continue
        others = [mask for other, mask in allowed.items() if other != field]
        part = np.logical_and.reduce([chosen, *others])
        values = await measures(request, view, field)
        if one := await page.compute(histogram, field, values, part):
            answer["histograms"].append(one)
    return answer
