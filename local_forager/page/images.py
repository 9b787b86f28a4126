"""One or more images: what is known about them, their neighbours and their pictures."""

import asyncio
import time
from functools import partial

from aiohttp import web

from common.names import identifier
from local_forager.indexes.imagenet import class_name
from local_forager.page.query import PageError, choice, embedding_choice, number, row_in_path
from local_forager.page.state import PAGE, View, index_of, view_of
from local_forager.page.stored_images import (
    FOREVER,
    ImageMissing,
    decoding_problem,
    image_facts,
    image_response,
)
from local_forager.page.view.search import inverted_file
from local_forager.server.api import dataset_of
from local_forager.server.database import Dataset
from local_forager.types import ImageDetail, ImageList, ImageSummary, NeighbourList

ROWS_A_REQUEST = 500
MAX_NEIGHBOURS = 1_000
COVERS = 4  # thumbnails per dataset in the list of datasets


def summary(view: View, row: int) -> ImageSummary:
    name, number = view.index.names[row], int(view.index.classes[row])
    width, height = view.index.pixels(row) or (None, None)
    return {
        "row": row,
        "name": name,
        "identifier": identifier(name),
        "split": view.index.split(row),
        "failed": bool(view.index.failed[row]),
        "imagenet_class": number if number >= 0 else None,
        "class_name": class_name(number) if number >= 0 else "",
        "width": width,
        "height": height,
        "labels": view.table.of_row.get(row, []),
        "boxes": view.table.boxes.get(row, []),
    }


async def images(request: web.Request) -> ImageList:
    view = await view_of(request)
    texts = request.query.get("rows", "").split(",")
    wanted = [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 12]
    if len(wanted) != len(texts) or len(wanted) > ROWS_A_REQUEST:
        raise PageError(400, f"rows is not a list of up to {ROWS_A_REQUEST:,} numbers.")
    return {"images": [summary(view, row) for row in wanted if row < len(view.index.names)]}


async def image(request: web.Request) -> ImageDetail:
    view = await view_of(request)
    row = row_in_path(request, view.index)
    bucket = training_bucket(view.dataset)
    detail: ImageDetail = {
        **summary(view, row),
        "path": f"gs://{bucket}/{view.index.names[row]}",
        "bytes": None,
        "orientation": 1,
        "problem": "",
    }
    try:
        data = await request.app[PAGE].originals.get(bucket, view.index.names[row])
        detail["bytes"] = len(data)
        facts = await asyncio.to_thread(image_facts, data)
        detail["width"], detail["height"], detail["orientation"] = facts
        if view.index.failed[row]:
            detail["problem"] = await asyncio.to_thread(decoding_problem, data)
    except (ImageMissing, ValueError) as error:
        detail["problem"] = str(error)
    return detail


def training_bucket(dataset: Dataset) -> str:
    """The bucket of all images: Forager's page builds every address from the training path."""
    return dataset.train_path.removeprefix("gs://").partition("/")[0]


async def neighbours(request: web.Request) -> NeighbourList:
    view = await view_of(request)
    row, by = row_in_path(request, view.index), embedding_choice(request)
    if view.index.failed[row]:
        raise PageError(409, "This image failed at ingest: it has no vector to compare.")
    count = number(request, "count", 24, 1, MAX_NEIGHBOURS)
    begin = time.perf_counter()
    inverted, state = inverted_file(request, view, by)
    exact = inverted is None or choice(request, "exact", ("0", "1")) == "1"
    if inverted is None or exact:
        search = partial(view.index.embeddings[by].neighbours, row, count, view.index.failed)
    else:
        search = partial(inverted.neighbours, row, count)
    found = await request.app[PAGE].compute(search)
    return {
        "by": by,
        "exact": exact,
        "search": state,
        "milliseconds": round(1000 * (time.perf_counter() - begin), 2),
        "neighbours": [
            {"distance": round(float(distance), 6), "image": summary(view, int(near))}
            for near, distance in zip(found.rows, found.distances, strict=True)
        ],
    }


async def thumbnail(request: web.Request) -> web.StreamResponse:
    dataset, index = await index_of(request)
    name = identifier(index.names[row_in_path(request, index)])
    return await thumbnail_response(request, dataset.index_id, name)


async def thumbnail_response(request: web.Request, index_id: str, name: str) -> web.StreamResponse:
    """The thumbnail; 204 if there is none, since browsers report a 404 as an error of the page."""
    if request.transport is None or request.transport.is_closing():
        raise PageError(499, "The browser no longer needs the thumbnail.")
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
    """One of COVERS thumbnails for the list of datasets. It does not need a copy of the index."""
    dataset = await dataset_of(request)
    names = await request.app[PAGE].database.sample(dataset.id, COVERS)
    place = int(request.match_info["place"])
    if place >= len(names):
        raise PageError(404, "The dataset has no such image.")
    return await thumbnail_response(request, dataset.index_id, names[place])


async def original(request: web.Request) -> web.Response:
    dataset, index = await index_of(request)
    name = index.names[row_in_path(request, index)]
    data = await request.app[PAGE].originals.get(training_bucket(dataset), name)
    lasting = request.query.get("v") == dataset.index_id
    return image_response(data, FOREVER if lasting else "no-cache")
