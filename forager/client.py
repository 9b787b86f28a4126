"""The calls of a Forager server, for generations A and B."""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from common import retries
from common.errors import AnswerLost, ServerError
from common.retries import Retries
from common.terminal import count, printable
from forager.answers import (
    VIEWER_PORT,
    Answer,
    DatasetInfo,
    certainly_not_done,
    lost_text,
    no_answer,
    other_shape,
    refusal,
    registration_mismatch,
)
from forager.connection import REQUEST_ERRORS, Connection, Timeouts
from forager.payloads import Box, Label, create_body, label_body, multi_body

CREATE_ATTEMPTS = 4
MAX_CREATED = 10**9  # labels of one request, as a server can plausibly count them
SETTLE_IN_BASES = 120  # default of Timeouts.settle, in first waits
DEFAULT_TIMEOUTS = Timeouts()


class Forager:
    """A session with one server; use it as an async context manager.

    Every method raises ServerError, after retries of transient failures.

    Attributes:
        connection: the requests to the server.
        shown: the server's address as it may be printed, without a password.
    """

    def __init__(
        self,
        server_url: str,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retrying: Retries | None = None,
    ) -> None:
        self._retrying = retrying or retries.from_environment()
        self.connection = Connection(server_url, timeouts, self._retrying)
        self._timeouts = timeouts
        self.shown = self.connection.shown
        self._generation = ""

    @property
    def viewer_url(self) -> str | None:
        """The address of the web page, if this server told that it serves the page itself."""
        return self.shown if self.connection.serves_page else None

    async def __aenter__(self) -> "Forager":
        await self.connection.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.connection.__aexit__(*exception)

    async def dataset(self, name: str) -> DatasetInfo | None:
        """The dataset of this name, or None."""
        route = f"get_dataset_info_v2/{quote(name, safe='')}"
        answer = await self.connection.ask("GET", route)
        if answer.status == 404 and answer.content is not None:
            return None
        content = await self._content("GET", route, answer)
        try:
            info = DatasetInfo(content["index_id"], content["num_train"], content["num_val"])
        except (TypeError, KeyError, IndexError):
            raise other_shape(self.shown, route) from None
        if [type(value) for value in info] != [str, int, int]:
            raise other_shape(self.shown, route)
        return info

    async def dataset_names(self) -> list[str] | None:
        """The names of the datasets that are not hidden; None if the server does not tell."""
        answer = await self.connection.ask("GET", "get_datasets_v2")
        if answer.status == 404:
            return None
        content = await self._content("GET", "get_datasets_v2", answer)
        names = content.get("dataset_names") if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise other_shape(self.shown, "get_datasets_v2")
        return names

    async def generation(self) -> str:
        """ "A" or "B", asked once."""
        if not self._generation:
            route = "add_annotations_multi_v2"
            answer = await self.connection.ask("OPTIONS", route)
            if answer.status not in (200, 404):
                raise refusal(self.shown, "OPTIONS", route, answer)
            self._generation = "A" if answer.status == 404 else "B"
        return self._generation

    async def create_dataset(
        self,
        name: str,
        train_path: str,
        val_path: str,
        index_id: str,
        num_train: int,
        num_val: int,
    ) -> None:
        """Register the dataset and compare the server's image counts with these.

        A second create of a name is a 500, so a lost answer is settled by asking for the dataset.
        The request is sent again only if the dataset stays absent. That is safe: names are unique
        on the server.
        """
        wanted = DatasetInfo(index_id, num_train, num_val)
        body = create_body(name, train_path, val_path, index_id)
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            failure = await self._try_create(body)
            found = await self._settle(name, wanted, failure)
            if found == wanted:
                return
            if found is not None:
                raise ServerError(registration_mismatch(name, found, wanted, failure))
            if failure is None:
                raise ServerError(
                    f"The Forager server at {self.shown} answered that it created {name}, but "
                    "does not have it: look at the server's log."
                )
            if isinstance(failure, asyncio.TimeoutError | TimeoutError):
                break
            if attempt < CREATE_ATTEMPTS:
                tqdm.write(
                    f"create {name}: {retries.reason(failure)}, and the dataset is not there; "
                    f"attempt {attempt + 1} of {CREATE_ATTEMPTS}",
                    file=sys.stderr,
                )
                await asyncio.sleep(self._retrying.wait_s(attempt, failure))
        raise ServerError(
            f"The Forager server at {self.shown} did not create {name} "
            f"({retries.reason(failure)}): look at its log, then run the same command again, which "
            "asks first whether the dataset is there."
        )

    async def _try_create(self, body: bytes) -> Exception | None:
        """Send one create request; returns the transient failure that it ended in, if any."""
        method, route = "POST", "create_dataset_v2"
        try:
            answer = await self.connection.send(method, route, body, self._timeouts.create)
        except REQUEST_ERRORS as error:
            if not retries.is_transient(error):
                raise no_answer(
                    self.shown, method, route, error, self._timeouts.create, 1
                ) from error
            return error
        await self._content(method, route, answer)
        return None

    async def _settle(
        self, name: str, wanted: DatasetInfo, failure: Exception | None
    ) -> DatasetInfo | None:
        """The dataset as the server has it, once that no longer changes.

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

    async def add_labels(
        self,
        name: str,
        identifiers: list[str],
        user: str,
        category: str,
        mode: str,
        resend: bool = False,
    ) -> int:
        """Store one category and mode for these images, in one request.

        Returns how many labels the server stored; it skips images that it does not have.

        Raises:
            AnswerLost: on generation A, where a repeated request would store the labels twice,
                unless `resend` allows that.
        """
        route = f"add_annotations_by_internal_identifiers_v2/{quote(name, safe='')}"
        generation = await self.generation()
        body = label_body(generation, identifiers, user, category, mode)
        once = ""
        if generation == "A" and not resend:
            labels = count(len(identifiers), "label")
            once = f"{labels} {printable(category)!r} ({printable(mode)})"
        answer = await self.connection.ask("POST", route, body, self._timeouts.labels, once)
        return await self._created(name, route, answer, once)

    async def add_boxes(self, name: str, boxes: list[Box], user: str, resend: bool = False) -> int:
        """Store these boxes, in one request; returns how many the server stored.

        Only generation B stores boxes. It stores all of a request or none.

        Raises:
            AnswerLost: a repeated request would store the boxes twice, unless `resend` allows that.
        """
        once = "" if resend else count(len(boxes), "box", "boxes")
        return await self._add_multi(name, boxes, user, once)

    async def add_mixed_labels(self, name: str, labels: list[Label], user: str) -> int:
        """Store labels of any categories, in one request; returns how many the server stored.

        Only generation B does. It stores all of a request, or none if it lacks one of the images.
        It replaces labels, so a repeated request is safe.
        """
        return await self._add_multi(name, labels, user, once="")

    async def _add_multi(
        self, name: str, annotations: Sequence[Label | Box], user: str, once: str
    ) -> int:
        route = "add_annotations_multi_v2"
        body = multi_body(name, annotations, user)
        answer = await self.connection.ask("POST", route, body, self._timeouts.labels, once)
        return await self._created(name, route, answer, once)

    async def _created(self, name: str, route: str, answer: Answer, once: str) -> int:
        """The number of labels or boxes that the server stored.

        Raises:
            AnswerLost: the server accepted a request that must not be repeated (`once`), but does
                not tell a plausible number.
        """
        if answer.status == 404 and answer.content is not None:
            raise ServerError(f"There is no dataset {name} on {self.shown} any more.")
        content = await self._content("POST", route, answer)
        created = content.get("created") if isinstance(content, dict) else None
        if type(created) is int and 0 <= created <= MAX_CREATED:
            return created
        error = other_shape(self.shown, route)
        raise AnswerLost(lost_text(once, error.message)) if once else error

    async def _content(self, method: str, route: str, answer: Answer) -> Any:
        """The JSON of a 200.

        Raises:
            ServerError: another status, or not JSON.
        """
        if answer.status == 404 and answer.content is None:
            raise await self._missing_route(route)
        if answer.status != 200:
            raise refusal(self.shown, method, route, answer)
        if answer.content is None:
            page = f"a web page ({answer.title!r})" if answer.title else "something else"
            raise ServerError(
                f"{self.shown} answered {method} api/{route} with {page} instead of JSON: "
                "SERVER_URL must be the address of the Forager server itself, not of its web page "
                f"(port {VIEWER_PORT})."
            )
        return answer.content

    async def _missing_route(self, route: str) -> ServerError:
        """The error for a 404 that is not JSON: no server of these generations."""
        later = await self.connection.ask("GET", "get_datasets")
        if later.status == 200 and isinstance(later.content, dict):
            return ServerError(
                f"{self.shown} is the later forager-server from PyPI, which takes local "
                "directories and embeds by itself: add the dataset in its web page, or point "
                "SERVER_URL to a server with the _v2 routes."
            )
        return ServerError(
            f"{self.shown} is not a Forager server that this program can talk to: there is no "
            f"api/{route} there. Check SERVER_URL."
        )
