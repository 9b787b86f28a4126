"""How an address is shown: without a password or a token, whatever its form."""

from common.terminal import printable


def shown_address(address: str) -> str:
    """The address as it may be printed or stored: without a password, whatever its form.

    All text up to the last @ is left out, and so is what follows a ?, a # or a colon that no port
    number follows: each may hold a password or a token.
    """
    scheme, separator, rest = address.rpartition("://")
    if not separator or scheme not in ("http", "https") or "@" in scheme:
        scheme, separator, rest = "", "", address
    rest = rest.rpartition("@")[2]
    for mark in "?#":
        before, found, _ = rest.partition(mark)
        rest = f"{before}{mark}..." if found else rest
    host, colon, port = rest.partition(":")
    if colon and not rest.startswith("[") and not port.split("/")[0].isdigit():
        rest = f"{host}:..."
    return printable(scheme + separator + rest)
