"""One or more images: what is known about them, their neighbours, their pictures, their export."""

import asyncio
import time
from functools import partial

from aiohttp import web

from common.errors import IngestError
from common.names import identifier
from local_forager import types as answers
from local_forager.analysis.picture_search import read_picture
from local_forager.export import FORMATS, export, label_to_export
from local_forager.indexes.index import POSITIVE, class_name
from local_forager.indexes.vectors import NOT_INSTALLED, InvertedFile, faiss_installed
from local_forager.page import filters
from local_forager.page.pictures import image_facts, image_response
from local_forager.page.state import PAGE, View, index_of
from local_forager.server.api import dataset_of
from local_forager.types import PageError

ROWS_A_REQUEST = 500
MAX_NEIGHBOURS = 1_000
COVERS = 4  # thumbnails per dataset in the list of datasets
REPLACED = "It can be decoded now. Perhaps it has been replaced since the ingest."
MEDIA_TYPES = {"txt": "text/plain", "csv": "text/csv", "json": "application/json"}


def summary(view: View, row: int) -> answers.ImageSummary:
    name, number = view.index.names[row], int(view.index.classes[row])
    width, height = view.index.pixels(row) or (None, None)
    return {
        "row": row,
        "name": name,
        "split": view.index.split(row),
        "failed": bool(view.index.failed[row]),
        "imagenet_class": number if number >= 0 else None,
        "class_name": class_name(number) if number >= 0 else "",
        "width": width,
        "height": height,
        "labels": view.table.of_row.get(row, []),
        "boxes": view.table.boxes.get(row, []),
    }


async def images(request: web.Request, view: View) -> answers.ImageList:
    texts = request.query.get("rows", "").split(",")
    wanted = [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 12]
    if len(wanted) != len(texts) or len(wanted) > ROWS_A_REQUEST:
        raise PageError(400, f"rows is not a list of up to {ROWS_A_REQUEST:,} numbers.")
    return {"images": [summary(view, row) for row in wanted if row < len(view.index.names)]}


def value_texts(view: View, row: int) -> list[answers.ValueText]:
    """What is measured of an image, and what columns of one's own say of it."""
    fields = [field for field in view.index.fields.values() if field.group == "quality"]
    values = [(field.title, field.text(row)) for field in fields]
    values += view.table.columns.of_row(row)
    return [{"title": title, "text": text} for title, text in values if text]


async def image(request: web.Request, view: View) -> answers.ImageDetail:
    row, bucket = filters.row_in_path(request, view.index), view.dataset.bucket
    detail: answers.ImageDetail = {
        **summary(view, row),
        "bytes": None,
        "orientation": 1,
        "values": value_texts(view, row),
        "problem": "",
    }
    try:
        data = await view.page.pictures.original(bucket, view.index.names[row])
        detail["bytes"] = len(data)
        facts = await asyncio.to_thread(image_facts, data)
        detail["width"], detail["height"], detail["orientation"] = facts
        if view.index.failed[row]:
            await asyncio.to_thread(read_picture, data, "It")
            detail["problem"] = REPLACED
    except IngestError as error:
        detail["problem"] = error.message
    return detail


def inverted_file(view: View, by: str) -> tuple[InvertedFile | None, answers.SearchState]:
    """The inverted file of an embedding, None while there is none; building starts when needed."""
    index = view.index
    exact: answers.SearchState = {"state": "exact", "progress": 1.0, "reason": ""}
    if len(index.names) <= view.page.options.exact_rows:
        return None, exact
    if not faiss_installed():
        return None, {**exact, "reason": NOT_INSTALLED}
    job = view.page.jobs.start(("inverted file", index, by), partial(index.inverted_file, by))
    try:
        found: InvertedFile | None = job.result()
    except (OSError, RuntimeError, MemoryError) as error:
        return None, {**exact, "reason": f"A faster search cannot be prepared ({error})."}
    state = "building" if found is None else "ready"
    return found, {"state": state, "progress": job.progress, "reason": ""}


async def search(request: web.Request, view: View) -> answers.SearchState:
    return inverted_file(view, filters.embedding_choice(request))[1]


async def neighbours(request: web.Request, view: View) -> answers.NeighbourList:
    row, by = filters.row_in_path(request, view.index), filters.embedding_choice(request)
    if view.index.failed[row]:
        raise PageError(409, "This image failed at ingest: it has no vector to compare.")
    count = filters.number(request, "count", 24, 1, MAX_NEIGHBOURS)
    begin = time.perf_counter()
    inverted, state = inverted_file(view, by)
    exact = inverted is None or filters.flag(request, "exact")
    if inverted is None or exact:
        compare = partial(view.index.embeddings[by].neighbours, row, count, view.index.failed)
    else:
        compare = partial(inverted.neighbours, row, count)
    found = await view.page.compute(compare)
    return {
        "exact": exact,
        "search": state,
        "milliseconds": round(1000 * (time.perf_counter() - begin), 2),
        "neighbours": [
            {"distance": round(float(distance), 6), "image": summary(view, int(near))}
            for near, distance in zip(found.rows, found.distances, strict=True)
        ],
    }


async def give_picture(request: web.Request, view: View) -> answers.PictureQuestion:
    """The body of the request is an image file. It is not stored, and goes nowhere else."""
    questions = view.page.questions
    return await questions.question(await questions.add(request), view.index)


async def given_picture(request: web.Request, view: View) -> answers.PictureQuestion:
    return await view.page.questions.question(request.match_info["token"], view.index)


async def thumbnail(request: web.Request) -> web.StreamResponse:
    dataset, index = await index_of(request)
    name = identifier(index.names[filters.row_in_path(request, index)])
    return await thumbnail_response(request, dataset.index_id, name)


async def thumbnail_response(request: web.Request, index_id: str, name: str) -> web.StreamResponse:
    """The thumbnail; 204 if there is none, since browsers report a 404 as an error of the page."""
    if request.transport is None or request.transport.is_closing():
        raise PageError(499, "The browser no longer needs the thumbnail.")
    try:
        path = await request.app[PAGE].pictures.thumbnail(index_id, name)
    except PageError as error:
        if error.status != 404:
            raise
        return web.Response(status=204, headers={"Cache-Control": "no-cache"})
    data = await asyncio.to_thread(path.read_bytes)
    return image_response(data, forever=request.query.get("v") == index_id)


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
    name = index.names[filters.row_in_path(request, index)]
    data = await request.app[PAGE].pictures.original(dataset.bucket, name)
    return image_response(data, forever=request.query.get("v") == dataset.index_id)


async def export_rows(request: web.Request, view: View) -> web.StreamResponse:
    """The body of the request is the rows, int32; the answer is streamed as a file."""
    name = filters.choice(request, "format", tuple(FORMATS))
    rows = await filters.posted_rows(request, view.index)
    category, mode = request.query.get("category", ""), request.query.get("mode", POSITIVE)
    label = label_to_export(category, mode) if name == "labels" else {}
    pieces = export(name, view.index, view.table, rows.tolist(), label)
    suffix = FORMATS[name]
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="{view.dataset.name}-{name}.{suffix}"',
        "Content-Type": f"{MEDIA_TYPES[suffix]}; charset=utf-8",
    }
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    while piece := await view.page.compute(partial(next, pieces, "")):
        await response.write(piece.encode(errors="surrogatepass"))
    return response
