"""Store the labels of a label file in a Forager dataset: check, send, compare."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import sys
from email.utils import parseaddr
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from common.findings import Findings
from common.names import MAX_TEXT_LENGTH, dataset_name_error, text_problem
from common.options import CONTEXT_SETTINGS, shared_options
from common.terminal import count, printable

if TYPE_CHECKING:  # imported by the functions that use them, so that --help is fast
    from forager.answers import DatasetInfo
    from forager.client import Forager
    from labels.file import Labels
    from labels.journal import Journal
    from labels.requests import LabelRequest

SHOWN_NAMES = 20
MAX_EMAIL_LENGTH_B = 254  # characters; a longer one is a 500 there (A accepts 300)


class LabelOptions(NamedTuple):
    """The command line of ingest_labels.py."""

    name: str
    label_file: Path
    user: str
    server_url: str
    bucket: str
    viewer_url: str | None
    work_dir: Path | None
    skip_unknown: bool
    dry_run: bool
    uncertain: str
    restart: bool
    again: bool

    def file_beside(self, suffix: str) -> Path:
        """A file of this command: in --work_dir, or beside the label file."""
        return (self.work_dir or self.label_file.parent) / f"{self.label_file.name}{suffix}"


class Plan(NamedTuple):
    """What is to be sent."""

    requests: list[LabelRequest]
    unknown: int  # images that are skipped, because the dataset does not have them
    index_known: bool  # whether the dataset's images are known

    def skipped(self) -> str:
        """The skipped images in words, or ""."""
        return f"; labels of {count(self.unknown, 'unknown image')} skipped" if self.unknown else ""


@click.command(context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@click.argument("label_file", metavar="LABELS.json", type=click.Path(path_type=Path))
@click.option("--user", required=True, metavar="EMAIL", help="Who made the labels, for the record.")
@shared_options
@click.option("--skip_unknown", is_flag=True, help="Skip labels of images not in the dataset.")
@click.option(
    "--uncertain",
    type=click.Choice(["stop", "resend", "assume_stored"]),
    default="stop",
    show_default=True,
    help="What to do if the answer to a request was lost and the server would store it twice.",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Start over after an interrupted run. A server of generation A then stores what that run "
    "sent a second time.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Send labels again that an earlier run finished sending. A server of generation A then "
    "stores them a second time.",
)
@click.option(
    "--work_dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Directory for the journal and lists of problems.  [default: beside LABELS.json]",
)
def main(**parameters: Any) -> None:
    """Store the labels of LABELS.json in the Forager dataset NAME.

    \b
    Example:
      SERVER_URL=http://host:8000 python ingest_labels.py birds labels.json --user ann@example.org

    The same command continues a run that was interrupted. For a long run, use tmux or nohup: it
    ends when its terminal closes.
    """
    from common.signals import until_interrupted

    options = LabelOptions(**parameters)
    options = options._replace(user=parseaddr(options.user)[1] or options.user)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a category that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    finished = asyncio.run(until_interrupted(ingest(options)))
    sys.exit(0 if finished else 1)


async def ingest(options: LabelOptions) -> bool:
    """Check the labels, send them, report. Returns whether all labels were stored.

    Raises:
        click.ClickException: what stopped it, for the user.
    """
    from forager.client import Forager
    from labels.journal import Journal
    from labels.sending import send_all

    labels, digest = await asyncio.to_thread(check_arguments, options)
    async with Forager(options.server_url) as server:
        info = await find_dataset(server, options.name)
        await check_user_length(server, options.user)
        if options.dry_run:
            plan = await asyncio.to_thread(make_plan, options, labels, info.index_id)
            return report_plan(plan, server.shown)
        belongs_to = {
            "server": server.shown,
            "dataset": options.name,
            "index_id": info.index_id,
            "user": options.user,
            "label_file_sha256": digest,
        }
        path = options.file_beside(f".{options.name}.journal")
        with await asyncio.to_thread(Journal, path, belongs_to) as journal:
            if journal.finished and not options.again:
                return report_finished(options, journal, await server.generation())
            plan = await asyncio.to_thread(make_plan, options, labels, info.index_id)
            await begin(options, journal, plan, server)
            await send_all(
                server, options.name, options.user, plan.requests, journal, options.uncertain
            )
            return report(options, journal, plan)


def make_plan(options: LabelOptions, labels: Labels, index_id: str) -> Plan:
    """The requests for the labels of images that the dataset has. This function blocks.

    Raises:
        click.ClickException: there are labels of other images, and no --skip_unknown.
    """
    from labels.images import known_images
    from labels.requests import make_requests

    known = known_images(options.bucket, index_id)
    groups, unknown = leave_out_unknown(options, labels, known)
    return Plan(make_requests(groups, options.user), unknown, known is not None)


async def begin(options: LabelOptions, journal: Journal, plan: Plan, server: Forager) -> None:
    """Prepare the journal; say what starting over means for labels of an earlier run."""
    start_over = options.restart or options.again
    earlier = journal.possibly_stored()
    everything = journal.damaged and not journal.entries
    if start_over and (earlier or everything) and await server.generation() == "A":
        click.echo(
            f"Starting over: {'all labels' if everything else count(earlier, 'label')} that an "
            "earlier run stored, or may have stored, are sent again. This server then has them "
            "twice; the newest counts.",
            err=True,
        )
    await asyncio.to_thread(journal.begin, plan.requests, start_over)


def check_arguments(options: LabelOptions) -> tuple[Labels, str]:
    """The labels of the file, and its SHA-256 in hexadecimal.

    Raises:
        click.ClickException: everything that is wrong with the arguments and the file.
    """
    from forager.addresses import check_server_url
    from forager.answers import ForagerError

    findings = Findings()
    if problem := dataset_name_error(options.name):
        findings.add(problem)
    if not options.server_url:
        findings.add("SERVER_URL is not set: write SERVER_URL=http://HOST:PORT before python.")
    else:
        try:
            check_server_url(options.server_url)
        except ForagerError as error:
            findings.add(error.message)
    if problem := user_error(options.user):
        findings.add(problem)
    labels, digest = read_label_file(findings, options)
    findings.raise_if_any()
    return labels, digest


def user_error(user: str) -> str:
    """One sentence if this is not an e-mail address that the server accepts, or ""."""
    shown = printable(user)
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", user) or text_problem(user):
        return f"--user {shown!r} is not an e-mail address: write it as NAME@HOST."
    if len(user) > MAX_TEXT_LENGTH:
        return f"--user {shown} is longer than {MAX_TEXT_LENGTH} characters."
    return ""


def read_label_file(findings: Findings, options: LabelOptions) -> tuple[Labels, str]:
    """The labels and the digest of the file; adds what is wrong with it to the findings."""
    from labels.file import LabelFileError, Labels, read_labels
    from labels.report import shortened

    shown = printable(str(options.label_file))
    try:
        data = options.label_file.read_bytes()
        return read_labels(data), hashlib.sha256(data).hexdigest()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        findings.add(f"Cannot read the label file {shown}: {reason}.")
    except LabelFileError as error:
        problems = shortened(error.findings, options.file_beside(".problems.txt"))
        findings.add(f"{shown} has {count(len(error.findings), 'problem')}:\n{problems}")
    return Labels({}, {}), ""


async def find_dataset(server: Forager, name: str) -> DatasetInfo:
    """The dataset on the server.

    Raises:
        click.ClickException: there is none of this name, and which there are.
    """
    info = await server.dataset(name)
    if info is not None:
        return info
    names = await server.dataset_names()
    if names is None:
        hint = "Ingest the images first (ingest.py), or correct the name."
    elif not names:
        hint = "It has no datasets: ingest the images first (ingest.py)."
    else:
        more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
        hint = f"It has {', '.join(map(printable, sorted(names)[:SHOWN_NAMES]))}{more}."
    raise click.ClickException(f"There is no dataset {name} on {server.shown}. {hint}")


async def check_user_length(server: Forager, user: str) -> None:
    """Raise a ClickException if this generation of server does not store such a long address."""
    if len(user) > MAX_EMAIL_LENGTH_B and await server.generation() == "B":
        raise click.ClickException(
            f"--user {printable(user)} is longer than {MAX_EMAIL_LENGTH_B} characters, "
            "which this server does not store."
        )


def leave_out_unknown(
    options: LabelOptions, labels: Labels, known: set[str] | None
) -> tuple[dict[tuple[str, str], list[str]], int]:
    """The labels of images that the dataset has, and the number of other images.

    Raises:
        click.ClickException: there are other images, and no --skip_unknown.
    """
    from labels.images import split_unknown
    from labels.report import shortened

    if known is None:
        return labels.groups, 0
    groups, unknown = split_unknown(labels.groups, known)
    if not unknown:
        return groups, 0
    paths = [printable(labels.paths[image], 1000) for image in unknown]
    list_file = options.file_beside(f".{options.name}.unknown.txt")
    message = (
        f"{count(len(paths), 'labelled image')} {'is' if len(paths) == 1 else 'are'} not in the "
        f"dataset {options.name}:\n" + shortened(paths, list_file, always=True)
    )
    if not options.skip_unknown:
        raise click.ClickException(
            f"{message}\nCorrect the label file, or skip these labels with --skip_unknown."
        )
    click.echo(f"Skipped: {message}", err=True)
    return groups, len(unknown)


def report_plan(plan: Plan, server: str) -> bool:
    """Print what would be sent."""
    from labels.report import plan_table

    labels = sum(request.size() for request in plan.requests)
    click.echo(plan_table(plan.requests))
    click.echo(
        f"\n{count(labels, 'label')} in {count(len(plan.requests), 'request')} would be sent to "
        f"{server}{plan.skipped()}. This was a dry run: nothing was sent."
    )
    return True


def report_finished(options: LabelOptions, journal: Journal, generation: str) -> bool:
    """Say that an earlier run sent these labels. Returns whether the server stored all."""
    asked = sum(entry.labels for entry in journal.entries)
    created = sum(entry.created for entry in journal.entries)
    twice = "; this server then stores them a second time" if generation == "A" else ""
    click.echo(
        f"An earlier run finished sending {printable(str(options.label_file))}: {created:,} of "
        f"{count(asked, 'label')} created. Nothing was sent now. To send them again, add "
        f"--again{twice}.",
        err=True,
    )
    return created == asked


def report(options: LabelOptions, journal: Journal, plan: Plan) -> bool:
    """Print what was stored. Returns whether that is all labels that were sent.

    Raises:
        click.ClickException: everything is recorded, but standard output cannot be written.
    """
    from forager.addresses import dataset_page
    from labels.report import count_asked, count_created, count_mismatch, group_table

    asked, created = count_asked(plan.requests), count_created(plan.requests, journal.entries)
    problem = count_mismatch(asked, created, plan.index_known)
    if problem:
        click.echo(f"Error: {problem}", err=True)
    page = dataset_page(options.server_url, options.viewer_url, options.name)
    try:
        click.echo(group_table(("category", "mode", "asked", "created"), asked, created))
        click.echo(
            f"\n{created.total():,} of {count(asked.total(), 'label')} created in "
            f"{count(len(plan.requests), 'request')}{plan.skipped()}. Look at them at {page}"
        )
    except OSError as error:
        raise click.ClickException(
            f"{created.total():,} of {count(asked.total(), 'label')} were created, which the "
            f"journal records, but the table cannot be printed ({error.strerror})."
        ) from error
    return not problem


if __name__ == "__main__":
    from common.signals import leave

    try:
        main()
    except SystemExit as ended:
        leave(int(ended.code or 0))
