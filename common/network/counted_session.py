"""Counts the requests of google-cloud-storage, which makes them with the library `requests`."""

from __future__ import annotations

from typing import Any

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter

from common.network.activity import Requests, count, kind_of
from common.network.retries import is_retrying


class CountingAdapter(HTTPAdapter):
    """Sends requests and counts them, those too that get no answer."""

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        received = 0
        try:
            response = super().send(request, *args, **kwargs)
            received = _length(response.headers)
            return response
        finally:
            kind = kind_of(request.method or "", request.url or "")
            sent = _length(request.headers)
            count(kind, Requests(1, int(is_retrying()), sent, received))


def count_requests(session: Session) -> None:
    """Count what the session sends from now on."""
    for scheme in ("http://", "https://"):
        # A session with a client certificate has an adapter of its own, which is kept.
        if type(session.get_adapter(scheme)) is HTTPAdapter:
            session.mount(scheme, CountingAdapter())


def _length(headers: Any) -> int:
    text = str(headers.get("Content-Length") or "")
    return int(text) if text.isdecimal() else 0
