"""Addresses of servers: which are valid, how they are shown, and those of the environment."""

from __future__ import annotations

import ipaddress
import urllib.request
from urllib.parse import urlsplit

from yarl import URL

from common.errors import IngestError, ServerError
from common.terminal import printable

FORM = "write it as http://HOST:PORT"
HIDDEN = " (shown without the user and password, in which / is written %2F, ? %3F, # %23)"
MAX_HOST_LENGTH = 253  # characters, by the rules of the domain name system
VIEWER_PORT = 4000  # of the web page of a real Forager


def shown_address(text: str) -> str:
    """An address as it may be printed: without a password, whatever its form.

    All text up to the last @ is left out, and so is what follows a ?, a # or a colon that no port
    number follows: each may hold a password or a token.
    """
    scheme, separator, rest = text.rpartition("://")
    if not separator or scheme not in ("http", "https", "ray") or "@" in scheme:
        scheme, separator, rest = "", "", text
    rest = rest.rpartition("@")[2]
    for mark in "?#":
        before, found, _ = rest.partition(mark)
        rest = f"{before}{mark}..." if found else rest
    host, colon, port = rest.partition(":")
    if colon and not rest.startswith("[") and not port.split("/")[0].isdigit():
        rest = f"{host}:..."
    return printable(scheme + separator + rest)


def address_in(variable: str, text: str, use: str, *, with_user: bool = False) -> str:
    """The address of a variable of the environment, with its http:// and without a final slash.

    Raises:
        IngestError: it is no address, or has a user and may not; the sentence ends with `use`.
    """
    address = (text if "://" in text else f"http://{text}").rstrip("/")
    is_short = is_address(address) and not urlsplit(address).path
    if not is_short or ("@" in address and not with_user):
        raise IngestError(
            f"{variable}={shown_address(text)!r} in the environment is not an address: write it as "
            f"http://HOST:PORT, or unset it {use}."
        )
    return address


def proxy_for(address: str) -> str | None:
    """The proxy that the environment names for an address, or None.

    aiohttp's trust_env would look into the environment and into .netrc for every request, which
    costs more than a small request itself.

    Raises:
        IngestError: it is no address.
    """
    url = urlsplit(address)
    if not url.hostname or urllib.request.proxy_bypass(url.netloc.rpartition("@")[2]):
        return None
    proxy = urllib.request.getproxies().get(url.scheme)
    if not proxy:
        return None
    return address_in(f"{url.scheme}_proxy", proxy, "to use no proxy", with_user=True)


def check_server_url(server_url: str) -> str:
    """The URL without trailing slashes.

    Raises:
        ServerError: it is empty, or cannot be the address of a server.
    """
    if not server_url:
        raise ServerError("SERVER_URL is not set: write SERVER_URL=http://HOST:PORT before python.")
    if not is_address(server_url):
        hint = HIDDEN if "@" in server_url else ""
        shown = shown_address(server_url)
        raise ServerError(f"SERVER_URL {shown!r}{hint} is not an address: {FORM}.")
    return server_url.rstrip("/")


def is_address(text: str) -> bool:
    """Whether a client can connect to this, as far as its form tells; it may have a path."""
    try:
        parts = urlsplit(text)
        URL(text)  # aiohttp parses the address with yarl
        known = parts.scheme in ("http", "https") and parts.port != 0 and _is_host(parts.hostname)
    except ValueError:
        return False
    return known and text.isprintable() and not set(text) & set(" ?#")


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
