"""Every error that stops a command with a sentence for the user, as one tree.

    IngestError                 what is wrong, with its value and the next step
    ├── StorageError            Cloud Storage refuses, or cannot be reached
    ├── ServerError             the Forager server refuses, or cannot be reached
    │   └── AnswerLost          a request that must not be repeated may have been carried out
    ├── WeightsError            a file of weights is missing, damaged or another model's
    ├── DeviceError             the device or precision is not there
    ├── ClusterError            the Ray cluster cannot be used
    ├── DiskError               a disk is full or fails, or something else has a file's name
    │   └── DamagedState        a state.sqlite is not as it was written, or not by this version
    ├── ShortageError           the process ran out of open files, memory or threads
    └── ImagesChanged           images were replaced in the bucket after they were listed

Two more never reach the user as they are:

    TransientError              a failed request that may succeed a little later
    ImageError                  one image cannot be embedded; the run goes on without it
    └── ImageChanged            its object is not the listed one any more

Libraries' errors are translated at the edge: gcs.py and storage/ for Cloud Storage, forager/ for
the server, weights/ for the weights. The commands print an IngestError and end with exit code 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class IngestError(Exception):
    """What stops a command: one sentence with the value and the next step."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StorageError(IngestError):
    """Storage did not do what was asked; the message names the object and the reason.

    `status` is the HTTP status of the answer, or None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ServerError(IngestError):
    """What went wrong with the Forager server."""


class AnswerLost(ServerError):
    """A request that must not be repeated was sent, and it may have been carried out."""


class WeightsError(IngestError):
    """What is wrong with a file of weights."""


class DeviceError(IngestError):
    """The device is not there, or does not compute in the precision."""


class ClusterError(IngestError):
    """What is wrong with the Ray cluster."""


class DiskError(IngestError):
    """The disk is full, fails or holds something else than the files of an ingest."""


class DamagedState(DiskError):
    """The file of a state is damaged; `reason` says what is wrong with it."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ShortageError(IngestError):
    """The process or the machine ran out of something that every image needs."""


class ImagesChanged(IngestError):
    """Images changed in the bucket after they were listed; their rows are still pending."""


class TransientError(Exception):
    """A failed request that may succeed a little later; the message is the reason.

    `retry_after` is the header as the server sent it. `attempts`, if given, limits the tries.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        retry_after: str | None = None,
        attempts: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.attempts = attempts


class ImageError(Exception):
    """One image cannot be embedded; the message is the reason, for failed.json."""


class ImageChanged(ImageError):
    """The object of an image was replaced or deleted after it was listed: its row stays pending."""


class Findings:
    """Collects everything that is wrong, so that one message can list all of it.

    Each sentence says what is wrong and what to do; every sentence is kept once.
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add one finding."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    def collect(self, check: Callable[..., Any], *args: Any) -> Any:
        """The result of one check, or None after adding the message of its IngestError."""
        try:
            return check(*args)
        except IngestError as error:
            self.add(error.message)
            return None

    async def gather(self, check: Awaitable[Any]) -> Any:
        """The same for a check that is awaited."""
        try:
            return await check
        except IngestError as error:
            self.add(error.message)
            return None

    async def gather_in_thread(self, check: Callable[..., Any], *args: Any) -> Any:
        """The same for a blocking check, which runs in a thread."""
        return await self.gather(asyncio.to_thread(check, *args))

    def raise_if_any(self) -> None:
        """Raise an IngestError with all findings, if there are any."""
        if len(self.sentences) == 1:
            raise IngestError(self.sentences[0])
        if self.sentences:
            listed = "".join(f"\n  - {sentence}" for sentence in self.sentences)
            raise IngestError(f"{len(self.sentences)} problems found:{listed}")
