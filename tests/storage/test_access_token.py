"""The access token of the small objects' requests, renewed by google-auth."""

import asyncio

import pytest
from google.auth import exceptions as auth
from google.auth.credentials import TokenState

import gcs
from common.retries import Retries
from storage.session import AccessToken


class Credentials:
    """google-auth's interface: a token that has expired, and the errors that renewing it meets."""

    token, token_state = "old", TokenState.INVALID

    def __init__(self, *errors):
        self.errors, self.renewals = list(errors), 0

    def refresh(self, request):
        self.renewals += 1
        if self.errors:
            raise self.errors.pop(0)
        self.token, self.token_state = "new", TokenState.FRESH


def tokens(credentials, monkeypatch):
    """The tokens that five requests at once get."""
    monkeypatch.setattr(gcs, "credentials", lambda: credentials)

    async def get():
        token = AccessToken()
        quick = Retries(base_s=0.001)
        return await asyncio.gather(*(quick.call("Token", token.get) for _ in range(5)))

    return set(asyncio.run(get()))


def test_expired_credentials_are_renewed_once_for_all(monkeypatch):
    credentials = Credentials()
    assert tokens(credentials, monkeypatch) == {"new"}
    assert credentials.renewals == 1


def test_renewing_survives_a_lost_network(monkeypatch):
    credentials = Credentials(*[auth.TransportError("no route to host")] * 3)
    assert tokens(credentials, monkeypatch) == {"new"}
    assert credentials.renewals == 4


def test_credentials_that_cannot_be_renewed_end_with_advice(monkeypatch):
    refused = auth.RefreshError("invalid_grant: expired or revoked")
    with pytest.raises(gcs.Refused) as caught:
        tokens(Credentials(*[refused] * 5), monkeypatch)
    message = gcs.storage_error("Reading x", caught.value).message
    assert "gcloud auth application-default login" in message
