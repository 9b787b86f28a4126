"""The options of both commands: their values, defaults and help, and which go together."""

import contextlib
import difflib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click

from common.errors import IngestError
from common.guard import INTERRUPTED, imports_are_done
from common.names import BUCKET_NAME, BUCKET_NAME_RULE
from common.program import ROOT, program_version
from common.terminal import escaped, printable

# --skip-unknown is --skip_unknown: every option accepts dashes for underscores.
CONTEXT_SETTINGS = {
    "token_normalize_func": lambda option: option.replace("-", "_"),
    "max_content_width": 100,
    "show_default": True,
}
ALIKE = 0.75  # how alike two options are at least, of which one may be meant for the other


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


# The types of options are functions: click prints the sentence of their ValueError.


def image_limit(text: str) -> Limit:
    """`100` or `1%`."""
    try:
        limit = Limit(float(text.rstrip("%")) / (100 if text.endswith("%") else 1), "%" in text)
    except ValueError:
        raise ValueError(
            f"{printable(text)!r} is neither a number (100) nor a share (1%)."
        ) from None
    if not 0 <= limit.value < (1.0001 if limit.is_share else float("inf")):
        raise ValueError(f"{printable(text)!r} is out of range: a number (100) or a share (1%).")
    return limit


def trial_images(text: str) -> int:
    """A positive number of images, after --trial."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"{printable(text)!r} is no number of images: write --trial 200, or --trial at the end "
            "of the command."
        )
    return int(text)


def batch_size(text: str) -> int | None:
    """`auto` (None) or a positive number."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{printable(text)!r} is neither auto nor a positive number.")
    return int(text)


def bucket_name(text: str) -> str:
    """The name of a bucket, without gs://."""
    if BUCKET_NAME.fullmatch(text):
        return text
    bucket = text.removeprefix("gs://").partition("/")[0]
    form = f"write {bucket}" if BUCKET_NAME.fullmatch(bucket) else f"{BUCKET_NAME_RULE}"
    raise ValueError(f"{printable(text)!r} is no bucket name: {form}.")


def _show_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"{context.find_root().info_name}: {program_version()}")
        context.exit()


def web_address(text: str) -> str:
    """An address that a browser can open."""
    from common.addresses import is_address, shown_address  # after --help

    if is_address(text):
        return text
    raise ValueError(
        f"{shown_address(text)!r} is no address of a web page: write it as http://HOST:PORT."
    )


def local_name(text: str) -> str:
    """What may name a file. Of an address only the scheme is shown: it may have a password."""
    scheme, is_address, _ = text.partition("://")
    if is_address:
        raise ValueError(f"{printable(scheme)}://... is an address, not a path on this machine.")
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{printable(text)!r} is too long for the name of a file.") from None
    return text


class LocalPath(click.Path):
    """A path on this machine, as a Path."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path_type=Path, **kwargs)

    def convert(self, value: Any, *where: Any) -> Any:
        try:
            return super().convert(local_name(str(value)), *where)
        except ValueError as error:
            self.fail(str(error), *where)


class Command(click.Command):
    """A command with -h and --version.

    It prints an IngestError as one sentence and ends with exit code 1, after Ctrl-C with 130.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])
        version = click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the commit of this program, and a digest of its files.",
        )
        self.params.append(version)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        imports_are_done()
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show
            sys.stdout.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def run(self, name: str | None = None) -> NoReturn:
        """Run as this process, and end it at once: threads may still wait for a bucket."""
        code = 1
        try:
            self(prog_name=name)
        except SystemExit as end:
            code = int(end.code or 0)
        except OSError as error:  # of what is printed: most other files have their own sentence
            if error.errno != errno.ENOSPC:
                raise
            advice = "free some, or redirect what is printed to another disk"
            for stream in (sys.stderr, sys.stdout):  # one may be on another disk
                with contextlib.suppress(OSError):
                    print(f"Error: {error.strerror}: {advice}.", file=stream, flush=True)
                    break
        from common.process import leave  # after --help

        leave(code)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(context, args)
        except click.NoSuchOption as error:
            raise click.NoSuchOption(
                error.option_name, possibilities=self._like(error.option_name), ctx=context
            ) from error

    def _like(self, option: str) -> list[str]:
        """Options that may be meant. click's own suggestions for --version include --json."""
        names = [name for p in self.params if not getattr(p, "hidden", False) for name in p.opts]
        longer = [name for name in names if name.startswith(option)]
        return longer or difflib.get_close_matches(option, names, cutoff=ALIKE)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except IngestError as error:
            raise click.ClickException(escaped(error.message)) from error
        except (KeyboardInterrupt, click.Abort) as error:
            is_at_question = isinstance(error, click.Abort)  # whose line is not ended
            click.echo("\nInterrupted." if is_at_question else "Interrupted.", err=True)
            context.exit(INTERRUPTED)


class GroupedCommand(Command):
    """A command whose --help shows its options under headings; `groups` is heading -> names."""

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        options = [p for p in self.get_params(context) if isinstance(p, click.Option)]
        shown = {option.name: option.get_help_record(context) for option in options}
        grouped = {name for names in self.groups.values() for name in names}
        others = [name for name in shown if name not in grouped]
        for heading, names in (*self.groups.items(), ("Other options", others)):
            with formatter.section(heading):
                formatter.write_dl([record for name in names if (record := shown[name])])


def choice(name: str, values: Sequence[str], help: str) -> Callable[..., Any]:
    """An option with these values; the first is the default."""
    return click.option(name, type=click.Choice(values), default=values[0], help=help)


def flag(name: str, help: str, *parameter: str) -> Callable[..., Any]:
    """An option without a value; `parameter` is another name for it within this program."""
    return click.option(name, *parameter, is_flag=True, help=help)


DEFAULT_BUCKET = "foragerml"  # of indexes and thumbnails
bucket_option = click.option(
    "--bucket",
    envvar="FORAGER_BUCKET",
    default=DEFAULT_BUCKET,
    type=bucket_name,
    metavar="NAME",
    help="The bucket of indexes and thumbnails; also FORAGER_BUCKET in the environment.",
)
SHARED_OPTIONS = (
    click.option(
        "--server_url",
        envvar="SERVER_URL",
        default="",
        show_default=False,
        metavar="URL",
        help="The Forager server, as http://HOST:PORT; also SERVER_URL in the environment.",
    ),
    bucket_option,
    click.option(
        "--viewer_url",
        type=web_address,
        metavar="URL",
        help="The address of Forager's web page.  [default: port 4000 of the server's host]",
    ),
    flag("--dry_run", "Check everything, say what would be done, stop."),
)


def _adding(options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator that gives a click command these options, in their order."""
    return lambda command: functools.reduce(lambda c, add: add(c), reversed(options), command)


shared_options = _adding(SHARED_OPTIONS)  # of ingest.py and ingest_labels.py


def _gone(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        raise click.UsageError(
            f"--{option.name} is gone: the same command takes today's listing by itself, and keeps "
            "what is computed. Leave it out."
        )


RESNET_WEIGHTS = ROOT / "R-50.pkl"
CLIP_WEIGHTS = "openai/clip-vit-base-patch32"
OPTION_GROUPS = {
    "Usual options": (
        *("server_url", "dry_run", "write_renames", "work_dir", "bucket", "viewer_url", "reuse"),
        *("trial", "prices", "as_json"),
    ),
    "Failures and going on": (
        *("skip_bad_images", "max_bad", "allow_empty_val", "accept_changes", "restart"),
    ),
    "Models": ("resnet_weights", "clip_weights", "backend", "precision"),
    "Speed": ("device", "resnet_batch_size", "clip_batch_size", "decode_workers", "decode_in"),
    "Several GPUs or machines": ("engine", "ray_address"),
}
INGEST_OPTIONS = (
    *(
        click.option(
            f"--{model.lower()}_batch_size",
            type=batch_size,
            default="auto",
            metavar="N",
            help=f"Images per {model} forward pass, at most{more}. The numbers never depend on it.",
        )
        for model, more in (("ResNet", "; their sizes may differ"), ("CLIP", ""))
    ),
    click.option(
        "--resnet_weights",
        type=LocalPath(),
        default=RESNET_WEIGHTS,
        show_default=False,
        metavar="FILE",
        help="Detectron2's R-50.pkl.  [default: R-50.pkl beside ingest.py]",
    ),
    click.option(
        "--clip_weights",
        default=CLIP_WEIGHTS,
        type=local_name,
        metavar="ID_OR_DIR",
        help="CLIP ViT-B/32: a hub id, or a local directory in the hub's layout.",
    ),
    choice(
        "--backend",
        ["fused", "original"],
        "Model implementation: built-in, or Detectron2 and CLIP for comparison.",
    ),
    click.option("--device", default="auto", metavar="DEVICE", help="auto, cuda, cuda:1 or cpu."),
    choice(
        "--precision",
        ["auto", "float32", "float16", "bfloat16"],
        "Precision of the models. auto: float32 on a CPU; on a GPU the fastest within "
        "cosine 0.9999 of float32.",
    ),
    click.option(
        "--work_dir",
        type=LocalPath(file_okay=False),
        metavar="DIR",
        help="Directory for embeddings and resume state, 15 kB per image.  [default: a directory "
        "named NAME]",
    ),
    click.option(
        "--decode_workers",
        type=click.IntRange(min=1),
        default=default_decode_workers,
        metavar="N",
        show_default="1.5 x CPU cores",
        help="Threads or processes that decode images.",
    ),
    choice(
        "--decode_in",
        ["auto", "threads", "processes"],
        "auto fetches and decodes in processes where a GPU computes, else in threads.",
    ),
    flag(
        "--allow_empty_val",
        "Accept a dataset without validation images. VAL_PATH may be left out then.",
    ),
    flag(
        "--skip_bad_images",
        "Continue although some images cannot be embedded. Their rows hold zeros.",
    ),
    click.option(
        "--max_bad",
        type=image_limit,
        metavar="N|N%",
        help="With --skip_bad_images: stop if more images than this cannot be embedded.",
    ),
    flag(
        "--accept_changes",
        "Go on although more than half of what is computed would be left out, because the "
        "bucket does not have these images any more.",
    ),
    *(
        click.option(f"--{name}", is_flag=True, hidden=True, expose_value=False, callback=_gone)
        for name in ("relist", "as_listed")
    ),
    flag(
        "--restart",
        "Start over: delete the earlier run's local files and, unless it was registered, its "
        "uploaded objects.",
    ),
    click.option(
        "--write_renames",
        type=LocalPath(dir_okay=False),
        metavar="FILE",
        help="With --dry_run: write a script that renames .JPG and other objects to names that the "
        "server takes, and makes basenames unique by their directories.",
    ),
    click.option(
        "--reuse",
        multiple=True,
        type=local_name,
        metavar="NAME|DIR",
        help="Copy what a dataset or a work directory (./birds) has already computed, and embed "
        "only the rest. May be repeated.",
    ),
    choice(
        "--engine",
        ["local", "ray"],
        "ray: all GPUs of this machine, or a cluster. See docs/scaling.md.",
    ),
    click.option(
        "--ray_address",
        metavar="auto|HOST:PORT",
        help="The Ray cluster to join.  [default: --engine ray starts one on this machine]",
    ),
    flag(
        "--json",
        "Print the report of the run on stdout instead of a table: what report.json in the "
        "work directory holds. See docs/report.md.",
        "as_json",
    ),
    click.option(
        "--trial",
        type=trial_images,
        is_flag=False,
        flag_value="200",
        metavar="[N]",
        help="Embed N images (200 without N) of both splits, upload and register nothing, and "
        "forecast time, requests, disk and cost of all.",
    ),
    click.option(
        "--prices",
        type=LocalPath(),
        metavar="FILE",
        help="With --trial: your prices, as JSON. See docs/report.md.",
    ),
)


ingest_options = _adding(INGEST_OPTIONS)  # of ingest.py alone


def check_combinations(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options of ingest.py that do not go together."""
    for option, needed, is_there in (
        ("max_bad", "--skip_bad_images", options["skip_bad_images"]),
        ("ray_address", "--engine ray", options["engine"] == "ray"),
        ("write_renames", "--dry_run", options["dry_run"]),
        ("prices", "--trial", options["trial"]),
    ):
        if options[option] and not is_there:
            raise click.UsageError(f"--{option} goes with {needed}.")
    if options["trial"]:
        others = [f"--{name}" for name in ("dry_run", "restart", "reuse") if options[name]]
        others += ["--engine ray"] if options["engine"] == "ray" else []
        if others:
            raise click.UsageError(
                f"--trial measures how this machine embeds images: leave out {', '.join(others)}."
            )
