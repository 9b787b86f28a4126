"""Store the labels of a label file in a Forager dataset: check, send, compare."""

from __future__ import annotations

from common.guard import guard

if __name__ == "__main__":
    guard()

import asyncio
import contextlib
import hashlib
import os
import re
import sys
from dataclasses import dataclass, replace
from email.utils import parseaddr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.errors import Findings, IngestError
from common.names import dataset_name_error, text_problem
from common.options import CONTEXT_SETTINGS, Command, LocalPath, choice, flag, shared_options
from common.terminal import count, first_lines, first_of, printable, say

if TYPE_CHECKING:  # imported by the functions that use them, so that --help is fast
    from forager.client import DatasetInfo, Forager
    from forager.generation import Generation
    from labels.file.checks import Labels
    from labels.plan import Plan
    from labels.report import Result

FORMATS = ("forager", "coco", "csv")
SHOWN_NAMES = 20  # of other datasets


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    name: str
    label_file: Path
    format: str
    as_labels: bool
    user: str
    server_url: str
    bucket: str
    viewer_url: str | None
    dry_run: bool
    allow_mode: tuple[str, ...]
    skip_unknown: bool
    skip_boxes: bool
    uncertain: str
    restart: bool
    again: bool
    as_json: bool
    work_dir: Path | None

    @property
    def shown_file(self) -> str:
        """The label file as it may be printed."""
        return printable(str(self.label_file))

    def file_beside(self, suffix: str) -> Path:
        """A file of this command: in --work_dir, or beside the label file."""
        return (self.work_dir or self.label_file.parent) / f"{self.label_file.name}{suffix}"


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("name", help="The dataset that has the images.")
@click.argument(
    "label_file",
    metavar="LABELS.json",
    type=LocalPath(),
    help="The labels, in the format that --format names.",
)
@choice(
    "--format",
    FORMATS,
    "forager: {path: [annotation, ...]}; coco: instances; csv: path,category[,mode].",
)
@flag("--as_labels", "With --format coco: store categories of whole images instead of boxes.")
@click.option("--user", metavar="EMAIL", help="Who made the labels, for the record. Required.")
@shared_options
@click.option(
    "--allow_mode",
    multiple=True,
    metavar="MODE",
    help="Accept a mode that is nearly a built-in one, such as positive. May be repeated.",
)
@flag("--skip_unknown", "Skip labels of images not in the dataset.")
@flag("--skip_boxes", "Skip boxes, which servers of generation A do not store.")
@choice(
    "--uncertain",
    ["stop", "resend", "assume_stored"],
    "What to do if the answer to a request was lost and the server would store it twice.",
)
@flag(
    "--restart",
    "Start over after an interrupted run. A server of generation A then stores what that run "
    "sent a second time.",
)
@flag(
    "--again",
    "Send labels again that an earlier run finished sending. A server of generation A then "
    "stores them a second time.",
)
@flag(
    "--json",
    "Print the numbers by category and mode as JSON instead of a table. See docs/report.md.",
    "as_json",
)
@click.option(
    "--work_dir",
    type=LocalPath(file_okay=False),
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
    from labels.report import show, stopped

    if parameters["as_labels"] and parameters["format"] != "coco":
        raise click.UsageError("--as_labels goes with --format coco.")
    if not parameters["user"]:
        raise click.UsageError(
            "--user is missing: say who made the labels, such as --user you@example.org."
        )
    parameters["user"] = parseaddr(parameters["user"])[1] or parameters["user"]
    options = Options(**parameters)
    try:
        with shortages():
            result = asyncio.run(until_interrupted(ingest(options)))
    except IngestError as error:
        if options.as_json:
            with contextlib.suppress(OSError):  # the message on stderr matters more
                print(stopped(error).json(), flush=True)
        raise
    show(result, options.file_beside(f".{options.name}.table.txt"), as_json=options.as_json)
    sys.exit(0 if result.complete else 1)


async def ingest(options: Options) -> Result:
    """Check the labels and send them; returns what is to be reported.

    Raises:
        IngestError: what stopped it, for the user.
    """
    from common.addresses import dataset_page
    from forager.client import Forager
    from labels import report
    from labels.journal import Journal
    from labels.sending import Sender, Uncertain

    labels, digest = await asyncio.to_thread(check_arguments, options)
    async with Forager(options.server_url) as server:
        info = await find_dataset(server, options.name)
        generation = await server.generation()
        check_generation(generation, labels, options)
        plan = await asyncio.to_thread(make_plan, labels, info.index_id, generation, options)
        belongs_to = {
            "server": server.shown,
            "dataset": options.name,
            "index_id": info.index_id,
            "user": options.user,
            "label_file_sha256": digest,
        }
        path = await asyncio.to_thread(journal_path, options, digest)
        start_over = options.restart or options.again
        label_file = options.label_file.absolute()
        with await asyncio.to_thread(Journal, path, belongs_to, start_over, label_file) as journal:
            if options.dry_run:
                return await report.dry_run_result(
                    server, options.name, plan, journal, again=start_over
                )
            twice = report.stored_twice(journal, plan, generation)
            if journal.finished and not journal.differences() and not options.again:
                if journal.has(plan):
                    return report.earlier_result(options.shown_file, plan, journal, twice)
                report.refuse_other_selection(path, twice)
            report.warn_of_second_copies(journal, twice, generation, start_over)
            await asyncio.to_thread(journal.begin, plan)
            sender = Sender(
                server=server,
                generation=generation,
                dataset=options.name,
                user=options.user,
                uncertain=Uncertain(options.uncertain),
                requests=plan.requests,
                journal=journal,
            )
            await sender.send_all()
    page = dataset_page(options.server_url, options.viewer_url or server.viewer_url, options.name)
    return report.sent_result(plan, journal, page)


def journal_path(options: Options, digest: str) -> Path:
    """The journal of this label file, whose SHA-256 is `digest`.

    In a --work_dir, files of one name from several directories have journals of their own.
    """
    from labels.journal import is_of_another_file

    path = options.file_beside(f".{options.name}.journal")
    directory = str(options.label_file.absolute().parent)
    mark = hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]
    other = options.file_beside(f".{mark}.{options.name}.journal")
    is_other = is_of_another_file(path, options.label_file, digest)
    return other if is_other or os.path.exists(other) else path


def check_arguments(options: Options) -> tuple[Labels, str]:
    """The labels of the file, and its SHA-256 in hexadecimal.

    Raises:
        IngestError: everything that is wrong with the arguments and the file.
    """
    from common.addresses import check_server_url
    from labels.file.checks import LabelFileError
    from labels.file.read import read_label_file

    findings = Findings()
    if problem := dataset_name_error(options.name):
        findings.add(problem)
    findings.collect(check_server_url, options.server_url)
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", options.user) or text_problem(options.user):
        findings.add(
            f"--user {printable(options.user)!r} is not an e-mail address: write it as NAME@HOST."
        )
    if options.work_dir:
        try:
            options.work_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            shown = printable(str(options.work_dir))
            findings.add(f"--work_dir {shown} cannot be made ({error.strerror}): name another.")
    try:
        labels, digest = read_label_file(
            options.label_file, options.format, options.as_labels, options.allow_mode
        )
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        is_wrong_path = isinstance(error, FileNotFoundError | IsADirectoryError)
        step = " Correct the path." if is_wrong_path else ""
        findings.add(f"Cannot read the label file {options.shown_file}: {reason}.{step}")
    except LabelFileError as error:
        findings.add(problems_of_file(options, error.findings))
    findings.raise_if_any()
    return labels, digest


def problems_of_file(options: Options, problems: list[str]) -> str:
    """All problems of the label file, in words; a long list goes to a file."""
    listed = first_lines(problems, options.file_beside(".problems.txt"))
    return f"{options.shown_file} has {count(len(problems), 'problem')}:\n{listed}"


async def find_dataset(server: Forager, name: str) -> DatasetInfo:
    """The dataset on the server.

    Raises:
        IngestError: there is none of this name, and which there are.
    """
    info = await server.dataset(name)
    if info is not None:
        return info
    hint = "Ingest the images first (ingest.py), or correct the name."
    if names := await server.dataset_names():
        hint = f"It has {first_of(sorted(names), SHOWN_NAMES)}."
    raise IngestError(f"There is no dataset {name} on {server.shown}. {hint}")


def check_generation(generation: Generation, labels: Labels, options: Options) -> None:
    """Raise an IngestError if a server of this generation cannot store what is asked."""
    if len(options.user) > generation.max_user_length:
        raise IngestError(
            f"--user {printable(options.user)} is longer than {generation.max_user_length} "
            "characters, which this server does not store: name a shorter address."
        )
    if labels.boxes and not generation.stores_boxes and not options.skip_boxes:
        raise IngestError(
            f"This server stores no boxes, and {options.shown_file} has "
            f"{count(len(labels.boxes), 'box', 'boxes')}: add --skip_boxes to store only the "
            "labels of whole images."
        )


def make_plan(labels: Labels, index_id: str, generation: Generation, options: Options) -> Plan:
    """The requests for the labels of images that the dataset has. This function blocks.

    Raises:
        IngestError: there are labels of other images, or boxes outside their images.
    """
    from labels import plan

    plan.show_notes(plan.notes_on_names(labels.categories()))
    skipped_boxes = len(labels.boxes) if options.skip_boxes else 0
    if options.skip_boxes:
        labels = replace(labels, boxes=[])
    known = plan.known_images(options.bucket, index_id)
    unknown = 0
    if known is not None:
        labels, unknown = without_unknown(labels, known, options)
    elif problem := plan.inversion(labels, labels, None):
        raise IngestError(f"{options.shown_file}: {problem}")
    if labels.boxes:
        sizes = plan.image_sizes(options.bucket, index_id)
        if not sizes:
            say(
                "The index does not tell the sizes of the images, so it is not checked that boxes "
                "are inside their images.",
            )
        if problems := plan.check_boxes(labels.boxes, sizes):
            raise IngestError(problems_of_file(options, problems))
    refuse_nothing(labels, unknown, skipped_boxes, options)
    # A shared request with an unknown image stores nothing.
    shared = generation.shares_requests and known is not None
    return plan.Plan(
        requests=plan.make_requests(labels, options.user, shared),
        unknown=unknown,
        skipped_boxes=skipped_boxes,
        index_known=known is not None,
    )


def refuse_nothing(labels: Labels, unknown: int, skipped_boxes: int, options: Options) -> None:
    """Raise an IngestError if nothing is to be sent: exit code 0 would say that all is stored."""
    if any(labels.groups.values()) or labels.boxes:
        return
    if unknown:
        why = f"none of its {count(unknown, 'labelled image')} is in the dataset {options.name}"
    elif skipped_boxes:
        why = f"it has {count(skipped_boxes, 'box', 'boxes')} only, and --skip_boxes skips them"
    else:
        why = "it has no labels"
    raise IngestError(f"Nothing of {options.shown_file} was sent: {why}.")


def without_unknown(labels: Labels, known: set[str], options: Options) -> tuple[Labels, int]:
    """The labels of known images, and the number of other images, which are listed.

    Raises:
        IngestError: there are other images, without --skip_unknown.
    """
    from labels import plan

    kept, unknown = plan.split_unknown(labels, known)
    if not unknown:
        return labels, 0
    if problem := plan.inversion(labels, kept, known):
        raise IngestError(f"{options.shown_file}: {problem}")
    paths = [printable(labels.paths[image], 1000) for image in unknown]
    listed = first_lines(paths, options.file_beside(f".{options.name}.unknown.txt"))
    are = count(len(paths), "labelled image is", "labelled images are")
    message = f"{are} not in the dataset {options.name}:\n{listed}"
    if hint := plan.similar_image(unknown, known):
        message += f"\n{hint}"
    if not options.skip_unknown:
        raise IngestError(
            f"{message}\nCorrect the label file, or skip these labels with --skip_unknown."
        )
    say(f"Skipped: {message}")
    return kept, len(unknown)


if __name__ == "__main__":
    main.run()
