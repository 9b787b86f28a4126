"""The addresses of the page and its API, and how their answers and errors are sent."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from local_forager.page.datasets import dataset_page, datasets, health
from local_forager.page.export import export_rows
from local_forager.page.images import cover, image, images, neighbours, original, thumbnail
from local_forager.page.map import column, map_points
from local_forager.page.query import PageError
from local_forager.page.state import PAGE, Page
from local_forager.page.stored_images import ImageMissing
from local_forager.page.view.histograms import histograms
from local_forager.page.view.rows import distances, rows
from local_forager.page.view.search import search
from local_forager.server.api import SLUG
from local_forager.server.errors import Endpoint, NoSuchDataset

STATIC = Path(__file__).parents[1] / "static"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_view(handler: Callable[[web.Request], Any]) -> Endpoint:
    """Send a handler's data and errors as JSON that no browser caches."""

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


async def shell(request: web.Request) -> web.Response:
    """The page itself: the same for every address. Its script asks for everything else."""
    text = await asyncio.to_thread((STATIC / "index.html").read_text, "utf-8")
    name = request.match_info.get("name")
    known = name is None or await request.app[PAGE].database.dataset(name) is not None
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return web.Response(
        status=200 if known else 404, text=text, content_type="text/html", headers=headers
    )


async def guard(request: web.Request, response: web.StreamResponse) -> None:
    """Headers that make a browser keep other sites out and trust the media types."""
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
        f"{name}/distances": distances,
        f"{name}/histograms": histograms,
        f"{name}/images": images,
        f"{name}/image/{row}": image,
        f"{name}/neighbours/{row}": neighbours,
        f"{name}/search": search,
        f"{name}/map": map_points,
        f"{name}/column/{{column:split|class|label|category}}": column,
        f"{name}/health": health,
        f"{name}/thumbnail/{row}": thumbnail,
        f"{name}/original/{row}": original,
        f"{name}/cover/{{place:[0-9]}}": cover,
    }
    for path, handler in views.items():
        app.router.add_get(path, page_view(handler))
    app.router.add_post(f"{name}/export", page_view(export_rows))
    app.router.add_get("/", shell)
    app.router.add_get(f"/{{name:{SLUG}}}", shell)
    app.router.add_static("/static", STATIC)
    app.on_response_prepare.append(guard)
