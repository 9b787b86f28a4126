"""Long computations in the background, each started once, and how a request waits for them."""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from local_forager.indexes.vectors import Progress
from local_forager.types import StillWorking

KEPT_JOBS = 100  # that have ended; of a picture, 14 kB are kept
WAIT = 1.0  # seconds after which a request is told to ask again
POLL = 0.05  # seconds between looks at a computation

Result = TypeVar("Result")


async def result_of(
    future: "asyncio.Future[Result] | Future[Result]", working: Callable[[], str]
) -> Result:
    """The result of a computation; StillWorking with a sentence if that takes longer than WAIT."""
    until = time.monotonic() + WAIT
    while not future.done():
        if time.monotonic() > until:
            raise StillWorking(working())
        await asyncio.sleep(POLL)
    return future.result()


@dataclass
class BackgroundJob:
    future: Future[Any] = field(init=False)
    progress: float = 0.0

    def result(self) -> Any:
        """The job's result, None until it has ended; raises what the job raised."""
        return self.future.result() if self.future.done() else None


class Jobs:
    """Jobs by a key that names everything their result depends on; each key runs once.

    Results are kept, except for those that were not asked for while KEPT_JOBS others were.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._jobs: dict[Hashable, BackgroundJob] = {}
        self._lock = threading.RLock()
        self._latest = BackgroundJob()  # the one that reported progress last
        self._closed = False

    def start(self, key: Hashable, function: Callable[[Progress], Any]) -> BackgroundJob:
        """The job of this key, started if it is new. It calls its argument to report progress."""

        def report(progress: float) -> None:
            job.progress = progress
            self._latest = job
            if self._closed:
                raise CancelledError

        with self._lock:
            if found := self.get(key):
                return found
            job = self._jobs[key] = BackgroundJob()
            job.future = self._executor.submit(function, report)
            ended = [old for old, other in self._jobs.items() if other.future.done()]
            for old in ended[: max(0, len(self._jobs) - KEPT_JOBS)]:
                del self._jobs[old]
            return job

    def get(self, key: Hashable) -> BackgroundJob | None:
        """The job of this key, which becomes the last to be left out."""
        with self._lock:
            if found := self._jobs.pop(key, None):
                self._jobs[key] = found
            return found

    def waiting(self) -> int:
        """How many jobs have not ended."""
        with self._lock:
            return sum(not job.future.done() for job in self._jobs.values())

    def progress(self) -> float:
        """The progress of the job that is running, 0 to 1."""
        return self._latest.progress

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
