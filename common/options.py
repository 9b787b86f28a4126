"""Command-line options that both commands share, and the types of their values."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from common.terminal import printable

# --skip-unknown is --skip_unknown: every option accepts dashes for underscores.
CONTEXT_SETTINGS = {
    "token_normalize_func": lambda option: option.replace("-", "_"),
    "max_content_width": 100,
}

_SHARED = (
    click.option(
        "--server_url",
        envvar="SERVER_URL",
        default="",
        metavar="URL",
        help="The Forager server, as http://HOST:PORT; also SERVER_URL in the environment.",
    ),
    click.option(
        "--bucket",
        envvar="FORAGER_BUCKET",
        default="foragerml",
        show_default=True,
        metavar="NAME",
        help="The bucket of indexes and thumbnails; also FORAGER_BUCKET in the environment.",
    ),
    click.option(
        "--viewer_url",
        metavar="URL",
        help="The address of Forager's web page.  [default: port 4000 of the server's host]",
    ),
    click.option("--dry_run", is_flag=True, help="Check everything, say what would be done, stop."),
)


def default_decode_workers() -> int:
    """1.5 per CPU core: some of the threads wait for the interpreter."""
    return 3 * (os.cpu_count() or 1) // 2


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --server_url, --bucket, --viewer_url and --dry_run to a click command."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(_SHARED), command)


class Limit(NamedTuple):
    """A number of images, or a share of them."""

    value: float
    is_share: bool

    def of(self, images: int) -> int:
        return int(self.value * images) if self.is_share else int(self.value)


class LimitType(click.ParamType[Limit]):
    """`100` or `1%`."""

    name = "N|N%"

    def convert(self, value: Any, param: Any, context: Any) -> Limit:
        text = str(value)
        try:
            limit = Limit(float(text.rstrip("%")) / (100 if text.endswith("%") else 1), "%" in text)
        except ValueError:
            self.fail(f"{printable(text)!r} is neither a number (100) nor a share (1%).")
        if not 0 <= limit.value < (1.0001 if limit.is_share else float("inf")):
            self.fail(f"{printable(text)!r} is out of range: a number (100) or a share (1%).")
        return limit


class BatchSizeType(click.ParamType[int]):
    """`auto` (None) or a positive number."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, context: Any) -> int | None:  # type: ignore[override]
        if value in (None, "auto"):
            return None
        try:
            size = int(value)
        except ValueError:
            size = 0
        if size < 1:
            self.fail(f"{printable(str(value))!r} is neither auto nor a positive number.")
        return size
