"""What was sent and what was confirmed of a run of labels, on disk, so that it can go on.

One JSON object a line: first what the journal belongs to, then for each request `sent` before it
and `created`, or `refused`, after its answer. A request that is `sent` and no more is uncertain.
"""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import click

from common.files import sync_directory
from common.terminal import printable
from labels.requests import LabelRequest

FORMAT = 1


class JournalError(click.ClickException):
    """The journal cannot be used, and what to do about it."""


class Journal:
    """The journal at `path`, locked; a context manager.

    Attributes:
        created: how many labels the server stored, by the key of a request that is confirmed.
        uncertain: keys of requests that were sent and not answered.
    """

    def __init__(self, path: Path, belongs_to: dict[str, str], restart: bool = False) -> None:
        self.path = path
        self.created: dict[str, int] = {}
        self.uncertain: set[str] = set()
        try:
            self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - held until close()
        except OSError as error:
            raise JournalError(
                f"Cannot write the journal {printable(str(path))} ({error.strerror}): "
                "name a directory for it with --work_dir."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise JournalError(
                f"Another ingest_labels.py is at work on these labels: it holds "
                f"{printable(str(path))}."
            ) from None
        try:
            if restart:
                self._file.truncate(0)
            self._read({"format": str(FORMAT), **belongs_to})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _read(self, belongs_to: dict[str, str]) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1  # a line cut off by a crash was never acted on
        self._file.truncate(whole)
        if not whole:
            self._write(belongs_to)
            sync_directory(self.path.parent)
            return
        try:
            header, *lines = [json.loads(line) for line in data[:whole].splitlines()]
            for line in lines:
                self._apply(line)
            differences = [
                f"{key.replace('_', ' ')} {printable(str(header[key]))!r}, now {printable(value)!r}"
                for key, value in belongs_to.items()
                if header[key] != value
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise JournalError(
                f"{printable(str(self.path))} is not a journal of this program, or damaged: "
                "remove it, or forget it with --restart."
            ) from None
        if differences and not self.created and not self.uncertain:
            self._file.truncate(0)  # nothing was stored: nothing to go on with
            self._write(belongs_to)
        elif differences:
            raise JournalError(
                f"An interrupted run left {printable(str(self.path))}, which belongs to something "
                f"else: {'; '.join(differences)}. Repeat that run to finish it, or forget it with "
                "--restart."
            )

    def _apply(self, line: dict[str, Any]) -> None:
        key = line["request"]
        if line["event"] == "sent":
            self.uncertain.add(key)
            return
        if line["event"] == "created":
            self.created[key] = int(line["created"])
        self.uncertain.discard(key)

    def sent(self, request: LabelRequest) -> None:
        """Note that the request is about to be sent."""
        self._note(
            request,
            event="sent",
            category=request.category,
            mode=request.mode,
            asked=len(request.images),
            first=request.images[0],
            last=request.images[-1],
        )

    def confirm(self, request: LabelRequest, created: int) -> None:
        """Note that the server stored so many labels."""
        self._note(request, event="created", created=created)

    def refuse(self, request: LabelRequest) -> None:
        """Note that the server certainly stored nothing."""
        self._note(request, event="refused")

    def _note(self, request: LabelRequest, **fields: Any) -> None:
        line = {"request": request.key(), **fields}
        self._write(line)
        self._apply(line)

    def _write(self, line: dict[str, Any]) -> None:
        try:
            data = json.dumps(line).encode() + b"\n"
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise JournalError(
                f"Cannot write the journal {printable(str(self.path))} ({error.strerror}): "
                "nothing more is sent; the same command continues."
            ) from error

    def check_fits(self, requests: list[LabelRequest]) -> None:
        """Raise JournalError if something was sent that is not among the requests of this run."""
        if (self.created.keys() | self.uncertain) - {request.key() for request in requests}:
            raise JournalError(
                f"An interrupted run left {printable(str(self.path))}, and it sent other images "
                "than this run would (--skip_unknown, or the index became readable since). Repeat "
                "that run to finish it, or forget it with --restart."
            )

    def remove(self) -> None:
        """The run is over: every request is answered."""
        self.path.unlink(missing_ok=True)
