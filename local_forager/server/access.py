"""Which requests the local Forager answers: those of this machine and of its own page."""

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from local_forager.server.errors import Endpoint, html_page


def is_loopback(host: str) -> bool:
    """Whether host, a name or an address without port, always means this machine."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the address in the Host header."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


@web.middleware
async def refuse_other_hosts(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Refuse a Host header that does not name this machine, as real servers do.

    Another site's name can be made to resolve to this machine; its pages could then read data here.
    """
    if not is_loopback(request.url.host or ""):
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
