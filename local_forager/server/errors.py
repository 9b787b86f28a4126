"""Errors of the local Forager's API, answered as real servers answer them."""

import html
import sys
from collections.abc import Awaitable, Callable

from aiohttp import web

Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestDataTooBig(Exception):
    """The body is larger than real servers accept: they answer 400 without reading it."""


class NoSuchDataset(Exception):
    """There is no dataset of this name. The 404 is JSON; that of an unknown address is HTML."""


def html_page(status: int, title: str, detail: str) -> web.Response:
    """An error page as real servers send it: its title names the exception and the address."""
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head>\n"
        f"<body><h1>{html.escape(title)}</h1><pre>{html.escape(detail)}</pre></body></html>\n"
    )
    return web.Response(status=status, text=text, content_type="text/html")


@web.middleware
async def answer_errors(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Answer every error of the API, and every unknown address, as a real server does."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return html_page(404, f"Page not found at {request.path}", "There is no such address here.")
    except web.HTTPException:
        raise
    except NoSuchDataset:
        return web.json_response({"detail": "Not found."}, status=404)
    except RequestDataTooBig as error:
        return html_page(400, f"RequestDataTooBig at {request.path}", str(error))
    except Exception as error:
        name = type(error).__name__
        print(f"{request.method} {request.path!a} 500 {name}: {error!a}", file=sys.stderr)
        return html_page(500, f"{name} at {request.path}", str(error))
