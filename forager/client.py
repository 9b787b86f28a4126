"""The calls of a Forager server, for generations A and B."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from common import retries
from common.errors import ServerError, TransientError
from common.terminal import printable
from forager.connection import REQUEST_ERRORS, Connection, answer_lost, certainly_not_done
from forager.generation import MULTI_ROUTE, Generation, Group, LabelRequest, encoded

CREATE_ATTEMPTS = 4
MAX_CREATED = 10**9  # labels of one request, as a server can plausibly count them
SETTLE_IN_BASES = 120  # default of Timeouts.settle, in first waits


class DatasetInfo(NamedTuple):
    """What the server tells of a dataset."""

    index_id: str
    num_train: int
    num_val: int


class Forager(Connection):
    """A session with one server; use it as an async context manager.

    Every method raises ServerError, after retries of transient failures.
    """

    _generation: Generation | None = None

    async def dataset(self, name: str) -> DatasetInfo | None:
        """The dataset of this name, or None."""
        answer = await self.ask("GET", f"get_dataset_info_v2/{quote(name, safe='')}")
        if answer.status == 404 and answer.content is not None:
            return None
        match await self.content(answer):
            case {"index_id": str(index_id), "num_train": int(train), "num_val": int(val)}:
                return DatasetInfo(index_id, train, val)
        raise self.other_shape(answer)

    async def dataset_names(self) -> list[str] | None:
        """The names of the datasets that are not hidden; None if the server does not tell."""
        answer = await self.ask("GET", "get_datasets_v2")
        if answer.status == 404:
            return None
        match await self.content(answer):
            case {"dataset_names": [*names]} if all(isinstance(name, str) for name in names):
                return names
        raise self.other_shape(answer)

    async def generation(self) -> Generation:
        """The server's generation, asked once."""
        if self._generation is None:
            answer = await self.ask("OPTIONS", MULTI_ROUTE)
            if answer.status not in (200, 404):
                raise self.refusal(answer)
            self._generation = Generation.A if answer.status == 404 else Generation.B
        return self._generation

    async def category_counts(
        self, name: str, categories: Sequence[str]
    ) -> dict[Group, int] | None:
        """The numbers of labels that the server has of some categories, by category and mode.

        None if the server does not tell. Generation A wants a list of categories by POST, and
        counts custom modes together as CUSTOM. B tells all categories by GET, and counts boxes too.
        """
        route = f"get_category_counts_v2/{quote(name, safe='')}"
        answer = await self.ask("GET", route)
        if answer.status == 405:
            body = json.dumps({"categories": list(categories)}).encode()
            answer = await self.ask("POST", route, body)
        content = answer.content
        by_category = content.get("numLabeled", content) if isinstance(content, dict) else None
        if answer.status != 200 or not isinstance(by_category, dict):
            return None
        return {
            (category, mode): number
            for category, modes in by_category.items()
            if isinstance(modes, dict)
            for mode, number in modes.items()
            if type(number) is int
        }

    async def add(self, name: str, request: LabelRequest, user: str, resend: bool = False) -> int:
        """Store the labels or boxes of one request; returns how many the server stored.

        The server skips the labels of images that it does not have, but stores no part of a request
        of boxes, or of several categories, that has such an image.

        Raises:
            AnswerLost: the server may have stored them, and would store them twice if they were
                sent again, unless `resend` allows that.
        """
        generation = await self.generation()
        route = generation.route(name, request)
        once = str(request) if generation.stores_twice(request.kind) and not resend else None
        body = generation.body(name, request, user)
        answer = await self.ask("POST", route, body, self._timeouts.labels, once)
        if answer.status == 404 and answer.content is not None:
            raise ServerError(f"There is no dataset {name} on {self.shown} any more.")
        match answer.content:
            case {"created": int(created)} if (
                answer.status == 200 and 0 <= created <= MAX_CREATED and created is not True
            ):
                return created
        if once and 200 <= answer.status < 300:
            raise answer_lost(once, f"the answer (HTTP {answer.status}) does not tell.")
        await self.content(answer)
        raise self.other_shape(answer)

    async def create_dataset(
        self, name: str, train_path: str, val_path: str, wanted: DatasetInfo
    ) -> None:
        """Register the dataset and compare what the server then has with what is wanted.

        A second create of a name is a 500, so a lost answer is settled by asking for the dataset.
        The request is sent again only if the dataset stays absent. That is safe: names are unique
        on the server.
        """
        paths = {"train_path": train_path, "val_path": val_path}
        body = encoded({"dataset": name, **paths, "index_id": wanted.index_id})
        retrying = self._retrying._replace(attempts=CREATE_ATTEMPTS)
        try:
            await retrying.call(f"create {name}", self._create_once, name, wanted, body)
        except REQUEST_ERRORS as error:
            raise ServerError(
                f"The Forager server at {self.shown} did not create {name} "
                f"({retries.reason(error)}): look at its log, then run the same command again, "
                "which asks first whether the dataset is there."
            ) from error

    async def _create_once(self, name: str, wanted: DatasetInfo, body: bytes) -> None:
        """Send one create request; raises why it failed if the dataset is not there then.

        After a timeout, that is an error that is not worth another try.
        """
        failure: Exception | None = None
        try:
            answer = await self.send("POST", "create_dataset_v2", body, self._timeouts.create)
            await self.content(answer)
        except REQUEST_ERRORS as error:
            failure = error
        found = await self._settle(name, wanted, failure)
        if found == wanted:
            return
        if found is not None:
            raise ServerError(_mismatch(name, found, wanted, failure))
        if failure is None:
            raise ServerError(
                f"The Forager server at {self.shown} answered that it created {name}, but "
                "does not have it: look at the server's log."
            )
        if isinstance(failure, asyncio.TimeoutError | TimeoutError):
            raise TransientError(retries.reason(failure), attempts=1) from failure
        raise failure

    async def _settle(
        self, name: str, wanted: DatasetInfo, failure: Exception | None
    ) -> DatasetInfo | None:
        """The dataset as the server has it when it stops changing.

        After a lost answer the server may still be at work, so this waits.
        """
        settle_s = 0.0
        if failure is not None and not certainly_not_done(failure):
            settle_s = self._timeouts.settle or SETTLE_IN_BASES * self._retrying.base_s
        deadline = time.monotonic() + settle_s
        before = None
        attempt = 0
        while True:
            try:
                found = await self.dataset(name)
            except ServerError as error:
                raise ServerError(
                    f"Whether {name} was created is not known. {error.message} Then run the same "
                    "command again, which asks first whether the dataset is there."
                ) from error
            if found is not None and (found == wanted or found.index_id != wanted.index_id):
                return found
            if found != before:  # the server is at work: wait the whole time again
                before, deadline = found, time.monotonic() + settle_s
            if time.monotonic() >= deadline:
                return found
            attempt += 1
            await asyncio.sleep(self._retrying.wait_s(attempt, None))


async def ask_for_dataset(server_url: str, name: str) -> DatasetInfo | None:
    """The dataset of this name on a server, or None. Raises ServerError."""
    async with Forager(server_url) as forager:
        return await forager.dataset(name)


def _mismatch(name: str, found: DatasetInfo, wanted: DatasetInfo, failure: Exception | None) -> str:
    """How the dataset on the server differs from the one that was to be registered."""
    said = f" (and answered: {retries.reason(failure)})" if failure else ""
    if found.index_id != wanted.index_id:
        return (
            f"There is another dataset {name} on the server, with index_id "
            f"{printable(found.index_id)} instead of {wanted.index_id}{said}: "
            "choose another name, or remove that one."
        )
    return (
        f"The server registered {name} with {found.num_train:,} training and {found.num_val:,} "
        f"validation images instead of {wanted.num_train:,} and {wanted.num_val:,}{said}: images "
        "appeared or vanished since they were listed, or the server's own listing failed. Remove "
        "the dataset on the server, then ingest it again."
    )
