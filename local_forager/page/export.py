"""Sends the images that a person selected on the page as a file."""

import itertools

import numpy as np
from aiohttp import web

from local_forager.export_formats import FORMATS, ExportProblem, annotation, export
from local_forager.indexes.label_table import POSITIVE
from local_forager.page.query import PageError, choice
from local_forager.page.state import PAGE, view_of

MEDIA_TYPES = {"txt": "text/plain", "csv": "text/csv", "json": "application/json"}


async def export_rows(request: web.Request) -> web.StreamResponse:
    """The body of the request is the rows, int32; the answer is streamed."""
    view = await view_of(request)
    name = choice(request, "format", tuple(FORMATS))
    body = await request.read()
    if len(body) % 4:
        raise PageError(400, "The rows to export are not 32-bit numbers.")
    rows = np.unique(np.frombuffer(body, "<i4"))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < len(view.index.names):
        raise PageError(400, f"There are {len(view.index.names):,} rows, from 0.")
    label = None
    if name == "labels":
        query = request.query
        try:
            label = annotation(query.get("category", ""), query.get("mode", POSITIVE))
        except ExportProblem as error:
            raise PageError(400, str(error)) from error
    pieces = export(name, view.index, view.table, rows.tolist(), label)
    suffix = FORMATS[name]
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type, response.charset = MEDIA_TYPES[suffix], "utf-8"
    file = f"{view.dataset.name}-{name}.{suffix}"
    response.headers["Content-Disposition"] = f'attachment; filename="{file}"'
    await response.prepare(request)
    while piece := await request.app[PAGE].compute("".join, itertools.islice(pieces, 1)):
        await response.write(piece.encode(errors="surrogatepass"))
    await response.write_eof()
    return response
