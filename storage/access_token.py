"""The access token that the small objects' requests carry, from google-auth's credentials."""

from __future__ import annotations

import asyncio
from typing import Any

from google.auth.credentials import TokenState

import gcs


class AccessToken:
    """One token for all requests, renewed a few minutes before it expires."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """The token.

        Raises:
            TransientError, Refused: it could not be renewed.
            StorageError: no credentials.
        """
        credentials = gcs.credentials()
        async with self._lock:
            if credentials.token_state is not TokenState.FRESH:
                await asyncio.to_thread(_renew, credentials)
        token: str = credentials.token
        return token


def _renew(credentials: Any) -> None:
    from google.auth.transport.requests import Request

    try:
        credentials.refresh(Request())
    except Exception as error:
        if (ours := gcs.translated(error)) is error:
            raise
        raise ours from error
