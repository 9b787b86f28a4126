"""Which requests are answered: this machine's, this page's. Errors, as real servers show them."""

import html
import ipaddress
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from local_forager.errors import NoSuchDataset, RequestDataTooBig

Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Whether host, a name or an address without port, always means this machine."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def host_in(header: str) -> str | None:
    """The host of a Host header without its port; None if the header is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        return parts.hostname if parts.netloc == header and parts.port != 0 else None
    except ValueError:
        return None


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the address in the Host header."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def html_page(status: int, title: str, detail: str) -> web.Response:
    """An error page as real servers send it: its title names the exception and the address."""
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head>\n"
        f"<body><h1>{html.escape(title)}</h1><pre>{html.escape(detail)}</pre></body></html>\n"
    )
    return web.Response(status=status, text=text, content_type="text/html")


@web.middleware
async def refuse_other_hosts(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Refuse a Host header that does not name this machine, as real servers do.

    Another site's name can be made to resolve to this machine; its pages could then read data here.
    """
    if not is_loopback(host_in(request.host) or ""):
        title = f"DisallowedHost at {request.path}"
        return html_page(400, title, "Unknown host in the Host header.")
    return await handler(request)


@web.middleware
async def refuse_other_sites(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Refuse a POST that another site's page makes the browser send.

    Browsers name the page's origin in every POST; scripts such as ingest.py send no Origin.
    """
    origin = request.headers.get("Origin")
    if request.method == "POST" and origin is not None and not is_same_origin(origin, request.host):
        return html_page(403, "Forbidden", "Another site's page sent this request.")
    return await handler(request)


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
    except Exception as error:
        name = type(error).__name__
        status = 400 if isinstance(error, RequestDataTooBig) else 500
        if status == 500:
            print(f"{request.method} {request.path!a} 500 {name}: {error!a}", file=sys.stderr)
        return html_page(status, f"{name} at {request.path}", str(error))
