"""The address of the Forager server: what is valid, how to print it, and where the web page is."""

import ipaddress
from urllib.parse import urlsplit

from yarl import URL

from common.addresses import shown_address
from common.errors import ServerError

FORM = "write it as http://HOST:PORT"
HIDDEN = " (shown without the user and password, in which / is written %2F, ? %3F, # %23)"
MAX_HOST_LENGTH = 253  # characters, by the rules of the domain name system
VIEWER_PORT = 4000  # of the web page of a real Forager


def check_server_url(server_url: str) -> str:
    """The URL without trailing slashes.

    Raises:
        ServerError: it is empty, or cannot be the address of a server.
    """
    if not server_url:
        raise ServerError("SERVER_URL is not set: write SERVER_URL=http://HOST:PORT before python.")
    shown = shown_address(server_url)
    if not _is_address(server_url):
        hint = HIDDEN if "@" in server_url else ""
        raise ServerError(f"SERVER_URL {shown!r}{hint} is not an address: {FORM}.")
    parts = urlsplit(server_url)
    if parts.query or parts.fragment or not server_url.isprintable() or " " in server_url:
        raise ServerError(f"SERVER_URL {shown!r} has more than an address: {FORM}.")
    return server_url.rstrip("/")


def _is_address(server_url: str) -> bool:
    """Whether aiohttp can connect to this URL, as far as its form tells."""
    try:
        parts = urlsplit(server_url)
        URL(server_url)  # aiohttp parses the address with yarl
        return parts.scheme in ("http", "https") and parts.port != 0 and _is_host(parts.hostname)
    except ValueError:
        return False


def _is_host(host: str | None) -> bool:
    try:
        return bool(ipaddress.ip_address(host or ""))
    except ValueError:
        pass
    try:
        return 0 < len((host or "").encode("idna")) <= MAX_HOST_LENGTH
    except UnicodeError:  # an empty label, or one of more than 63 characters
        return False


def shown_server(server_url: str) -> str:
    """The address of a server, always in the same form and without a password."""
    return shown_address(server_url.rstrip("/"))


def dataset_page(server_url: str, viewer_url: str | None, name: str) -> str:
    """The page of a dataset: on port 4000 of the server's host, or below `viewer_url`."""
    if viewer_url:
        return f"{shown_server(viewer_url)}/{name}"
    host = urlsplit(server_url).hostname or "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{VIEWER_PORT}/{name}"
