"""The page and its API: what the browser asks for, from the database, the index and the buckets.

The answers are described in page_types.py, the addresses in docs/page-api.md.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from common.names import DATASET_NAME, identifier
from local_forager.analysis.health_jobs import Health
from local_forager.analysis.index_copy import DIMENSIONS, Index
from local_forager.analysis.projection import umap_installed
from local_forager.page.images import FOREVER, ImageMissing, image_response, image_size
from local_forager.page.page import (
    PAGE,
    Page,
    PageError,
    View,
    choice,
    embedding_choice,
    index_of,
    number,
    row_of,
    view_of,
)
from local_forager.page.rows import UMAP_MISSING, column, map_points, rows
from local_forager.server.api import GENERATION, SLUG, Endpoint, NoSuchDataset, dataset_of
from local_forager.server.database import Counts, Dataset
from local_forager.types import (
    DatasetCard,
    DatasetList,
    DatasetPage,
    Feature,
    HealthReport,
    ImageDetail,
    ImageList,
    ImageSummary,
    IndexState,
    NeighbourList,
)

STATIC = Path(__file__).parents[1] / "static"
ROWS_A_REQUEST = 500
MAX_NEIGHBOURS = 1_000
COVERS = 4
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_view(handler: Callable[[web.Request], Any]) -> Endpoint:
    """handler, with its errors and data as the page's API answers them: JSON, never cached."""

    async def view(request: web.Request) -> web.StreamResponse:
        try:
            answer = await handler(request)
        except (PageError, ImageMissing) as error:
            return answer_json({"error": str(error)}, error.status)
        except NoSuchDataset:
            name = request.match_info["name"]
            return answer_json({"error": f"There is no dataset named {name} here."}, 404)
        if isinstance(answer, web.StreamResponse):
            return answer
        return answer_json(answer, 202 if "working" in answer else 200)

    return view


def answer_json(data: Any, status: int = 200) -> web.Response:
    return web.json_response(data, status=status, headers={"Cache-Control": "no-store"})


def summary(view: View, row: int) -> ImageSummary:
    name, number = view.index.names[row], int(view.index.classes[row])
    return {
        "row": row,
        "name": name,
        "identifier": identifier(name),
        "split": view.index.split(row),
        "failed": bool(view.index.failed[row]),
        "imagenet_class": number if number >= 0 else None,
        "labels": view.table.of_row.get(row, []),
    }


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
    """Where the server and the index differ."""
    index_val = len(index.names) - index.num_train
    if counts == (index.num_train, index_val):
        return []
    return [
        f"The server has {counts.num_train:,} training and {counts.num_val:,} validation images, "
        f"the index has {index.num_train:,} and {index_val:,}: they do not belong together."
    ]


async def dataset_page(request: web.Request) -> DatasetPage:
    page = request.app[PAGE]
    dataset = await dataset_of(request)
    counts = await page.database.counts(dataset.id)
    copy = page.copies.get(dataset.index_id)
    if copy.index is None and not copy.task.done():
        await asyncio.wait([copy.task], timeout=0.3)  # small indexes are here at once
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
        "categories": [],
        "embeddings": [{"by": by, "dimensions": size} for by, size in DIMENSIONS.items()],
        "text_search": feature(page.no_text_search),
        "umap": feature(None if umap_installed() else UMAP_MISSING),
        "version": 0,
        "warnings": [],
    }
    if copy.index is not None:
        table, answer["version"] = await page.table(dataset, copy.index)
        answer["rows"], answer["rows_train"] = len(copy.index.names), copy.index.num_train
        answer["failed"] = int(copy.index.failed.sum())
        answer["labelled"], answer["categories"] = len(table.of_row), table.counts()
        answer["warnings"] = warnings_of(counts, copy.index)
    return answer


async def images(request: web.Request) -> ImageList:
    view = await view_of(request)
    texts = request.query.get("rows", "").split(",")
    wanted = [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 12]
    if len(wanted) != len(texts) or len(wanted) > ROWS_A_REQUEST:
        raise PageError(400, f"rows is not a list of up to {ROWS_A_REQUEST} numbers.")
    return {"images": [summary(view, row) for row in wanted if row < len(view.index.names)]}


async def image(request: web.Request) -> ImageDetail:
    view = await view_of(request)
    row = row_of(request, view.index)
    bucket = training_bucket(view.dataset)
    detail: ImageDetail = {
        **summary(view, row),
        "path": f"gs://{bucket}/{view.index.names[row]}",
        "bytes": None,
        "width": None,
        "height": None,
        "problem": "",
    }
    try:
        data = await request.app[PAGE].originals.get(bucket, view.index.names[row])
        detail["bytes"] = len(data)
        detail["width"], detail["height"] = await asyncio.to_thread(image_size, data)
    except (ImageMissing, ValueError) as error:
        detail["problem"] = str(error)
    return detail


def training_bucket(dataset: Dataset) -> str:
    """Forager's page takes every image from the bucket of the training images."""
    return dataset.train_path.removeprefix("gs://").partition("/")[0]


async def neighbours(request: web.Request) -> NeighbourList:
    view = await view_of(request)
    row, by = row_of(request, view.index), embedding_choice(request)
    if view.index.failed[row]:
        raise PageError(409, "This image failed at ingest: it has no vector to compare.")
    count = number(request, "count", 24, 1, MAX_NEIGHBOURS)
    begin = time.perf_counter()
    search = partial(view.index.embeddings[by].neighbours, row, count, view.index.failed)
    found = await request.app[PAGE].compute(search)
    return {
        "by": by,
        "milliseconds": round(1000 * (time.perf_counter() - begin), 2),
        "neighbours": [
            {"distance": round(float(distance), 6), "image": summary(view, int(near))}
            for near, distance in zip(found.rows, found.distances, strict=True)
        ],
    }


async def health(request: web.Request) -> HealthReport:
    view = await view_of(request)
    by = embedding_choice(request)
    checks = Health(request.app[PAGE].jobs, view.dataset.index_id, view.index, by)
    start = choice(request, "start", ("0", "1")) == "1"
    return {"by": by, "findings": checks.findings(view.table, view.version, start)}


async def thumbnail(request: web.Request) -> web.StreamResponse:
    dataset, index = await index_of(request)
    name = identifier(index.names[row_of(request, index)])
    return await thumbnail_response(request, dataset.index_id, name)


async def thumbnail_response(request: web.Request, index_id: str, name: str) -> web.StreamResponse:
    """The thumbnail; 204 where there is none, as for an image that failed: no error of the page."""
    if request.transport is None or request.transport.is_closing():
        raise PageError(499, "The browser scrolled on.")
    try:
        path = await request.app[PAGE].thumbnails.get(index_id, name)
    except ImageMissing as error:
        if error.status != 404:
            raise
        return web.Response(status=204, headers={"Cache-Control": "no-cache"})
    data = await asyncio.to_thread(path.read_bytes)
    lasting = request.query.get("v") == index_id
    return image_response(data, FOREVER if lasting else "no-cache")


async def cover(request: web.Request) -> web.StreamResponse:
    """One of a few thumbnails for the list of datasets, which needs no copy of the index."""
    dataset = await dataset_of(request)
    names = await request.app[PAGE].database.sample(dataset.id, COVERS)
    place = int(request.match_info["place"])
    if place >= len(names):
        raise PageError(404, "The dataset has no such image.")
    return await thumbnail_response(request, dataset.index_id, names[place])


async def original(request: web.Request) -> web.Response:
    dataset, index = await index_of(request)
    name = index.names[row_of(request, index)]
    data = await request.app[PAGE].originals.get(training_bucket(dataset), name)
    lasting = request.query.get("v") == dataset.index_id
    return image_response(data, FOREVER if lasting else "no-cache")


async def shell(request: web.Request) -> web.Response:
    """The page itself: the same for every address, the script in it asks for the rest."""
    text = await asyncio.to_thread((STATIC / "index.html").read_text, "utf-8")
    name = request.match_info.get("name")
    known = name is None or await request.app[PAGE].database.dataset(name) is not None
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return web.Response(
        status=200 if known else 404, text=text, content_type="text/html", headers=headers
    )


async def guard(request: web.Request, response: web.StreamResponse) -> None:
    """Headers by which a browser keeps other sites out and takes nothing for what it is not."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Referrer-Policy"] = "no-referrer"
    if request.path.startswith("/static/"):
        response.headers["Cache-Control"] = "no-cache"


def add_page(app: web.Application, page: Page) -> None:
    app[PAGE] = page
    name = f"/page/{{name:{SLUG}}}"
    row = r"{row:\d{1,10}}"
    views: dict[str, Callable[[web.Request], Any]] = {
        "/page/datasets": datasets,
        f"{name}/dataset": dataset_page,
        f"{name}/rows": rows,
        f"{name}/images": images,
        f"{name}/image/{row}": image,
        f"{name}/neighbours/{row}": neighbours,
        f"{name}/map": map_points,
        f"{name}/column/{{column:split|class|label}}": column,
        f"{name}/health": health,
        f"{name}/thumbnail/{row}": thumbnail,
        f"{name}/original/{row}": original,
        f"{name}/cover/{{place:[0-9]}}": cover,
    }
    for path, handler in views.items():
        app.router.add_get(path, page_view(handler))
    app.router.add_get("/", shell)
    app.router.add_get(f"/{{name:{SLUG}}}", shell)
    app.router.add_static("/static", STATIC)
    app.on_response_prepare.append(guard)
