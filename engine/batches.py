"""Images on their way into the models: grouped into batches, computed in threads, awaited singly.

A group becomes a batch when it is full, when its oldest image has waited MAX_WAIT_S, or when there
is nothing else to do. So the models never idle while an image waits. Where the models are the
bottleneck, images queue up and the batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from dataset.arrays import Embedding
from engine.decode import BadImage, Prepared
from engine.stages import StageTime

MAX_WAIT_S = 5.0
SIZES_REMEMBERED = 4096  # image sizes whose batch size is kept
AHEAD = 2  # batches given to a GPU before the first is waited for

Result = TypeVar("Result")


class StartedBatch(Protocol):
    """As embeddings.Batch."""

    def finish(self) -> Sequence[Embedding]: ...


class BatchEmbedder(Protocol):
    """What is needed of embeddings.Embedder; testing/ has one without models."""

    @property
    def device(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def max_pixels(self) -> int: ...
    @property
    def makes_clip_inputs(self) -> bool: ...
    def group(self, height: int, width: int) -> Hashable: ...
    def batch_size(self, height: int, width: int) -> int: ...
    def start(
        self, images: Sequence[np.ndarray], clip_inputs: Sequence[np.ndarray | None]
    ) -> StartedBatch: ...


class Waiting(NamedTuple):
    """One image that waits for a batch."""

    pixels: np.ndarray
    clip_input: np.ndarray | None
    future: asyncio.Future[Embedding]
    since: float  # time.monotonic()


class Launched(NamedTuple):
    """A batch on the device, or the error that starting it raised."""

    images: list[Waiting]
    batch: StartedBatch | Exception


class Batches:
    """Runs an embedder in threads of its own; an async context manager."""

    def __init__(self, embedder: BatchEmbedder, *, max_wait_s: float = MAX_WAIT_S) -> None:
        self._embedder, self._max_wait_s = embedder, max_wait_s
        self._ahead = 1 if embedder.device == "cpu" else AHEAD
        self._groups: dict[Hashable, deque[Waiting]] = {}
        self._batch_size = functools.lru_cache(SIZES_REMEMBERED)(embedder.batch_size)
        self._changed = threading.Condition()
        self._stopping = False
        self._broken: Exception | None = None
        self._images, self._busy_s = 0, 0.0

    async def __aenter__(self) -> Batches:
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._work_until_broken, name=f"embed-{i}", daemon=True)
            for i in range(self._embedder.workers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    async def embed(self, image: Prepared) -> Embedding:
        """The embedding of one image.

        Raises:
            BadImage: it needs more memory than there is.
        """
        height, width = image.pixels.shape[:2]
        future: asyncio.Future[Embedding] = self._loop.create_future()
        group = self._embedder.group(height, width)
        with self._changed:
            if self._broken:
                raise self._broken
            waiting = Waiting(image.pixels, image.clip_input, future, time.monotonic())
            self._groups.setdefault(group, deque()).append(waiting)
            self._changed.notify()
        try:
            return await future
        except MemoryError as error:
            raise BadImage(f"not enough memory to embed {width} x {height} pixels") from error

    def time(self) -> StageTime:
        """Images done so far, and the mean seconds that a thread was busy with them."""
        return StageTime("models", self._images, self._busy_s / self._embedder.workers)

    def _take(self, wait: bool) -> list[Waiting]:
        """The next batch. Empty if there is none (if `wait`: if the end has come)."""
        with self._changed:
            while wait and not self._groups and not self._stopping:
                self._changed.wait()
            if self._stopping or not self._groups:
                return []
            key = self._next_group()
            group = self._groups[key]
            # If only one group waits, the threads share it: so none is idle at the end.
            sharing = self._embedder.workers if len(self._groups) == 1 else 1
            size = min(-(-len(group) // sharing), self._size_of(group))
            batch = [group.popleft() for _ in range(size)]
            if not group:
                del self._groups[key]
            return batch

    def _size_of(self, group: deque[Waiting]) -> int:
        return self._batch_size(*group[0].pixels.shape[:2])

    def _next_group(self) -> Hashable:
        """Overdue groups first, then full ones, then the fullest; among equals, the oldest."""
        now = time.monotonic()

        def rank(item: tuple[Hashable, deque[Waiting]]) -> tuple[int, float, float]:
            _, group = item
            since = group[0].since
            if now - since > self._max_wait_s:
                return 2, 0, -since
            filled = len(group) / self._size_of(group)
            return (1, 0, -since) if filled >= 1 else (0, filled, -since)

        return max(self._groups.items(), key=rank)[0]

    def _work_until_broken(self) -> None:
        """Work; an error outside a batch reaches all who wait, else they would wait for ever."""
        launched: deque[Launched] = deque()
        try:
            self._work(launched)
        except Exception as error:
            with self._changed:
                self._broken = error
                waiting = [waiting for group in self._groups.values() for waiting in group]
                self._groups.clear()
            waiting += [waiting for batch in launched for waiting in batch.images]
            self._loop.call_soon_threadsafe(_settle, [(w, error) for w in waiting])

    def _work(self, launched: deque[Launched]) -> None:
        """Keep up to AHEAD batches on a GPU, so that it never waits for this thread."""
        while True:
            if len(launched) < self._ahead and (images := self._take(wait=not launched)):
                launched.append(self._timed(self._launch, images))
            elif launched:
                self._timed(self._finish, launched.popleft())
            elif self._stopping:
                return

    def _timed(self, function: Callable[..., Result], argument: object) -> Result:
        start = time.perf_counter()
        try:
            return function(argument)
        finally:
            seconds = time.perf_counter() - start
            with self._changed:
                self._busy_s += seconds

    def _launch(self, images: list[Waiting]) -> Launched:
        try:
            batch: StartedBatch | Exception = self._embedder.start(
                [waiting.pixels for waiting in images], [waiting.clip_input for waiting in images]
            )
        except Exception as error:
            batch = error
        return Launched(images, batch)

    def _finish(self, launched: Launched) -> None:
        images, batch = launched
        try:
            if isinstance(batch, Exception):
                raise batch
            outcomes: list[tuple[Waiting, Embedding | Exception]] = list(
                zip(images, batch.finish(), strict=True)
            )
        except MemoryError as error:
            if len(images) > 1:  # it may be too large for one image only
                for waiting in images:
                    self._finish(self._launch([waiting]))
                return
            outcomes = [(images[0], error)]
        except Exception as error:
            outcomes = [(waiting, error) for waiting in images]
        with self._changed:
            self._images += sum(isinstance(outcome, Embedding) for _, outcome in outcomes)
        self._loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: Sequence[tuple[Waiting, Embedding | Exception]]) -> None:
    for waiting, outcome in outcomes:
        if waiting.future.done():
            continue
        if isinstance(outcome, Exception):
            waiting.future.set_exception(outcome)
        else:
            waiting.future.set_result(outcome)
