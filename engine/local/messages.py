"""Messages between two processes, in lines of JSON. A message is a list: its kind, then its values.

JSON because a feeder decodes files of strangers: what it sends must not run code elsewhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any


class Lines(asyncio.Protocol):
    """One end of a socket. A message calls the function for its kind with its values."""

    def __init__(
        self,
        receivers: Mapping[str, Callable[..., None]],
        lost: Callable[[], None],
        *,
        gather_s: float = 0.0,
    ) -> None:
        """
        Args:
            lost: called when the other process has closed its end, or has ended.
            gather_s: how long a message may wait for others, to be sent with them.
        """
        self._receivers, self._lost, self._gather_s = receivers, lost, gather_s
        self._rest, self._unsent = b"", list[Any]()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            for kind, *values in json.loads(line.decode()):
                self._receivers[kind](*values)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()

    def send(self, kind: str, *values: Any) -> None:
        """Send a message, without waiting until the other process reads it."""
        if not self._unsent:
            asyncio.get_running_loop().call_later(self._gather_s, self._flush)
        self._unsent.append((kind, *values))

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(self._unsent).encode() + b"\n")
        self._unsent.clear()

    def close(self) -> None:
        """Close this end at once."""
        if self._transport is not None:
            self._transport.abort()
