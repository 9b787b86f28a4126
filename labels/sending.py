"""Sends label requests one after the other; the journal records each before and after."""

import asyncio
import sys
from collections.abc import Sequence

import click
from tqdm import tqdm

from common.terminal import count
from forager.answers import AnswerLost, ForagerError
from forager.client import Forager
from labels.journal import SENT, STORED, Journal
from labels.report import SHOWN_LINES
from labels.requests import LabelRequest

STOP, RESEND, ASSUME_STORED = "stop", "resend", "assume_stored"  # values of --uncertain


async def send_all(
    server: Forager,
    dataset: str,
    user: str,
    requests: Sequence[LabelRequest],
    journal: Journal,
    uncertain: str,
) -> None:
    """Send all requests that the journal does not have as stored.

    Raises:
        click.ClickException: the server failed, or the user must decide on a lost answer.
    """
    appends = await server.generation() == "A"
    stored = _stored(journal)
    if stored:
        click.echo(
            f"{stored:,} of {count(len(requests), 'request')} were stored by an interrupted run.",
            err=True,
        )
    settle_uncertain(appends, requests, journal, uncertain)
    todo = [n for n, entry in enumerate(journal.entries) if entry.state != STORED]
    labels = sum(requests[n].size() for n in todo)
    with tqdm(total=labels, unit=" labels", file=sys.stderr, disable=None) as progress:
        for number in todo:
            request = requests[number]
            await asyncio.to_thread(journal.sent, number)
            try:
                created = await _send(server, dataset, user, request, uncertain)
            except AnswerLost as error:
                raise click.ClickException(
                    f"{error.message}\n{_stored(journal):,} of {count(len(requests), 'request')} "
                    f"stored so far; no answer came to:\n  {request}\n{_choice(request.size())}"
                ) from error
            except ForagerError as error:
                if not appends or uncertain != RESEND:
                    # Nothing was stored, or it does not matter: sent again, it is replaced.
                    await asyncio.to_thread(journal.refused, number)
                raise click.ClickException(
                    f"{error.message}\n{_stored(journal):,} of {count(len(requests), 'request')} "
                    "stored so far; the same command continues."
                ) from error
            await asyncio.to_thread(journal.stored, number, created)
            progress.update(request.size())
    await asyncio.to_thread(journal.finish)


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
            resend=uncertain == RESEND,
        )
    except AnswerLost as error:
        if uncertain != ASSUME_STORED:
            raise
        tqdm.write(f"{error.message} Assumed to be stored, as asked.", file=sys.stderr)
        return request.size()


def settle_uncertain(
    appends: bool, requests: Sequence[LabelRequest], journal: Journal, uncertain: str
) -> None:
    """Decide what to do with the requests of an earlier run that may have been carried out.

    Raises:
        click.ClickException: the server appends labels, and the user must decide.
    """
    numbers = [n for n, entry in enumerate(journal.entries) if entry.state == SENT]
    if not numbers:
        return
    labels = sum(requests[n].size() for n in numbers)
    shown = [f"  {requests[n]}" for n in numbers[:SHOWN_LINES]]
    if len(numbers) > SHOWN_LINES:
        shown.append(f"  and {len(numbers) - SHOWN_LINES:,} more")
    why = f"{journal.path.name} is damaged. " if journal.damaged else ""
    said = (
        f"{why}An interrupted run may have stored {count(len(numbers), 'request')} with "
        f"{count(labels, 'label')}:\n" + "\n".join(shown)
    )
    if uncertain == ASSUME_STORED:
        for number in numbers:
            journal.stored(number, requests[number].size())
        click.echo(f"{said}\nAssumed to be stored, as asked.", err=True)
    elif not appends:
        click.echo(f"{said}\nSent again: this server replaces labels that it has.", err=True)
    elif uncertain == RESEND:
        click.echo(f"{said}\nSent again, as asked.", err=True)
    else:
        raise click.ClickException(f"{said}\n{_choice(labels)}")


def _choice(labels: int) -> str:
    """What the user can do about labels that may be stored on a server that appends."""
    return (
        "This server stores labels twice if they are sent twice (the newest counts, so Forager "
        "still shows the right ones). Look at the category in Forager. Then run the same command "
        "with --uncertain assume_stored if the labels are there, or else with --uncertain resend, "
        f"which may store {count(labels, 'label')} a second time."
    )


def _stored(journal: Journal) -> int:
    return sum(entry.state == STORED for entry in journal.entries)
