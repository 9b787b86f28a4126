"""What a Forager server answers, and what to say to the user of an answer that is no use."""

import asyncio
import html
import json
import re
from typing import Any, NamedTuple

import aiohttp
import click

from common import retries
from common.terminal import printable

FIRST_CONNECT_ATTEMPTS = 3  # a mistyped address should not take as long as a restarting server
VIEWER_PORT = 4000
# The body was not processed if the server answers one of these: a proxy refused to pass it on, or
# the view failed and its one INSERT with it.
NOT_DONE_STATUSES = {408, 425, 429, 500, 503}


class ForagerError(click.ClickException):
    """What went wrong with the server, in a sentence with the next step."""


class AnswerLost(ForagerError):
    """A request that must not be repeated was sent, and may or may not have been carried out."""


class Unreachable(retries.TransientError):
    """No connection: the server has not seen the request."""

    def __init__(self, message: str, reached_before: bool) -> None:
        super().__init__(message)
        self.attempts = None if reached_before else FIRST_CONNECT_ATTEMPTS


class DatasetInfo(NamedTuple):
    index_id: str
    num_train: int
    num_val: int


class Answer(NamedTuple):
    """One whole answer; `content` is its JSON, or None for what is not JSON."""

    status: int
    content: Any
    title: str  # "" or the title of an HTML page, printable
    location: str


def certainly_not_done(error: BaseException) -> bool:
    """Whether the failure says that the server did not carry the request out."""
    if isinstance(error, Unreachable):
        return True
    return isinstance(error, retries.TransientError) and error.status in NOT_DONE_STATUSES


def difference(
    name: str, found: DatasetInfo, wanted: DatasetInfo, failure: Exception | None
) -> str:
    """What differs between the dataset on the server and the one that was to be there."""
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


def refusal(server: str, method: str, route: str, answer: Answer) -> ForagerError:
    if 300 <= answer.status < 400:
        return ForagerError(
            f"{server} redirects {method} api/{route} to {answer.location or 'nowhere'} "
            f"(HTTP {answer.status}): set SERVER_URL to the address of the Forager server "
            "behind it."
        )
    said = answer.title or (printable(json.dumps(answer.content)) if answer.content else "")
    hint = {
        401: "it wants a login, which Forager servers do not have: check SERVER_URL",
        403: "access is not allowed: check SERVER_URL and the proxy before the server",
        413: "the proxy before the server takes smaller requests only",
    }.get(answer.status, "check SERVER_URL and the server's log")
    return ForagerError(
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
) -> ForagerError:
    """The sentence for a request that got no usable answer at all."""
    request = f"{method} api/{route}"
    if isinstance(error, Unreachable):
        return ForagerError(
            f"Cannot reach the Forager server at {server} ({error}): check SERVER_URL, and "
            "that the server is running."
        )
    if isinstance(error, aiohttp.InvalidURL):
        return ForagerError(f"SERVER_URL {server} is not an address.")
    tries = f", in {attempts} attempts" if retries.is_transient(error) else ""
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return ForagerError(
            f"The Forager server at {server} did not answer {request} within "
            f"{timeout_s:,} s{tries}: check SERVER_URL, and that the server is not overloaded."
        )
    return ForagerError(
        f"The Forager server at {server} failed to answer {request}{tries}: "
        f"{retries.reason(error)}. Look at the server's log, or try again later."
    )


def other_shape(server: str, route: str) -> ForagerError:
    return ForagerError(
        f"{server} answered api/{route} with JSON of another shape than a Forager server: "
        "check SERVER_URL."
    )


def parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def page_title(data: bytes) -> str:
    """The title of an HTML page, or its first heading, on one line; "" where there is none.

    With it comes what Django's debug page calls the exception's value.
    """
    text = data[:200_000].decode(errors="replace")
    title = re.search(r"<(?:title|h1)\b[^>]*>(.*?)</(?:title|h1)", text, re.I | re.DOTALL)
    value = re.search(r'<pre class="exception_value">(.*?)</pre>', text, re.DOTALL)
    parts = [html.unescape(re.sub(r"<[^>]*>", " ", found[1])) for found in (title, value) if found]
    return printable(": ".join(" ".join(part.split()) for part in parts if part.strip()), 200)
