"""Command-line options that both commands share, and the types of their values."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from common.errors import IngestError
from common.names import BUCKET_NAME, BUCKET_NAME_RULE
from common.terminal import printable

# --skip-unknown is --skip_unknown: every option accepts dashes for underscores.
CONTEXT_SETTINGS = {
    "token_normalize_func": lambda option: option.replace("-", "_"),
    "max_content_width": 100,
}


def default_decode_workers() -> int:
    """1.5 per CPU core: some of the threads wait for the interpreter."""
    return 3 * (os.cpu_count() or 1) // 2


class Limit(NamedTuple):
    """A number of images, or a share of them."""

    value: float
    is_share: bool

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.is_share else f"{self.value:g}"

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


class TrialType(click.ParamType[int]):
    """A positive number of images, after --trial."""

    name = "N"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        text = str(value)
        if not text.isdecimal() or int(text) < 1:
            self.fail(
                f"{printable(text)!r} is no number of images: write --trial 200, or --trial at the "
                "end of the command."
            )
        return int(text)


class BucketType(click.ParamType[str]):
    """The name of a bucket, without gs://."""

    name = "NAME"

    def convert(self, value: Any, param: Any, context: Any) -> str:
        text = str(value)
        if BUCKET_NAME.fullmatch(text):
            return text
        bucket = text.removeprefix("gs://").partition("/")[0]
        form = f"write {bucket}" if BUCKET_NAME.fullmatch(bucket) else f"{BUCKET_NAME_RULE}"
        self.fail(f"{printable(text)!r} is no bucket name: {form}.")


class Command(click.Command):
    """A command that prints an IngestError as one sentence and ends with exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except IngestError as error:
            raise click.ClickException(error.message) from error


class GroupedCommand(Command):
    """A command whose --help shows its options under headings; `groups` is heading -> names."""

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups = groups

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        shown = {p.name: p.get_help_record(context) for p in self.get_params(context)}
        grouped = {name for names in self._groups.values() for name in names}
        others = [name for name in shown if name not in grouped]
        for heading, names in (*self._groups.items(), ("Other options", others)):
            with formatter.section(heading):
                formatter.write_dl([record for name in names if (record := shown[name])])


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
        type=BucketType(),
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


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --server_url, --bucket, --viewer_url and --dry_run to a click command."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(_SHARED), command)
