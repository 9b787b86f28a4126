"""Collects everything that is wrong, so that one message can list all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from common.errors import IngestError


class Findings:
    """Sentences that each say what is wrong and what to do; every sentence is kept once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add one finding."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    async def gather(self, check: Awaitable[Any]) -> Any:
        """The result of one check, or None after adding the message of its IngestError."""
        try:
            return await check
        except IngestError as error:
            self.add(error.message)
            return None

    async def gather_in_thread(self, check: Callable[..., Any], *args: Any) -> Any:
        """The same for a blocking check, which runs in a thread."""
        return await self.gather(asyncio.to_thread(check, *args))

    def raise_if_any(self) -> None:
        """Raise a IngestError with all findings, if there are any."""
        if len(self.sentences) == 1:
            raise IngestError(self.sentences[0])
        if self.sentences:
            listed = "".join(f"\n  - {sentence}" for sentence in self.sentences)
            raise IngestError(f"{len(self.sentences)} problems found:{listed}")
