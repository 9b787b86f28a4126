"""Addresses of servers: how they are shown, and those that the environment names."""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit

from common.errors import IngestError
from common.terminal import printable


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
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    valid = valid and parts[2:] == ("", "", "") and (with_user or "@" not in address)
    if not valid or " " in address or not address.isprintable():
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
