"""The list of datasets; one dataset's description, map and health report."""

import asyncio
from functools import partial

import numpy as np
from aiohttp import web

from common.names import DATASET_NAME
from common.terminal import count, first_of
from dataset.arrays import EMBEDDINGS
from local_forager import types as answers
from local_forager.analysis.duplicates import examples
from local_forager.analysis.health import CHECKS, Health, reach
from local_forager.analysis.jobs import result_of
from local_forager.analysis.maps import METHODS, UMAP_MISSING, default_method, umap_installed
from local_forager.deletion import delete, plan
from local_forager.indexes.fields import ABOUT
from local_forager.indexes.index import NO_LABELS, Index, LabelTable
from local_forager.indexes.own_columns import NO_COLUMNS, OwnColumns
from local_forager.indexes.vectors import COMPARED_BY
from local_forager.page import filters
from local_forager.page.images import summary
from local_forager.page.rows import array_response, no_neighbour_sorts
from local_forager.page.state import PAGE, View
from local_forager.server.api import dataset_named, dataset_of
from local_forager.server.database import MODES, SplitCounts
from local_forager.types import PageError

QUICK_COPY = 0.3  # seconds to wait for an index copy, so that a small one is ready at once
EXAMPLES = 4  # pairs of near duplicates in the health report


async def datasets(request: web.Request) -> answers.DatasetList:
    page = request.app[PAGE]
    cards: list[answers.DatasetCard] = []
    for name in await page.database.dataset_names():
        if dataset := await page.database.dataset(name):
            num_train, num_val = await page.database.counts(dataset.id)
            opens = DATASET_NAME.fullmatch(name) is not None
            cards.append({"name": name, "num_train": num_train, "num_val": num_val, "opens": opens})
    generation = page.database.generation.value
    return {"generation": generation, "bucket": page.options.bucket, "datasets": cards}


async def deletion(request: web.Request) -> answers.DeletionPlan:
    """What a deletion would mean; as a POST, it is done. In the query, any name is possible."""
    page = request.app[PAGE]
    dataset = await dataset_named(request.app, request.query.get("name", ""))
    found = await plan(page.database, dataset, page.options.bucket)
    if request.method == "POST":
        if not found["shared_with"]:
            await page.copies.release(dataset.index_id)
        await delete(page.database, dataset, page.options.data_dir)
    return found


def feature(problem: str | None) -> answers.Feature:
    return {"available": problem is None, "reason": problem or ""}


def field_infos(index: Index, table: LabelTable) -> list[answers.FieldInfo]:
    """The fields of an index and of its columns; a listing tells the sizes of files if need be."""
    known = [field for field in ABOUT.values() if field.name in {"bytes", *index.fields}]
    return [
        {
            "field": field.name,
            "title": field.title,
            "unit": field.unit,
            "group": field.group,
            "kind": field.kind.value,
            "step": float(field.step),
        }
        for field in (*known, *table.columns.fields.values())
    ]


def warnings_of(counts: SplitCounts, index: Index, columns: OwnColumns = NO_COLUMNS) -> list[str]:
    """A sentence per surprise: other numbers of images on the server, vectors that are no numbers.

    An image that vanished before the registration has a row that failed, and the server lacks it.
    """
    warnings = []
    splits = [index.in_split(split) for split in ("train", "val")]
    train, val = (int(split.sum()) for split in splits)
    failed = [int(index.failed[split].sum()) for split in splits]
    if not (0 <= train - counts.num_train <= failed[0] and 0 <= val - counts.num_val <= failed[1]):
        warnings.append(
            f"The server has {counts.num_train:,} training and {counts.num_val:,} validation "
            f"images, but the index has {train:,} and {val:,}: it belongs to other images."
        )
    if index.not_finite:
        rows = first_of([str(row) for row in index.not_finite])
        warnings.append(
            f"The vectors of {count(len(index.not_finite), 'image')} have NaN or infinity: row "
            f"{rows}. They are treated as failed images."
        )
    return warnings + [columns.problem] if columns.problem else warnings


async def dataset_page(request: web.Request) -> answers.DatasetPage:
    page, dataset = request.app[PAGE], await dataset_of(request)
    counts = await page.database.counts(dataset.id)
    copy = page.copies.get(dataset.index_id)
    if copy.index is None and not copy.task.done():
        await asyncio.wait([copy.task], timeout=QUICK_COPY)
    index = copy.index
    table, rows = (await page.table(dataset, index), len(index.names)) if index else (NO_LABELS, 0)
    every = np.ones(rows, bool)
    return {
        "name": dataset.name,
        "index_id": dataset.index_id,
        "train_path": dataset.train_path,
        "num_train": counts.num_train,
        "num_val": counts.num_val,
        "index": {
            "state": "ready" if index else "missing" if copy.problem else "copying",
            "detail": copy.problem or "",
            "done": copy.total if index else copy.done(),
            "total": copy.total,
        },
        "rows": rows,
        "rows_train": index.num_train if index else 0,
        "labelled": len(table.of_row),
        "boxed": len(table.boxes),
        "categories": table.counts(every),
        "classes": index.class_counts(every) if index else [],
        "embeddings": [
            {"by": kind.name, "about": f"{kind.compares}, by {kind.model}"}
            for kind in sorted(EMBEDDINGS, key=lambda kind: COMPARED_BY.index(kind.name))
        ],
        "sets": [{"set": name, "title": check.title} for name, check in CHECKS.items()],
        "text_search": feature(page.no_text_search),
        "picture_search": feature(page.questions.why_not()),
        "umap": feature(None if umap_installed() else UMAP_MISSING),
        "neighbour_sorts": feature(no_neighbour_sorts(rows)),
        "layout": default_method(rows),
        "fields": field_infos(index, table) if index else [],
        "columns": [
            {"column": name, "values": column.values}
            for name, column in table.columns.texts.items()
        ],
        "sizes": feature(index.lacks.get("size") if index else None),
        "quality": feature(index.lacks.get("quality") if index else None),
        "version": f"{table.version}.{table.columns.version}",
        "warnings": [
            *filter(None, [page.options.note]),
            *(warnings_of(counts, index, table.columns) if index else []),
        ],
    }


async def text_model(request: web.Request) -> web.Response:
    """Load the model for text search, so that the first search does not wait for it."""
    request.app[PAGE].text_model()
    return web.Response(status=204)


async def health(request: web.Request, view: View) -> answers.HealthReport:
    by = filters.embedding_choice(request)
    checks = view.health(by, filters.distance_choice(request))
    start = filters.flag(request, "start")
    return {
        "by": by,
        "all_pairs": checks.all_pairs(filters.flag(request, "exact")),
        "findings": await view.page.compute(partial(checks.findings, start)),
        "near": near_distances(view, checks),
    }


def near_distances(view: View, checks: Health) -> answers.NearDistances:
    pairs = checks.pairs()
    if pairs is None:
        return {"distance": 0.0, "default": 0.0, "limit": 0.0, "reach": "", "examples": []}
    distance = checks.distance_in(pairs)
    return {
        "distance": distance,
        "default": min(pairs.default, pairs.limit),
        "limit": pairs.limit,
        "reach": reach(pairs),
        "examples": [
            {"distance": apart, "images": [summary(view, one), summary(view, other)]}
            for one, other, apart in examples(pairs, distance, EXAMPLES)
        ],
    }


async def map_points(request: web.Request, view: View) -> web.Response:
    """x and y of each row within -1 to 1: float32 pairs, little-endian; NaN for failed images."""
    by, method = filters.embedding_choice(request), filters.choice(request, "method", METHODS)
    if method == "umap" and not umap_installed():
        raise PageError(409, UMAP_MISSING)
    future = view.page.map(view.index, by, method)
    points = await result_of(future, lambda: "Computing the map")
    return web.Response(body=points, headers={"Cache-Control": "no-store"})


async def column(request: web.Request, view: View) -> web.Response:
    """One little-endian number per row; docs/page-api.md describes each column."""
    kind = request.match_info["column"]
    values = np.full(len(view.index.names), -1, "<i4")
    if kind == "field":
        return array_response(await own_values(request.query.get("field", ""), view))
    if kind == "split":
        values[:] = view.index.in_split("val")
    elif kind == "class":
        values[:] = view.index.classes
    elif kind == "category":
        for mode, rows in view.table.rows.get(request.query.get("category", ""), {}).items():
            values[rows] = MODES.index(mode) if mode in MODES else len(MODES)
    else:
        positive = view.table.positive()
        places = {category: place for place, category in enumerate(sorted(view.table.rows))}
        # The commonest first: the rarest label of an image, which says most about it, counts.
        for category in sorted(positive, key=lambda category: -len(positive[category])):
            values[positive[category]] = places[category]
    return array_response(values)


async def own_values(name: str, view: View) -> np.ndarray:
    """float64 (n,): a field, or the places of texts in their column; NaN where it is not known."""
    column = view.table.columns.texts.get(name)
    if column and column.values:
        return np.where(column.codes < 0, np.nan, column.codes).astype("<f8")
    return (await filters.field_of(name, view)).values().astype("<f8")
