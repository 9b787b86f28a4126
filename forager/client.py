"""The Forager server, seen from here: an async client of its calls, for generations A and B."""

import asyncio
import json
import sys
import time
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
from tqdm import tqdm

from common import retries
from common.terminal import printable
from forager.answers import (
    VIEWER_PORT,
    Answer,
    AnswerLost,
    DatasetInfo,
    ForagerError,
    Unreachable,
    certainly_not_done,
    difference,
    no_answer,
    other_shape,
    page_title,
    parsed,
    refusal,
)

__all__ = [
    "AnswerLost",
    "DatasetInfo",
    "Forager",
    "ForagerError",
    "check_server_url",
    "dataset_page",
    "label_body",
]

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
LABELS_TIMEOUT_S = 600  # one request of labels is up to some 50,000 rows for the server to write
CREATE_TIMEOUT_S = 3600  # the server lists both paths before it answers: minutes for millions
CREATE_ATTEMPTS = 4
SETTLE_IN_BASES = 120  # how long a dataset may take to appear after a lost answer, in first waits
REQUEST_ERRORS = (
    aiohttp.ClientError,
    retries.TransientError,
    asyncio.TimeoutError,
    TimeoutError,
    OSError,
)


def check_server_url(server_url: str) -> str:
    """The URL without trailing slashes.

    Raises:
        ForagerError: if it cannot be the address of a server.
    """
    form = "write it as http://HOST:PORT"
    shown = printable(server_url)
    try:
        parts = urlsplit(server_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ForagerError(f"SERVER_URL {shown} is not an address ({error}): {form}.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ForagerError(f"SERVER_URL {shown!r} is not an address: {form}.")
    if parts.query or parts.fragment or not server_url.isprintable() or " " in server_url:
        raise ForagerError(f"SERVER_URL {shown!r} is more than an address: {form}.")
    return server_url.rstrip("/")


def dataset_page(server_url: str, viewer_url: str | None, name: str) -> str:
    """Where to look at a dataset: on port 4000 of the server's host unless told otherwise."""
    if viewer_url:
        return f"{viewer_url.rstrip('/')}/{name}"
    host = urlsplit(server_url).hostname or "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{VIEWER_PORT}/{name}"


def label_body(
    generation: str, identifiers: list[str], user: str, category: str, mode: str
) -> bytes:
    """The request body that stores `category` with `mode` for these images, all ASCII.

    The generations name the mode differently, and B silently stores the wrong one if it is sent
    what A takes.
    """
    fields = (
        {"value": mode, "mode": "ingest"}
        if generation == "A"
        else {"mode": mode, "created_by": "ingest"}
    )
    payload = {"identifiers": identifiers, "user": user, "category": category, **fields}
    return json.dumps(payload, separators=(",", ":")).encode("ascii")


class Forager:
    """A session with one server; use it as an async context manager.

    Every method raises ForagerError; transient failures are tried again first.
    """

    def __init__(self, server_url: str, retrying: retries.Retries | None = None) -> None:
        self.url = check_server_url(server_url)
        parts = urlsplit(self.url)
        # What goes to the terminal has no password.
        self.shown = printable(self.url.replace(f"{parts.netloc}", parts.netloc.split("@")[-1], 1))
        self._generation = ""
        self._reached = False
        self._retries = retrying or retries.from_environment()
        self._settle_s = SETTLE_IN_BASES * self._retries.base_s

    async def __aenter__(self) -> "Forager":
        # A connection per request: on one kept alive, a reset does not tell whether the server had
        # closed it before or had read the request, and requests are few.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True), trust_env=True
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def dataset(self, name: str) -> DatasetInfo | None:
        """The dataset of this name, or None."""
        route = f"get_dataset_info_v2/{quote(name, safe='')}"
        answer = await self._ask("GET", route)
        if answer.status == 404 and answer.content is not None:
            return None
        if answer.status == 404:
            raise await self._missing_route(route)
        content = self._content("GET", route, answer)
        try:
            info = DatasetInfo(content["index_id"], content["num_train"], content["num_val"])
        except (TypeError, KeyError, IndexError):
            raise other_shape(self.shown, route) from None
        if [type(value) for value in info] != [str, int, int]:
            raise other_shape(self.shown, route)
        return info

    async def dataset_names(self) -> list[str] | None:
        """The names of the datasets that are not hidden; None where the server does not tell."""
        answer = await self._ask("GET", "get_datasets_v2")
        if answer.status == 404:
            return None
        content = self._content("GET", "get_datasets_v2", answer)
        names = content.get("dataset_names") if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise other_shape(self.shown, "get_datasets_v2")
        return names

    async def generation(self) -> str:
        """ "A" or "B", asked once."""
        if not self._generation:
            route = "add_annotations_multi_v2"
            answer = await self._ask("OPTIONS", route)
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
        """Register the dataset, and see that the server counts as many images as we did.

        A second create of a name is a 500, so a lost answer is settled by asking for the dataset.
        Only where that stays absent is the request sent again, which can do no harm then: the name
        is unique on the server.
        """
        wanted = DatasetInfo(index_id, num_train, num_val)
        payload = {
            "dataset": name,
            "train_path": train_path,
            "val_path": val_path,
            "index_id": index_id,
        }
        body = json.dumps(payload).encode()
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            failure = await self._try_create(body)
            found = await self._settle(name, wanted, failure)
            if found == wanted:
                return
            if found is not None:
                raise ForagerError(difference(name, found, wanted, failure))
            if failure is None:
                raise ForagerError(
                    f"The Forager server at {self.shown} said that it created {name} and then "
                    "does not know it: look at the server's log."
                )
            if isinstance(failure, asyncio.TimeoutError | TimeoutError):
                break
            if attempt < CREATE_ATTEMPTS:
                tqdm.write(
                    f"create {name}: {retries.reason(failure)}, and the dataset is not there; "
                    f"attempt {attempt + 1} of {CREATE_ATTEMPTS}",
                    file=sys.stderr,
                )
                await asyncio.sleep(self._retries.wait_s(attempt, failure))
        raise ForagerError(
            f"The Forager server at {self.shown} did not create {name} "
            f"({retries.reason(failure)}): look at its log, then run the same command again, which "
            "asks first whether the dataset is there."
        )

    async def add_labels(
        self,
        name: str,
        identifiers: list[str],
        user: str,
        category: str,
        mode: str,
        resend: bool = False,
    ) -> int:
        """How many labels the server stored: those of the images it knows. One request.

        Raises:
            AnswerLost: on generation A, where a repeated request would store the labels twice,
                unless `resend` allows that.
        """
        route = f"add_annotations_by_internal_identifiers_v2/{quote(name, safe='')}"
        generation = await self.generation()
        body = label_body(generation, identifiers, user, category, mode)
        if generation == "A" and not resend:
            labels = "1 label" if len(identifiers) == 1 else f"{len(identifiers):,} labels"
            what = f"{labels} {printable(category)!r} ({printable(mode)})"
            answer = await self._ask("POST", route, body, LABELS_TIMEOUT_S, lost=what)
        else:
            answer = await self._ask("POST", route, body, LABELS_TIMEOUT_S)
        if answer.status == 404 and answer.content is not None:
            raise ForagerError(f"There is no dataset {name} on {self.shown} any more.")
        if answer.status == 404:
            raise await self._missing_route(route)
        content = self._content("POST", route, answer)
        created = content.get("created") if isinstance(content, dict) else None
        if type(created) is not int:
            raise other_shape(self.shown, route)
        return created

    async def _try_create(self, body: bytes) -> Exception | None:
        """None if the server said success, else why it is not known."""
        try:
            answer = await self._send("POST", "create_dataset_v2", body, CREATE_TIMEOUT_S)
        except REQUEST_ERRORS as error:
            if not retries.is_transient(error):
                raise no_answer(self.shown, "POST", "create_dataset_v2", error, 0, 1) from error
            return error
        if answer.status == 404 and answer.content is None:
            raise await self._missing_route("create_dataset_v2")
        self._content("POST", "create_dataset_v2", answer)
        return None

    async def _settle(
        self, name: str, wanted: DatasetInfo, failure: Exception | None
    ) -> DatasetInfo | None:
        """What the server knows of the dataset, once that no longer changes.

        Where the server may still be at work on the request, that takes some waiting.
        """
        lost = failure is not None and not certainly_not_done(failure)
        deadline = time.monotonic() + (self._settle_s if lost else 0)
        before = None
        attempt = 0
        while True:
            try:
                found = await self.dataset(name)
            except ForagerError as error:
                raise ForagerError(
                    f"Whether {name} was created is not known. {error.message} Then run the same "
                    "command again, which asks first whether the dataset is there."
                ) from error
            if found is not None and (found == wanted or found.index_id != wanted.index_id):
                return found
            if found != before:  # the server is at work: give it all the time again
                before, deadline = found, max(deadline, time.monotonic() + self._settle_s * lost)
            if time.monotonic() >= deadline:
                return found
            attempt += 1
            await asyncio.sleep(self._retries.wait_s(attempt, None))

    async def _ask(
        self,
        method: str,
        route: str,
        body: bytes | None = None,
        timeout_s: float = READ_TIMEOUT_S,
        lost: str = "",
    ) -> Answer:
        """The answer, after retries. `lost` names a request that must not be carried out twice."""
        send = self._send_once if lost else self._send
        try:
            return await self._retries.call(
                f"{method} {self.shown}/api/{route}", send, method, route, body, timeout_s
            )
        except AnswerLost as error:
            raise AnswerLost(f"The server may or may not have stored {lost}: {error}.") from error
        except REQUEST_ERRORS as error:
            attempts = self._retries.attempts
            raise no_answer(self.shown, method, route, error, timeout_s, attempts) from error

    async def _send_once(
        self, method: str, route: str, body: bytes | None, timeout_s: float
    ) -> Answer:
        """`_send`, where a failure that may have come after the work is not a transient one."""
        try:
            answer = await self._send(method, route, body, timeout_s)
        except REQUEST_ERRORS as error:
            if retries.is_transient(error) and not certainly_not_done(error):
                raise AnswerLost(retries.reason(error)) from error
            raise
        if answer.status == 200 and answer.content is None:
            raise AnswerLost("the answer is not JSON")
        return answer

    async def _send(self, method: str, route: str, body: bytes | None, timeout_s: float) -> Answer:
        """One attempt. Transient statuses are raised, all others returned."""
        # No Accept: a server in debug mode then says what went wrong in the title of a page.
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with self._session.request(
                method,
                f"{self.url}/api/{route}",
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            ) as response:
                data = await response.read()
        except aiohttp.ClientSSLError as error:
            raise ForagerError(
                f"No TLS connection to {self.shown} ({printable(str(error))}): check the "
                "certificate, or whether SERVER_URL should begin with http://."
            ) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(retries.reason(error), self._reached) from error
        self._reached = True
        title = page_title(data)
        status = response.status
        if status in retries.TRANSIENT_STATUSES:
            raise retries.TransientError(
                f"HTTP {status}" + (f" ({title})" if title else ""),
                status,
                response.headers.get("Retry-After"),
            )
        location = printable(response.headers.get("Location", ""))
        return Answer(status, parsed(data), title, location)

    def _content(self, method: str, route: str, answer: Answer) -> Any:
        """The JSON of a 200.

        Raises:
            ForagerError: for every other status, and for what is not JSON.
        """
        if answer.status != 200:
            raise refusal(self.shown, method, route, answer)
        if answer.content is None:
            page = f"a web page ({answer.title!r})" if answer.title else "something else"
            raise ForagerError(
                f"{self.shown} answered {method} api/{route} with {page} instead of JSON: "
                "SERVER_URL must be the address of the Forager server itself, not of its web page "
                f"(port {VIEWER_PORT})."
            )
        return answer.content

    async def _missing_route(self, route: str) -> ForagerError:
        """A 404 that is not JSON: no server of these generations."""
        later = await self._ask("GET", "get_datasets")
        if later.status == 200 and isinstance(later.content, dict):
            return ForagerError(
                f"{self.shown} is the later forager-server from PyPI, which takes local "
                "directories and embeds by itself: add the dataset in its web page, or point "
                "SERVER_URL to a server with the _v2 routes."
            )
        return ForagerError(
            f"{self.shown} is not a Forager server that this program can talk to: there is no "
            f"api/{route} there. Check SERVER_URL."
        )
