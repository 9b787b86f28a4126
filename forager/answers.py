"""The answers of a Forager server, and the messages for those that are of no use."""

import asyncio
import html
import json
import re
from typing import Any, NamedTuple

import aiohttp

from common import retries
from common.errors import ServerError, TransientError
from common.terminal import printable

FIRST_CONNECT_ATTEMPTS = 3  # a mistyped address or port fails sooner than a restarting server
VIEWER_PORT = 4000
MAX_PAGE_BYTES = 200_000  # of a web page that are searched for its title
MAX_TITLE_LENGTH = 2_000  # characters, with tags
# With one of these statuses the request was not carried out: a proxy did not pass it on, or the
# view failed, and its single INSERT with it.
NOT_DONE_STATUSES = {408, 425, 429, 500, 503}


class Unreachable(TransientError):
    """There was no connection, so the server did not get the request."""

    def __init__(self, message: str, reached_before: bool) -> None:
        super().__init__(message, attempts=None if reached_before else FIRST_CONNECT_ATTEMPTS)


class DatasetInfo(NamedTuple):
    index_id: str
    num_train: int
    num_val: int


class Answer(NamedTuple):
    """One answer of the server."""

    status: int
    content: Any  # the JSON; None if the body is not JSON
    title: str  # the printable title of an HTML page, or ""
    location: str  # where a redirect points, or ""


def certainly_not_done(error: BaseException) -> bool:
    """Whether this failure means that the server did not carry out the request."""
    if isinstance(error, Unreachable):
        return True
    return isinstance(error, TransientError) and error.status in NOT_DONE_STATUSES


def registration_mismatch(
    name: str, found: DatasetInfo, wanted: DatasetInfo, failure: Exception | None
) -> str:
    """How the dataset on the server differs from the one that was to be registered."""
    said = f" (and answered: {retries.reason(failure)})" if failure else ""
    if found.index_id != wanted.index_id:
        return (
            f"There is another dataset {name} on the server, with index_id "
            f"{printable(found.index_id)} instead of {wanted.index_id}{said}: "
            "choose another name, or remove that one."
        )
    counts = " and ".join(
        f"{there:,} {split} images instead of {here:,}"
        for split, there, here in (
            ("training", found.num_train, wanted.num_train),
            ("validation", found.num_val, wanted.num_val),
        )
        if there != here
    )
    return (
        f"The server registered {name} with {counts}{said}: images appeared or vanished since they "
        "were listed, or the server's own listing failed. Remove the dataset on the server, then "
        "ingest it again."
    )


def refusal(server: str, method: str, route: str, answer: Answer) -> ServerError:
    """The error for an answer with a status that is not 200."""
    if 300 <= answer.status < 400:
        return ServerError(
            f"{server} redirects {method} api/{route} to {answer.location or 'nowhere'} "
            f"(HTTP {answer.status}): set SERVER_URL to the address of the Forager server "
            "behind it."
        )
    said = answer.title or (printable(json.dumps(answer.content)) if answer.content else "")
    hint = {
        401: "it asks for a login, which Forager servers do not have: check SERVER_URL",
        403: "access is not allowed: check SERVER_URL and the proxy in front of the server",
        413: "the proxy in front of the server only accepts smaller requests",
    }.get(answer.status, "check SERVER_URL and the server's log")
    return ServerError(
        f"{server} answered {method} api/{route} with HTTP {answer.status}"
        + (f" ({said})" if said else "")
        + f": {hint}."
    )


def no_answer(
    server: str,
    method: str,
    route: str,
    error: BaseException,
    timeout_s: float,
    attempts: int,
) -> ServerError:
    """The error for a request that got no usable answer."""
    request = f"{method} api/{route}"
    if isinstance(error, Unreachable):
        return ServerError(
            f"Cannot reach the Forager server at {server} ({error}): check SERVER_URL, and "
            "that the server is running."
        )
    if isinstance(error, aiohttp.InvalidURL):
        return ServerError(f"SERVER_URL {server} is not an address.")
    tries = f", in {attempts} attempts" if retries.is_transient(error) else ""
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return ServerError(
            f"The Forager server at {server} did not answer {request} within "
            f"{timeout_s:,} s{tries}: check SERVER_URL, and that the server is not overloaded."
        )
    return ServerError(
        f"The Forager server at {server} failed to answer {request}{tries}: "
        f"{retries.reason(error)}. Look at the server's log, or try again later."
    )


def other_shape(server: str, route: str) -> ServerError:
    """The error for JSON that does not have the expected fields."""
    return ServerError(
        f"{server} answered api/{route} with JSON of another shape than a Forager server: "
        "check SERVER_URL."
    )


def lost_text(what: str, reason: str) -> str:
    """The message of AnswerLost for a request that stores `what`."""
    return f"The server may or may not have stored {what}: {reason}"


def parsed(data: bytes) -> Any:
    """The JSON in a body, or None if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def page_title(data: bytes) -> str:
    """The title of an HTML page, or its first heading, on one line; "" if it has neither.

    For Django's debug page, the exception's message follows. The time is linear in the length of
    the page, whatever it contains.
    """
    page = data[:MAX_PAGE_BYTES].decode(errors="replace")
    title = _text_between(page, r"<title\b", "</title") or _text_between(page, r"<h1\b", "</h1")
    parts = title, _text_between(page, '<pre class="exception_value"', "</pre")
    return printable(": ".join(part for part in parts if part), 200)


def _text_between(page: str, start: str, end: str) -> str:
    """The text of the element with this start and end, without the tags inside it."""
    opened = re.search(start, page, re.I)
    inside = page.find(">", opened.end()) + 1 if opened else 0
    closed = re.compile(end, re.I).search(page, inside)
    if not inside or not closed:
        return ""
    text = page[inside : min(closed.start(), inside + MAX_TITLE_LENGTH)]
    return " ".join(html.unescape(re.sub(r"<[^<>]*>", " ", text)).split())
