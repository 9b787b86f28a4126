"""The addresses of the page and its API, and how their answers and errors are sent."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from aiohttp import web

from local_forager.page import datasets, images, rows
from local_forager.page.questions import PREFIX
from local_forager.page.state import PAGE, PageState, View, view_of
from local_forager.server.api import SLUG, Endpoint
from local_forager.server.database import DATABASE_FILE, usable
from local_forager.types import PageError, StillWorking

Answer = web.StreamResponse | Mapping[str, object]
STATIC = Path(__file__).parents[1] / "static"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def answer_json(data: object, status: int = 200) -> web.Response:
    """Data as JSON that no browser caches; ValueError for NaN and infinity, which JSON lacks."""
    dumps = partial(json.dumps, allow_nan=False)
    headers = {"Cache-Control": "no-store"}
    return web.json_response(data, status=status, headers=headers, dumps=dumps)


def page_view(handler: Callable[[web.Request], Awaitable[Answer]]) -> Endpoint:
    """Send a handler's data and errors as JSON."""

    async def view(request: web.Request) -> web.StreamResponse:
        try:
            with usable(request.app[PAGE].options.data_dir / DATABASE_FILE):
                answer = await handler(request)
        except PageError as error:
            return answer_json({"error": error.message}, error.status)
        except StillWorking as working:
            return answer_json({"working": str(working)}, 202)
        if isinstance(answer, web.StreamResponse):
            return answer
        return answer_json(answer)

    return view


def index_view(handler: Callable[[web.Request, View], Awaitable[Answer]]) -> Endpoint:
    """The same for a handler that needs the dataset's index and labels."""

    async def view(request: web.Request) -> Answer:
        return await handler(request, await view_of(request))

    return page_view(view)


async def shell(request: web.Request) -> web.Response:
    """The page itself: the same for every address. Its script asks for everything else."""
    text = await asyncio.to_thread((STATIC / "index.html").read_text, "utf-8")
    name = request.match_info.get("name")
    known = name is None or await request.app[PAGE].database.dataset(name) is not None
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return web.Response(
        status=200 if known else 404, text=text, content_type="text/html", headers=headers
    )


async def without_slash(request: web.Request) -> web.Response:
    """/birds/ leads to /birds."""
    raise web.HTTPFound(request.rel_url.with_path(request.path.rstrip("/"), keep_query=True))


async def guard(request: web.Request, response: web.StreamResponse) -> None:
    """Headers that make a browser keep other sites out and trust the media types.

    Forager-Page tells clients that the page is here, not on port 4000 as a real Forager's.
    """
    response.headers["Forager-Page"] = "/"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Referrer-Policy"] = "no-referrer"
    if request.path.startswith("/static/"):
        response.headers["Cache-Control"] = "no-cache"


def add_page(app: web.Application, page: PageState) -> None:
    app[PAGE] = page
    name = f"/page/{{name:{SLUG}}}"
    row = r"{row:\d{1,10}}"
    views = {
        "/page/datasets": page_view(datasets.datasets),
        "/page/deletion": page_view(datasets.deletion),
        f"{name}/dataset": page_view(datasets.dataset_page),
        f"{name}/rows": index_view(rows.rows),
        f"{name}/distances": index_view(rows.distances),
        f"{name}/counts": index_view(rows.facet_counts),
        f"{name}/histograms": index_view(rows.histograms),
        f"{name}/images": index_view(images.images),
        f"{name}/image/{row}": index_view(images.image),
        f"{name}/neighbours/{row}": index_view(images.neighbours),
        f"{name}/search": index_view(images.search),
        f"{name}/map": index_view(datasets.map_points),
        f"{name}/column/{{column:split|class|label|category|field}}": index_view(datasets.column),
        f"{name}/health": index_view(datasets.health),
        f"{name}/picture/{{token:{PREFIX}[0-9a-f]+}}": index_view(images.given_picture),
        f"{name}/thumbnail/{row}": page_view(images.thumbnail),
        f"{name}/original/{row}": page_view(images.original),
        f"{name}/cover/{{place:[0-9]}}": page_view(images.cover),
    }
    for path, handler in views.items():
        app.router.add_get(path, handler)
    app.router.add_post(f"{name}/picture", index_view(images.give_picture))
    app.router.add_post(f"{name}/export", index_view(images.export_rows))
    app.router.add_post(f"{name}/choose", index_view(rows.choose))
    app.router.add_post("/page/text_model", page_view(datasets.text_model))
    app.router.add_post("/page/deletion", page_view(datasets.deletion))
    app.router.add_get("/", shell)
    app.router.add_get(f"/{{name:{SLUG}}}/", without_slash)
    app.router.add_get(f"/{{name:{SLUG}}}", shell)
    app.router.add_static("/static", STATIC)
    app.on_response_prepare.append(guard)
