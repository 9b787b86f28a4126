"""Sends label requests one after the other; the journal records each before and after."""

import asyncio
import sys
from collections.abc import Sequence

from tqdm import tqdm

from common.errors import AnswerLost, IngestError, ServerError
from common.terminal import count, say
from forager.client import Forager
from labels.journal import SENT, STORED, Journal
from labels.report import SHOWN_LINES
from labels.requests import BoxRequest, MixedRequest, Request

STOP, RESEND, ASSUME_STORED = "stop", "resend", "assume_stored"  # values of --uncertain


class Sender:
    """Sends the requests of one run to one dataset.

    Args:
        appends: whether the server stores a label twice if it is sent twice (generation A). Boxes
            are stored twice on every server.
        uncertain: what to do with a request that may have been carried out.
    """

    def __init__(
        self, server: Forager, dataset: str, user: str, appends: bool, uncertain: str
    ) -> None:
        self._server = server
        self._dataset = dataset
        self._user = user
        self._appends = appends
        self._uncertain = uncertain

    async def send_all(self, requests: Sequence[Request], journal: Journal) -> None:
        """Send all requests that the journal does not have as stored.

        Raises:
            IngestError: the server failed, or the user must decide on a lost answer.
        """
        stored = _stored(journal)
        if stored:
            say(
                f"{stored:,} of {count(len(requests), 'request')} were stored by an interrupted "
                "run.",
            )
        await asyncio.to_thread(self._settle_uncertain, requests, journal)
        todo = [n for n, entry in enumerate(journal.entries) if entry.state != STORED]
        labels = sum(requests[n].size() for n in todo)
        with tqdm(total=labels, unit=" labels", file=sys.stderr, disable=None) as progress:
            for number in todo:
                await asyncio.to_thread(journal.sent, number)
                try:
                    created = await self._send(requests[number])
                except ServerError as error:
                    await self._stop(error, number, requests, journal)
                await asyncio.to_thread(journal.stored, number, created)
                progress.update(requests[number].size())
        await asyncio.to_thread(journal.finish)

    async def _send(self, request: Request) -> int:
        """How many labels the server stored for one request."""
        resend = self._uncertain == RESEND
        try:
            if isinstance(request, BoxRequest):
                return await self._server.add_boxes(
                    self._dataset, request.boxes, self._user, resend
                )
            if isinstance(request, MixedRequest):
                return await self._server.add_mixed_labels(
                    self._dataset, request.labels, self._user
                )
            category, mode, images = request
            return await self._server.add_labels(
                self._dataset, images, self._user, category, mode, resend
            )
        except AnswerLost as error:
            if self._uncertain != ASSUME_STORED:
                raise
            tqdm.write(f"{error.message} Assumed to be stored, as asked.", file=sys.stderr)
            return request.size()

    async def _stop(
        self, error: ServerError, number: int, requests: Sequence[Request], journal: Journal
    ) -> None:
        """Raise a IngestError that says what is stored and what to do about a failure."""
        request = requests[number]
        so_far = f"{_stored(journal):,} of {count(len(requests), 'request')} stored so far"
        if isinstance(error, AnswerLost):
            raise IngestError(
                f"{error.message}\n{so_far}; no answer came to:\n  {request}\n"
                f"{self._choice(request.size())}"
            ) from error
        if self._uncertain != RESEND or not self._stores_twice(request):
            # Nothing was stored, or it does not matter because it is replaced.
            await asyncio.to_thread(journal.refused, number)
        hint = ""
        if isinstance(request, BoxRequest | MixedRequest):
            hint = (
                f" The server refuses all {request.kind} of a request if the dataset lacks one "
                "image."
            )
        raise IngestError(
            f"{error.message}{hint}\n{so_far}; the same command continues."
        ) from error

    def _settle_uncertain(self, requests: Sequence[Request], journal: Journal) -> None:
        """Decide what to do with the requests of an earlier run that may have been carried out.

        Raises:
            IngestError: they would be stored twice, so the user must decide.
        """
        numbers = [n for n, entry in enumerate(journal.entries) if entry.state == SENT]
        if not numbers:
            return
        labels = sum(requests[n].size() for n in numbers)
        shown = [f"  {requests[n]}" for n in numbers[:SHOWN_LINES]]
        if len(numbers) > SHOWN_LINES:
            shown.append(f"  and {len(numbers) - SHOWN_LINES:,} more")
        said = (
            (f"{journal.path.name} is damaged. " if journal.damaged else "")
            + f"An interrupted run may have stored {count(len(numbers), 'request')} with "
            f"{count(labels, 'label')}:\n" + "\n".join(shown)
        )
        twice = sum(requests[n].size() for n in numbers if self._stores_twice(requests[n]))
        if self._uncertain == ASSUME_STORED:
            for number in numbers:
                journal.stored(number, requests[number].size())
            say(f"{said}\nAssumed to be stored, as asked.")
        elif not twice:
            say(f"{said}\nSent again: this server replaces labels that it has.")
        elif self._uncertain == RESEND:
            say(f"{said}\nSent again, as asked.")
        else:
            raise IngestError(f"{said}\n{self._choice(twice)}")

    def _stores_twice(self, request: Request) -> bool:
        return self._appends or isinstance(request, BoxRequest)

    def _choice(self, labels: int) -> str:
        """What the user can do about labels that may be stored, on a server that appends them."""
        what = (
            "This server stores labels twice if they are sent twice (the newest counts, so "
            "Forager still shows the right ones)."
            if self._appends
            else "This server stores boxes twice if they are sent twice."
        )
        number = count(labels, "label") if self._appends else count(labels, "box", "boxes")
        return (
            f"{what} Look at the category in Forager. Then run the same command with --uncertain "
            "assume_stored if they are there, or else with --uncertain resend, which may store "
            f"{number} a second time."
        )


def _stored(journal: Journal) -> int:
    return sum(entry.state == STORED for entry in journal.entries)
