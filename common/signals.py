"""Signals that an event loop hears at once."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

Handler = Callable[[int, Any], Any] | int | None  # as signal.signal takes and returns it


def hear(number: int, handler: Handler) -> Handler:
    """signal.signal for the running event loop; returns the handler before.

    By signal.signal alone, a signal that comes just as the loop begins to wait is heard only when
    something else wakes the loop.
    """
    before = signal.getsignal(number)
    asyncio.get_running_loop().add_signal_handler(number, lambda: None)  # now it wakes the loop
    signal.signal(number, handler)
    return before
