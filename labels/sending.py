"""Sends label requests one after the other; the journal records each before and after."""

import asyncio
import enum
from dataclasses import dataclass
from typing import NoReturn

from tqdm import tqdm

from common.errors import AnswerLost, IngestError, ServerError
from common.terminal import count, first_lines, say
from forager.client import Forager
from forager.generation import Generation, Kind, LabelRequest, amount
from labels.journal import Journal, State


class Uncertain(enum.Enum):
    """What to do with a request that may have been carried out, and would be stored twice."""

    STOP = "stop"
    RESEND = "resend"
    ASSUME_STORED = "assume_stored"


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Sends the requests of one run to one dataset."""

    server: Forager
    generation: Generation
    dataset: str
    user: str
    uncertain: Uncertain
    requests: list[LabelRequest]
    journal: Journal

    async def send_all(self) -> None:
        """Send all requests that the journal does not have as stored.

        Raises:
            IngestError: the server failed, or the user must decide on a lost answer.
        """
        if self.journal.numbers(State.STORED):
            say(f"An interrupted run has stored {self._stored()}.")
        await asyncio.to_thread(self._settle_uncertain)
        todo = self.journal.numbers(State.WAITING, State.SENT)
        labels = self.journal.sizes(State.WAITING, State.SENT).total()
        with tqdm(total=labels, unit=" labels", disable=None) as progress:
            for number in todo:
                await asyncio.to_thread(self.journal.record, number, State.SENT)
                try:
                    created = await self._send(self.requests[number])
                except ServerError as error:
                    await self._stop(error, number)
                await asyncio.to_thread(self.journal.record, number, State.STORED, created)
                progress.update(self.requests[number].size)

    async def _send(self, request: LabelRequest) -> int:
        """How many labels the server stored for one request."""
        resend = self.uncertain is Uncertain.RESEND
        try:
            return await self.server.add(self.dataset, request, self.user, resend)
        except AnswerLost as error:
            if self.uncertain is not Uncertain.ASSUME_STORED:
                raise
            say(f"{error.message} Assumed to be stored, as asked.")
            return request.size

    async def _stop(self, error: ServerError, number: int) -> NoReturn:
        """Raise an IngestError that says what is stored and what to do about a failure."""
        request = self.requests[number]
        so_far = f"{self._stored()} stored so far"
        if isinstance(error, AnswerLost):
            raise IngestError(
                f"{error.message}\n{so_far}. {_choice(request.kind, request.size)}"
            ) from error
        twice = self.generation.stores_twice(request.kind)
        if self.uncertain is not Uncertain.RESEND or not twice:
            # Nothing was stored, or it does not matter because it is replaced.
            await asyncio.to_thread(self.journal.record, number, State.WAITING)
        hint = ""
        if request.kind is Kind.BOXES or len(request.labels) > 1:
            what = request.kind.value
            hint = f" The server refuses all {what} of a request if the dataset lacks one image."
        raise IngestError(
            f"{error.message}{hint}\n{so_far}; the same command continues."
        ) from error

    def _stored(self) -> str:
        stored = len(self.journal.numbers(State.STORED))
        return f"{stored:,} of {count(len(self.requests), 'request')}"

    def _settle_uncertain(self) -> None:
        """Decide what to do with the requests of an earlier run that may have been carried out.

        Raises:
            IngestError: they would be stored twice, so the user must decide.
        """
        numbers = self.journal.numbers(State.SENT)
        if not numbers:
            return
        sizes = self.journal.sizes(State.SENT)
        said = (
            (f"{self.journal.path.name} is damaged. " if self.journal.damaged else "")
            + f"An interrupted run may have stored {count(len(numbers), 'request')} with "
            f"{amount(sizes)}:\n{first_lines([str(self.requests[number]) for number in numbers])}"
        )
        twice = [kind for kind in sizes if self.generation.stores_twice(kind)]
        if self.uncertain is Uncertain.ASSUME_STORED:
            for number in numbers:
                self.journal.record(number, State.STORED, self.requests[number].size)
            say(f"{said}\nAssumed to be stored, as asked.")
        elif not twice:
            say(f"{said}\nSent again: this server replaces labels that it has.")
        elif self.uncertain is Uncertain.RESEND:
            say(f"{said}\nSent again, as asked.")
        else:
            raise IngestError(f"{said}\n{_choice(twice[0], sizes[twice[0]])}")


def _choice(kind: Kind, number: int) -> str:
    """What the user can do about labels or boxes that may be stored already."""
    newest = "" if kind is Kind.BOXES else " (the newest counts, so Forager shows the right ones)"
    return (
        f"This server stores {kind.value} twice if they are sent twice{newest}. Look at the "
        "category in Forager. Then run the same command with --uncertain assume_stored if they are "
        "there, or else with --uncertain resend, which may store "
        f"{kind.counted(number)} a second time."
    )
