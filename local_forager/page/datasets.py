"""The list of datasets, one dataset's description and its health report."""

import asyncio

import numpy as np
from aiohttp import web

from common.names import DATASET_NAME
from dataset.arrays import EMBEDDINGS
from local_forager.analysis.health import TITLES, Health
from local_forager.analysis.projection import umap_installed
from local_forager.indexes.imagenet import class_name
from local_forager.indexes.index import Index
from local_forager.page.map import UMAP_MISSING
from local_forager.page.query import COMPARED_BY, choice, embedding_choice
from local_forager.page.state import PAGE, view_of
from local_forager.server.api import GENERATION, dataset_of
from local_forager.server.database import Counts
from local_forager.types import (
    ClassCount,
    DatasetCard,
    DatasetList,
    DatasetPage,
    Feature,
    HealthReport,
    IndexState,
)

QUICK_COPY = 0.3  # seconds to wait for an index copy, so that a small one is ready at once


async def datasets(request: web.Request) -> DatasetList:
    page = request.app[PAGE]
    cards: list[DatasetCard] = []
    for name in await page.database.dataset_names():
        if dataset := await page.database.dataset(name):
            opens = DATASET_NAME.fullmatch(name) is not None
            num_train, num_val = await page.database.counts(dataset.id)
            cards.append({"name": name, "num_train": num_train, "num_val": num_val, "opens": opens})
    return {
        "generation": request.app[GENERATION],
        "bucket": page.bucket,
        "datasets": cards,
    }


def feature(problem: str | None) -> Feature:
    return {"available": problem is None, "reason": problem or ""}


def warnings_of(counts: Counts, index: Index) -> list[str]:
    """A sentence if the server and the index have different numbers of images.

    An image that vanished before the registration has a row that failed, and the server lacks it.
    """
    index_val = len(index.names) - index.num_train
    failed = int(index.failed.sum())
    failed_train = int(index.failed[: index.num_train].sum())
    if (
        0 <= index.num_train - counts.num_train <= failed_train
        and 0 <= index_val - counts.num_val <= failed - failed_train
    ):
        return []
    return [
        f"The server has {counts.num_train:,} training and {counts.num_val:,} validation images, "
        f"but the index has {index.num_train:,} and {index_val:,}: it belongs to other images."
    ]


def class_counts(index: Index) -> list[ClassCount]:
    """The ImageNet classes of the images, the commonest first."""
    numbers, counts = np.unique(index.classes[index.classes >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        {"imagenet_class": number, "name": class_name(number), "count": count}
        for number, count in zip(numbers[order].tolist(), counts[order].tolist(), strict=True)
    ]


async def dataset_page(request: web.Request) -> DatasetPage:
    page = request.app[PAGE]
    dataset = await dataset_of(request)
    counts = await page.database.counts(dataset.id)
    copy = page.copies.get(dataset.index_id)
    if copy.index is None and not copy.task.done():
        await asyncio.wait([copy.task], timeout=QUICK_COPY)
    state: IndexState = {
        "state": "ready" if copy.index else "missing" if copy.problem else "copying",
        "detail": copy.problem,
        "done": copy.done() if copy.index is None else copy.total,
        "total": copy.total,
    }
    answer: DatasetPage = {
        "name": dataset.name,
        "index_id": dataset.index_id,
        "train_path": dataset.train_path,
        "val_path": dataset.val_path,
        "num_train": counts.num_train,
        "num_val": counts.num_val,
        "index": state,
        "rows": 0,
        "rows_train": 0,
        "failed": 0,
        "labelled": 0,
        "boxed": 0,
        "categories": [],
        "classes": [],
        "embeddings": [
            {
                "by": kind.name,
                "dimensions": kind.dimension,
                "about": f"{kind.compares}, by {kind.model}",
            }
            for kind in sorted(EMBEDDINGS, key=lambda kind: COMPARED_BY.index(kind.name))
        ],
        "sets": [{"set": name, "title": title} for name, title in TITLES.items()],
        "text_search": feature(page.no_text_search),
        "umap": feature(None if umap_installed() else UMAP_MISSING),
        "sizes": feature(None),
        "version": 0,
        "warnings": [],
    }
    if copy.index is not None:
        table, answer["version"] = await page.table(dataset, copy.index)
        answer["rows"], answer["rows_train"] = len(copy.index.names), copy.index.num_train
        answer["failed"] = int(copy.index.failed.sum())
        answer["labelled"], answer["categories"] = len(table.of_row), table.counts()
        answer["boxed"] = len(table.boxes)
        answer["classes"] = class_counts(copy.index)
        answer["sizes"] = feature(copy.index.no_sizes or None)
        answer["warnings"] = warnings_of(counts, copy.index)
    return answer


async def health(request: web.Request) -> HealthReport:
    view = await view_of(request)
    by = embedding_choice(request)
    page = request.app[PAGE]
    checks = Health(page.jobs, view.dataset.index_id, view.index, by, page.exact_rows)
    start = choice(request, "start", ("0", "1")) == "1"
    exact = choice(request, "exact", ("0", "1")) == "1"
    return {
        "by": by,
        "all_pairs": checks.all_pairs(exact),
        "findings": checks.findings(view.table, view.version, start),
    }
