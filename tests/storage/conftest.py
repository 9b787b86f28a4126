"""Servers in the place of Cloud Storage."""

import contextlib

import pytest

from tests.stand_in import StandIn


@pytest.fixture
def serve(monkeypatch):
    """Start a server that answers by a rule, and has an upstream or is alone: it is the storage."""
    with contextlib.ExitStack() as servers:

        def start(rule, upstream=None):
            front = servers.enter_context(StandIn(upstream, rule))
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
            return front

        yield start
