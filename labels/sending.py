"""Sends label requests one after the other; the journal records each before and after."""

import asyncio
import sys
from collections import Counter

import click
from tqdm import tqdm

from common.terminal import count
from forager.answers import AnswerLost, ForagerError
from forager.client import Forager
from labels.journal import Journal
from labels.report import SHOWN_LINES
from labels.requests import Group, LabelRequest

CHOICE = (
    "This server stores labels twice if they are sent twice (the newest counts, so Forager still "
    "shows the right ones). Look at the category in Forager. Then run the same command with "
    "--uncertain assume_stored if the labels are there, or else with --uncertain resend."
)


async def send_all(
    server: Forager,
    dataset: str,
    user: str,
    requests: list[LabelRequest],
    journal: Journal,
    uncertain: str,
) -> Counter[Group]:
    """Labels created by category and mode, including those of an interrupted run."""
    generation = await server.generation()
    journal.check_fits(requests)
    if journal.created:
        click.echo(
            f"{len(journal.created):,} of {count(len(requests), 'request')} were stored by an "
            "interrupted run.",
            err=True,
        )
    settle_uncertain(generation, requests, journal, uncertain)
    todo = [request for request in requests if request.key() not in journal.created]
    labels = sum(len(request.images) for request in todo)
    with tqdm(total=labels, unit=" labels", file=sys.stderr, disable=None) as progress:
        for request in todo:
            await asyncio.to_thread(journal.sent, request)
            try:
                created = await _send(server, dataset, user, request, uncertain)
            except AnswerLost as error:
                raise click.ClickException(
                    f"{error.message}\n{len(journal.created):,} of "
                    f"{count(len(requests), 'request')} stored so far; no answer came to:\n"
                    f"  {request}\n{CHOICE}"
                ) from error
            except ForagerError as error:
                if generation == "B" or uncertain != "resend":
                    journal.refuse(request)  # on B, storing it again would change nothing
                raise click.ClickException(
                    f"{error.message}\n{len(journal.created):,} of "
                    f"{count(len(requests), 'request')} stored so far; the same command continues."
                ) from error
            await asyncio.to_thread(journal.confirm, request, created)
            progress.update(len(request.images))
    total: Counter[Group] = Counter()
    for request in requests:
        total[request.category, request.mode] += journal.created[request.key()]
    return total


async def _send(
    server: Forager, dataset: str, user: str, request: LabelRequest, uncertain: str
) -> int:
    """How many labels the server stored for one request."""
    try:
        return await server.add_labels(
            dataset,
            request.images,
            user,
            request.category,
            request.mode,
            resend=uncertain == "resend",
        )
    except AnswerLost as error:
        if uncertain != "assume_stored":
            raise
        tqdm.write(f"{error.message} Assumed to be stored, as asked.", file=sys.stderr)
        return len(request.images)


def settle_uncertain(
    generation: str, requests: list[LabelRequest], journal: Journal, uncertain: str
) -> None:
    """Decide what to do with requests that an interrupted run sent without getting an answer.

    Raises:
        click.ClickException: the user must decide.
    """
    unanswered = [request for request in requests if request.key() in journal.uncertain]
    if not unanswered:
        return
    which = "\n".join(f"  {request}" for request in unanswered[:SHOWN_LINES])
    lost = f"No answer came to {count(len(unanswered), 'request')} of an interrupted run:\n{which}"
    if uncertain == "assume_stored":
        for request in unanswered:
            journal.confirm(request, len(request.images))
        click.echo(f"{lost}\nAssumed to be stored, as asked.", err=True)
    elif generation == "B":
        click.echo(f"{lost}\nSent again: this server replaces labels sent before.", err=True)
    elif uncertain == "resend":
        click.echo(f"{lost}\nSent again, as asked.", err=True)
    else:
        raise click.ClickException(f"{lost}\n{CHOICE}")
