"""What storage's and the libraries' errors become: another try, or one sentence for the user."""

import asyncio
import json
import re
import socket

import google.cloud.storage.exceptions as storage_errors
import pytest
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth

import gcs
from common.errors import IngestError, StorageError, TransientError
from common.names import GsPath
from forager.client import Forager
from gcs import Refused
from storage.listing import listed
from tests.stand_in import Answer, StandIn


def answered(status, body=b"", headers=None):
    """requests' answer with this status, and google-cloud-storage's error for it."""
    response = requests.Response()
    response.status_code, response._content = status, body
    response.headers.update(headers or {})
    return api.from_http_status(status, "x", response=response)


TRANSIENT = [
    *(requests.ConnectionError(), requests.Timeout(), requests.exceptions.ChunkedEncodingError()),
    requests.exceptions.JSONDecodeError("Unterminated string starting at", "{", 1),
    *(answered(503), answered(429), ConnectionResetError()),
    *(auth.TransportError("x"), auth.RefreshError("x", retryable=True)),
    storage_errors.DataCorruption(None, "x"),
]
REFUSALS = [
    *(requests.exceptions.SSLError(), answered(404), answered(403), answered(412)),
    auth.RefreshError("x"),
]
OTHERS = [ValueError(), KeyError("status"), FileNotFoundError()]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((error, TransientError) for error in TRANSIENT),
        *((error, Refused) for error in REFUSALS),
        *((error, type(error)) for error in OTHERS),  # they pass unchanged
    ],
    ids=repr,
)
def test_errors_of_libraries_are_told_apart(error, kind):
    assert isinstance(gcs.translated(error), kind)
    assert (gcs.translated(error) is error) == (error in OTHERS)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"code": 403, "message": "Under retention.\\n"}}', "Under retention"),
        (b'{"error": "invalid_grant", "error_description": "x"}', "invalid_grant"),
        (b"<?xml version='1.0'?><Error><Code>A</Code><Message>Denied.</Message></Error>", "Denied"),
        (b"<Error><Message>No.</Message><Details>ann is missing</Details>", "ann is missing"),
        (b"<html><title>502 Bad Gateway</title>", "502 Bad Gateway"),
        (b"No such object: b/a.jpg", "No such object: b/a.jpg"),
        (b'{"error": {"errors": [{"message": "Held \\"x\\".", "reason": "a"}]}}', 'Held "x"'),
        (b'{"error": {"message": "cut off', "cut off"),
        (b'{"error": {"message": "It is held.", "errors": [' + b'{"x": 1},' * 9999, "It is held"),
        (b'{"error": {"message": "{\\"error\\": {\\"message\\": \\"inner\\"}}"}}', "inner"),
        (b'Failed: {"error": {"code": 400, "message": "Invalid \\u00e9"}}', "Invalid é"),
        (b"[" * 100_000, ""),
        (b"<" * 100_000, ""),
        (b"{}", ""),
        (b"", ""),
        (b"\x1b[2J\xff", r"\x1b[2J"),
    ],
)
def test_the_reason_is_found_in_the_body(body, reason):
    found = gcs.reason_in(body)
    assert found.startswith(reason) and found.isprintable()
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("status", "message", "sentence"),
    [
        (401, "x", "Google refused the credentials; run `gcloud auth application-default login`"),
        (403, "Billing is disabled.", "access is denied (403): Billing is disabled."),
        (403, "", "access is denied (403) with the credentials in use."),
        (404, "x", "there is no such bucket or object (404)."),
        (400, "Bucket is a requester pays bucket but no user project provided.", "the bucket is"),
        (412, "Precondition failed.\n.", "HTTP 412 (Precondition failed)."),
    ],
)
def test_refusals_give_storages_own_reason(status, message, sentence, serve):
    body = json.dumps({"error": {"code": status, "message": message}}).encode()
    storage = serve(lambda asked: Answer(status, body))
    with pytest.raises(StorageError) as caught:
        list(gcs.list_pages(gcs.make_client(), GsPath("bucket", "t/"), "name"))
    assert len(storage.asked) == 1
    assert caught.value.status == status
    assert caught.value.message.startswith(f"Listing gs://bucket/t/: {sentence}")


def ask(library):
    """List a directory by one of the libraries."""
    path = GsPath("bucket", "t/")
    if library == "aiohttp":
        list(listed(path))
    else:
        list(gcs.list_pages(gcs.make_client(), path, "name"))


LIBRARIES = ["google-cloud-storage", "aiohttp"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("scheme", "words"),
    [("http", "Connection refused"), ("https", r"no TLS connection \([a-z ]+\)")],
)
def test_a_failed_connection_is_explained_in_few_words(monkeypatch, library, scheme, words):
    with socket.socket() as free, StandIn() as server:
        free.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{free.getsockname()[1]}"
        address = refusing if scheme == "http" else server.url.replace("http:", "https:")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        with pytest.raises(StorageError) as caught:
            ask(library)
    assert re.fullmatch(
        rf"Listing gs://bucket/t/: {words}\. Is the emulator running that STORAGE_.* Storage\.",
        caught.value.message,
    )


WRONG_PROXIES = ["not an address", "::::", "http://[x", "http://u:s3cret@:port", "ftp://x:1"]


@pytest.mark.parametrize("proxy", WRONG_PROXIES)
@pytest.mark.parametrize("library", [*LIBRARIES, "server"])
def test_a_proxy_that_is_no_address_is_one_sentence(monkeypatch, proxy, library):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://storage.example")
    monkeypatch.setenv("http_proxy", proxy)

    async def find_dataset():
        async with Forager("http://server.example") as server:
            await server.dataset("birds")

    with pytest.raises(IngestError, match="^http_proxy=.* is not an address: write it") as caught:
        asyncio.run(find_dataset()) if library == "server" else ask(library)
    assert "s3cret" not in caught.value.message
    assert isinstance(caught.value, StorageError) == (library != "server")
