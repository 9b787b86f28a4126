"""The command that reads a label file and stores its labels in a Forager dataset."""

import asyncio
import hashlib
import io
import json
import re
import signal
import sys
from collections import Counter
from email.utils import parseaddr
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from common.names import dataset_name_error
from common.options import CONTEXT_SETTINGS, shared_options
from common.terminal import printable
from labels.file import (
    MAX_TEXT_LENGTH,
    Group,
    LabelFileError,
    Labels,
    chunk,
    read_labels,
    split_unknown,
)
from labels.file import text_problem as database_problem
from labels.journal import Journal, LabelRequest
from labels.report import (
    SHOWN_FINDINGS,
    count,
    count_asked,
    difference,
    shortened,
    show_plan,
    show_table,
)

if TYPE_CHECKING:
    from forager.client import DatasetInfo, Forager

SHOWN_NAMES = 20
MAX_EMAIL_LENGTH_B = 254  # a longer one is a 500 there (Django's EmailField); A takes 300
INTERRUPTED = 130  # exit code, as a shell gives it after Ctrl-C


class Options(NamedTuple):
    name: str
    label_file: Path
    user: str
    server_url: str
    bucket: str
    work_dir: Path
    viewer_url: str | None
    skip_unknown: bool
    dry_run: bool
    uncertain: str
    restart: bool


@click.command(context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@click.argument("label_file", metavar="LABELS.json")
@click.option("--user", required=True, metavar="EMAIL", help="Who made the labels, for the record.")
@shared_options
@click.option(
    "--skip_unknown",
    is_flag=True,
    help="Leave out labels of images that the dataset does not have.",
)
@click.option(
    "--uncertain",
    type=click.Choice(["stop", "resend", "assume_stored"]),
    default="stop",
    show_default=True,
    help="What to do with a request whose answer was lost, on a server that stores labels twice.",
)
@click.option("--restart", is_flag=True, help="Forget what an interrupted run has sent.")
@click.option(
    "--work_dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the journal and lists of problems go.  [default: beside LABELS.json]",
)
def main(label_file: str, work_dir: Path | None, user: str, **others: str | bool) -> None:
    """Store the labels of LABELS.json in the Forager dataset NAME.

    \b
    Example:
      SERVER_URL=http://host:8000 python ingest_labels.py birds labels.json --user ann@example.org

    The same command again continues a run that was interrupted.
    """
    path = Path(label_file)
    options = Options(
        label_file=path,
        user=parseaddr(user)[1] or user,
        work_dir=work_dir or path.parent,
        **others,  # type: ignore[arg-type]
    )
    if isinstance(sys.stdout, io.TextIOWrapper):  # a category that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        labels, digest = check_arguments(options)
        finished = asyncio.run(ingest(options, labels, digest))
    except KeyboardInterrupt:
        click.echo("Interrupted: the same command continues where this one stopped.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(0 if finished else 1)


def check_arguments(options: Options) -> tuple[Labels, str]:
    """The labels and the digest of the file, or everything that is wrong at once.

    Raises:
        click.ClickException: with all findings.
    """
    from forager.client import ForagerError, check_server_url

    findings = []
    if problem := dataset_name_error(options.name):
        findings.append(problem)
    if not options.server_url:
        findings.append("SERVER_URL is not set: write SERVER_URL=http://HOST:PORT before python.")
    else:
        try:
            check_server_url(options.server_url)
        except ForagerError as error:
            findings.append(error.message)
    if problem := user_problem(options.user):
        findings.append(problem)
    labels, data = Labels({}, {}), b""
    shown = printable(str(options.label_file))
    try:
        data = options.label_file.read_bytes()
        labels = read_labels(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        findings.append(f"Cannot read the label file {shown}: {reason}.")
    except LabelFileError as error:
        list_file = options.work_dir / f"{options.label_file.name}.problems.txt"
        findings.append(
            f"{shown} has {count(len(error.findings), 'problem')}:\n"
            + shortened(error.findings, list_file)
        )
    if len(findings) == 1:
        raise click.ClickException(findings[0])
    if findings:
        listed = "".join(f"\n  - {finding}" for finding in findings)
        raise click.ClickException(f"{len(findings)} things are in the way:{listed}")
    return labels, hashlib.sha256(data).hexdigest()


def user_problem(user: str) -> str:
    """One sentence if this is no e-mail address that the server takes, or ""."""
    shown = printable(user)
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", user) or database_problem(user):
        return f"--user {shown!r} is not an e-mail address: write it as NAME@HOST."
    if len(user) > MAX_TEXT_LENGTH:
        return f"--user {shown} is longer than {MAX_TEXT_LENGTH} characters."
    return ""


async def ingest(options: Options, labels: Labels, digest: str) -> bool:
    """Check against the server and the index, send, report. Whether all that was asked is done."""
    from common.signals import handle_in_loop
    from forager.client import Forager, dataset_page

    handle_in_loop(signal.SIGINT, signal.getsignal(signal.SIGINT))  # that of asyncio.run
    async with Forager(options.server_url) as server:
        info = await find_dataset(server, options.name)
        generation = await server.generation()
        if generation == "B" and len(options.user) > MAX_EMAIL_LENGTH_B:
            raise click.ClickException(
                f"--user {printable(options.user)} is longer than {MAX_EMAIL_LENGTH_B} characters, "
                "which this server does not store."
            )
        known = known_images(options.bucket, info)
        groups = labels.groups
        unknown: list[str] = []
        if known is not None:
            groups, unknown = split_unknown(groups, known)
            if unknown:
                report_unknown(options, [labels.paths[image] for image in unknown])
        requests = make_requests(groups, options.user)
        if options.dry_run:
            show_plan(requests)
            created: Counter[Group] = Counter()
        else:
            belongs_to = {
                "server": server.shown,
                "dataset": options.name,
                "index_id": info.index_id,
                "user": options.user,
                "label_file_sha256": digest,
            }
            created = await send_all(server, generation, options, requests, belongs_to)
            show_table(("category", "mode", "asked", "created"), count_asked(requests), created)
    asked = count_asked(requests)
    page = dataset_page(options.server_url, options.viewer_url, options.name)
    left_out = f"; labels of {count(len(unknown), 'unknown image')} left out" if unknown else ""
    if options.dry_run:
        click.echo(
            f"\n{count(asked.total(), 'label')} in {count(len(requests), 'request')} would be sent "
            f"to {server.shown}{left_out}. This was a dry run: nothing was."
        )
        return True
    if problem := difference(asked, created, known is not None):
        click.echo(f"Error: {problem}", err=True)
    click.echo(
        f"\n{created.total():,} of {count(asked.total(), 'label')} created in "
        f"{count(len(requests), 'request')}{left_out}. Look at them at {page}"
    )
    return not problem


async def find_dataset(server: "Forager", name: str) -> "DatasetInfo":
    """The dataset, or a ClickException that tells the names of what exists."""
    info = await server.dataset(name)
    if info is not None:
        return info
    names = await server.dataset_names()
    if names is None:
        there = "Ingest the images first (ingest.py), or correct the name."
    elif not names:
        there = "It has none at all: ingest the images first (ingest.py)."
    else:
        more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
        there = f"It has {', '.join(map(printable, sorted(names)[:SHOWN_NAMES]))}{more}."
    raise click.ClickException(f"There is no dataset {name} on {server.shown}. {there}")


def known_images(bucket: str, info: "DatasetInfo") -> set[str] | None:
    """The identifiers of the dataset's images; None, and a line why, without a readable index."""
    import gcs

    known: set[str] = set()
    try:
        for file in ("identifiers.json", "val_identifiers.json"):
            rows = json.loads(gcs.read_bytes(bucket, f"indexes/{info.index_id}/{file}"))
            if not isinstance(rows, dict):
                raise ValueError(f"{file} is not a JSON object")
            known |= rows.keys()
    except gcs.StorageError as error:
        reason = error.message
    except (ValueError, RecursionError) as error:
        reason = f"{printable(str(error))}."
    else:
        return known
    click.echo(
        f"The dataset's index in gs://{printable(bucket)} cannot be read: {reason} So the number "
        "of labels that the server stores is compared instead.",
        err=True,
    )
    return None


def report_unknown(options: Options, paths: list[str]) -> None:
    """Say which labelled images the dataset does not have; a ClickException unless skipped."""
    list_file = options.work_dir / f"{options.label_file.name}.{options.name}.unknown.txt"
    message = (
        f"{count(len(paths), 'labelled image')} {'is' if len(paths) == 1 else 'are'} not in the "
        f"dataset {options.name}:\n"
        + shortened([printable(path, 1000) for path in paths], list_file, always=True)
    )
    if not options.skip_unknown:
        raise click.ClickException(
            f"{message}\nCorrect the label file, or leave them out with --skip_unknown."
        )
    click.echo(f"Left out: {message}", err=True)


def make_requests(groups: dict[Group, list[str]], user: str) -> list[LabelRequest]:
    """The labels in requests of a size that the server takes, in a fixed order."""
    from forager.client import label_body

    requests = []
    for (category, mode), images in groups.items():
        # The larger of both, so that the requests do not depend on the server's generation.
        empty = max(len(label_body(generation, [], user, category, mode)) for generation in "AB")
        requests += [LabelRequest(category, mode, part) for part in chunk(images, empty)]
    return requests


async def send_all(
    server: "Forager",
    generation: str,
    options: Options,
    requests: list[LabelRequest],
    belongs_to: dict[str, str],
) -> Counter[Group]:
    """Labels created by category and mode, those of an interrupted run included."""
    path = options.work_dir / f"{options.label_file.name}.{options.name}.journal"
    with Journal(path, belongs_to, options.restart) as journal:
        journal.check_fits(requests)
        if journal.created:
            click.echo(
                f"{len(journal.created):,} of {count(len(requests), 'request')} were stored by an "
                "interrupted run.",
                err=True,
            )
        settle_uncertain(generation, options, journal, requests)
        await send(server, generation, options, requests, journal)
        created: Counter[Group] = Counter()
        for request in requests:
            created[request.category, request.mode] += journal.created[request.key()]
        journal.remove()
    return created


def settle_uncertain(
    generation: str, options: Options, journal: Journal, requests: list[LabelRequest]
) -> None:
    """Decide on what an interrupted run has sent without an answer."""
    uncertain = [request for request in requests if request.key() in journal.uncertain]
    if not uncertain:
        return
    which = "\n".join(f"  {request}" for request in uncertain[:SHOWN_FINDINGS])
    lost = f"No answer came to {count(len(uncertain), 'request')} of an interrupted run:\n{which}"
    if options.uncertain == "assume_stored":
        for request in uncertain:
            journal.confirm(request, len(request.images))
        click.echo(f"{lost}\nAssumed to be stored, as asked.", err=True)
    elif generation == "B":
        click.echo(f"{lost}\nSent again: on this server that replaces the same labels.", err=True)
    elif options.uncertain == "resend":
        click.echo(f"{lost}\nSent again, as asked.", err=True)
    else:
        raise click.ClickException(f"{lost}\n{choice_text()}")


def choice_text() -> str:
    return (
        "This server stores the same labels twice if they are sent twice (the newest counts, so "
        "what Forager shows is right). Look at the category in Forager; then run the same command "
        "with --uncertain resend, or with --uncertain assume_stored if the labels are there."
    )


async def send(
    server: "Forager",
    generation: str,
    options: Options,
    requests: list[LabelRequest],
    journal: Journal,
) -> None:
    """Send what is not confirmed yet, one request after the other, each noted before and after."""
    from tqdm import tqdm

    from forager.client import AnswerLost, ForagerError

    todo = [request for request in requests if request.key() not in journal.created]
    total = sum(len(request.images) for request in todo)
    with tqdm(total=total, unit=" labels", file=sys.stderr, disable=None) as progress:
        for request in todo:
            journal.sent(request)
            try:
                created = await server.add_labels(
                    options.name,
                    request.images,
                    options.user,
                    request.category,
                    request.mode,
                    resend=options.uncertain == "resend",
                )
            except AnswerLost as error:
                if options.uncertain != "assume_stored":
                    raise click.ClickException(
                        f"{error.message}\n{len(journal.created):,} of "
                        f"{count(len(requests), 'request')} stored so far; no answer came to:\n"
                        f"  {request}\n{choice_text()}"
                    ) from error
                tqdm.write(f"{error.message} Assumed to be stored, as asked.", file=sys.stderr)
                created = len(request.images)
            except ForagerError as error:
                if generation == "B" or options.uncertain != "resend":
                    journal.refuse(request)  # or B may store it again: that changes nothing
                raise click.ClickException(
                    f"{error.message}\n{len(journal.created):,} of "
                    f"{count(len(requests), 'request')} stored so far; the same command continues."
                ) from error
            journal.confirm(request, created)
            progress.update(len(request.images))


if __name__ == "__main__":
    main()
