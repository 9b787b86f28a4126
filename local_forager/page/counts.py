"""How many images each choice of a filter has."""

import numpy as np
from aiohttp import web

from local_forager.page.ranges import within
from local_forager.page.rows import filter_masks, finding
from local_forager.page.state import View
from local_forager.types import FacetCounts


async def facet_counts(request: web.Request, view: View) -> FacetCounts:
    """How many images each choice of a filter has, of those that pass all other filters."""
    masks = {**filter_masks(request, view), **await within(request, view)}
    index = view.index
    if (groups := await finding(request, view)) is not None:
        masks["set"] = np.zeros(len(index.names), bool)
        masks["set"][[row for group in groups for row in group]] = True

    def passing(*own: str) -> np.ndarray:
        others = [mask for name, mask in masks.items() if name not in own]
        return np.logical_and.reduce([np.ones(len(index.names), bool), *others])

    def count() -> FacetCounts:
        by_split, by_label = passing("split"), passing("labels", "labelled")
        labelled = view.table.labelled(len(index.names))
        return {
            "train": int(by_split[: index.num_train].sum()),
            "val": int(by_split[index.num_train :].sum()),
            "labelled": int((by_label & labelled).sum()),
            "unlabelled": int((by_label & ~labelled).sum()),
            "categories": view.table.counts(by_label),
            "classes": index.class_counts(passing("class")),
        }

    return await view.page.compute(count)
