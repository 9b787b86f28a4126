"""Long computations in the background, one after the other, each with its progress."""

from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from local_forager.indexes.vectors import Progress


@dataclass
class BackgroundJob:
    progress: float = 0.0
    future: Future[Any] | None = None

    def result(self) -> Any:
        """The job's result, None until it has ended; raises what the job raised."""
        return self.future.result() if self.future and self.future.done() else None


class Jobs:
    """Jobs by a key that names everything their result depends on; each key runs once."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._jobs: dict[Hashable, BackgroundJob] = {}
        self._latest = BackgroundJob()  # the one that reported progress last
        self._closed = False

    def start(self, key: Hashable, function: Callable[[Progress], Any]) -> BackgroundJob:
        """The job of this key, started if it is new. It calls its argument to report progress."""
        if key not in self._jobs:
            job = self._jobs[key] = BackgroundJob()

            def report(progress: float) -> None:
                job.progress = progress
                self._latest = job
                if self._closed:
                    raise CancelledError

            job.future = self._executor.submit(function, report)
        return self._jobs[key]

    def get(self, key: Hashable) -> BackgroundJob | None:
        return self._jobs.get(key)

    def progress(self) -> float:
        """The progress of the job that is running, 0 to 1."""
        return self._latest.progress

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
