"""Store the labels of a label file in a Forager dataset: check, send, compare."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from email.utils import parseaddr
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from common.errors import Findings, IngestError, ServerError
from common.names import MAX_TEXT_LENGTH, dataset_name_error, text_problem
from common.options import CONTEXT_SETTINGS, Command, shared_options
from common.terminal import count, printable, say

if TYPE_CHECKING:  # imported by the functions that use them, so that --help is fast
    from forager.answers import DatasetInfo
    from forager.client import Forager
    from labels.file.collector import Labels
    from labels.requests import Plan

FORMATS = ("forager", "coco", "csv")
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
    file_format: str
    as_labels: bool
    allow_mode: tuple[str, ...]
    skip_unknown: bool
    skip_boxes: bool
    dry_run: bool
    uncertain: str
    restart: bool
    again: bool

    def file_beside(self, suffix: str) -> Path:
        """A file of this command: in --work_dir, or beside the label file."""
        return (self.work_dir or self.label_file.parent) / f"{self.label_file.name}{suffix}"


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name")
@click.argument("label_file", metavar="LABELS.json", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="forager: {path: [annotation, ...]}; coco: instances; csv: path,category[,mode].",
)
@click.option(
    "--as_labels",
    is_flag=True,
    help="With --format coco: store categories of whole images instead of boxes.",
)
@click.option("--user", required=True, metavar="EMAIL", help="Who made the labels, for the record.")
@shared_options
@click.option(
    "--allow_mode",
    multiple=True,
    metavar="MODE",
    help="Accept a mode that is nearly a built-in one, such as positive. May be repeated.",
)
@click.option("--skip_unknown", is_flag=True, help="Skip labels of images not in the dataset.")
@click.option(
    "--skip_boxes", is_flag=True, help="Skip boxes, which servers of generation A do not store."
)
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
    from common.process import shortages, until_interrupted

    options = LabelOptions(**parameters)
    if options.as_labels and options.file_format != "coco":
        raise click.UsageError("--as_labels goes with --format coco.")
    options = options._replace(user=parseaddr(options.user)[1] or options.user)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a category that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    with shortages():
        finished = asyncio.run(until_interrupted(ingest(options)))
    sys.exit(0 if finished else 1)


async def ingest(options: LabelOptions) -> bool:
    """Check the labels, send them, report. Returns whether all labels were stored.

    Raises:
        IngestError: what stopped it, for the user.
    """
    from forager.addresses import dataset_page
    from forager.client import Forager
    from labels.journal import Journal
    from labels.report import (
        refuse_other_selection,
        report_finished,
        report_result,
        stored_twice,
        warn_of_second_copies,
    )
    from labels.sending import Sender
    from labels.similar import notes_on_names, show_notes

    labels, digest = await asyncio.to_thread(check_arguments, options)
    async with Forager(options.server_url) as server:
        info = await find_dataset(server, options.name)
        appends = await server.generation() == "A"
        check_generation(options, labels, appends)
        boxes = {(box.category, box.mode) for box in labels.boxes}
        show_notes(notes_on_names(labels.groups.keys() | boxes))
        plan = await asyncio.to_thread(make_plan, options, labels, info, not appends)
        belongs_to = {
            "server": server.shown,
            "dataset": options.name,
            "index_id": info.index_id,
            "user": options.user,
            "label_file_sha256": digest,
        }
        path = options.file_beside(f".{options.name}.journal")
        if options.dry_run:
            from labels.dry_run import report_dry_run, report_earlier_run

            replaced_file = options.file_beside(f".{options.name}.replaced.txt")
            await report_dry_run(server, options.name, info, plan, replaced_file)
            if not options.again and not options.restart:
                await asyncio.to_thread(report_earlier_run, path, belongs_to, plan)
            return True
        with await asyncio.to_thread(Journal, path, belongs_to) as journal:
            twice = stored_twice(journal, plan, appends)
            if journal.finished and not options.again:
                if journal.has(plan.requests):
                    return report_finished(options.label_file, journal.entries, twice)
                refuse_other_selection(path, twice)
            start_over = options.restart or options.again
            warn_of_second_copies(journal, twice, appends, start_over)
            await asyncio.to_thread(journal.begin, plan.requests, start_over)
            sender = Sender(server, options.name, options.user, appends, options.uncertain)
            await sender.send_all(plan.requests, journal)
    viewer_url = options.viewer_url or server.viewer_url
    page = dataset_page(options.server_url, viewer_url, options.name)
    return report_result(plan, journal.entries, page)


def make_plan(options: LabelOptions, labels: Labels, info: DatasetInfo, mixed: bool) -> Plan:
    """The requests for the labels of images that the dataset has. This function blocks.

    `mixed` says whether the server takes labels of several categories in one request.

    Raises:
        IngestError: there are labels of other images, or boxes outside their images.
    """
    from labels.images import check_boxes, image_sizes, inversion, known_images, split_unknown
    from labels.report import shortened
    from labels.requests import Plan, make_requests
    from labels.similar import similar_image

    skipped_boxes = len(labels.boxes) if options.skip_boxes else 0
    if options.skip_boxes:
        labels = labels._replace(boxes=[])
    known = known_images(options.bucket, info.index_id)
    unknown: list[str] = []
    if known is not None:
        kept, unknown = split_unknown(labels, known)
        if unknown and (problem := inversion(labels, kept, known)):
            raise IngestError(f"{printable(str(options.label_file))}: {problem}")
        labels = kept
    if unknown:
        paths = [printable(labels.paths[image], 1000) for image in unknown]
        refuse_unknown(options, paths, similar_image(unknown, known) if known else "")
    if labels.boxes:
        sizes = image_sizes(options.bucket, info.index_id)
        if not sizes:
            say(
                "The index does not tell the sizes of the images, so it is not checked that boxes "
                "are inside their images.",
            )
        if problems := check_boxes(labels.boxes, sizes):
            listed = shortened(problems, options.file_beside(".problems.txt"))
            raise IngestError(
                f"{printable(str(options.label_file))} has {count(len(problems), 'problem')}:\n"
                f"{listed}"
            )
    mixed = mixed and known is not None  # a mixed request with an unknown image stores nothing
    requests = make_requests(labels.groups, labels.boxes, options.user, mixed)
    return Plan(requests, len(unknown), skipped_boxes, known)


def check_arguments(options: LabelOptions) -> tuple[Labels, str]:
    """The labels of the file, and its SHA-256 in hexadecimal.

    Raises:
        IngestError: everything that is wrong with the arguments and the file.
    """
    from forager.addresses import check_server_url

    findings = Findings()
    if problem := dataset_name_error(options.name):
        findings.add(problem)
    if not options.server_url:
        findings.add("SERVER_URL is not set: write SERVER_URL=http://HOST:PORT before python.")
    else:
        try:
            check_server_url(options.server_url)
        except ServerError as error:
            findings.add(error.message)
    if problem := user_error(options.user):
        findings.add(problem)
    labels, digest = collect_labels(findings, options)
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


def collect_labels(findings: Findings, options: LabelOptions) -> tuple[Labels, str]:
    """The labels and the digest of the file; adds what is wrong with it to the findings."""
    from labels.file.collector import Labels
    from labels.file.describe import LabelFileError
    from labels.file.read import read_label_file
    from labels.report import shortened

    shown = printable(str(options.label_file))
    try:
        return read_label_file(
            options.label_file, options.file_format, options.as_labels, options.allow_mode
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        findings.add(f"Cannot read the label file {shown}: {reason}.")
    except LabelFileError as error:
        problems = shortened(error.findings, options.file_beside(".problems.txt"))
        findings.add(f"{shown} has {count(len(error.findings), 'problem')}:\n{problems}")
    return Labels({}, [], {}), ""


async def find_dataset(server: Forager, name: str) -> DatasetInfo:
    """The dataset on the server.

    Raises:
        IngestError: there is none of this name, and which there are.
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
    raise IngestError(f"There is no dataset {name} on {server.shown}. {hint}")


def check_generation(options: LabelOptions, labels: Labels, appends: bool) -> None:
    """Raise a IngestError if a server of this generation cannot store what is asked."""
    if len(options.user) > MAX_EMAIL_LENGTH_B and not appends:
        raise IngestError(
            f"--user {printable(options.user)} is longer than {MAX_EMAIL_LENGTH_B} characters, "
            "which this server does not store."
        )
    if labels.boxes and appends and not options.skip_boxes:
        raise IngestError(
            f"This server stores no boxes, and {printable(str(options.label_file))} has "
            f"{count(len(labels.boxes), 'box', 'boxes')}: add --skip_boxes to store only the "
            "labels of whole images."
        )


def refuse_unknown(options: LabelOptions, paths: list[str], hint: str) -> None:
    """Say which images the dataset does not have.

    Raises:
        IngestError: without --skip_unknown.
    """
    from labels.report import shortened

    list_file = options.file_beside(f".{options.name}.unknown.txt")
    message = (
        f"{count(len(paths), 'labelled image')} {'is' if len(paths) == 1 else 'are'} not in the "
        f"dataset {options.name}:\n" + shortened(paths, list_file, always=True)
    ) + (f"\n{hint}" if hint else "")
    if not options.skip_unknown:
        raise IngestError(
            f"{message}\nCorrect the label file, or skip these labels with --skip_unknown."
        )
    say(f"Skipped: {message}")


if __name__ == "__main__":
    from common.process import leave

    try:
        main()
    except SystemExit as ended:
        leave(int(ended.code or 0))
