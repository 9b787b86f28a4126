"""Images on their way into the models: grouped into batches, computed in threads, awaited singly.

On a CPU a batch starts when a thread is free. On a GPU it starts when it is full, when its oldest
image has waited GATHER_S, or when no image has come for QUIET_S (engine/grouping.py). Where the
models are the bottleneck, images queue up and the batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from common.errors import ImageError
from dataset.arrays import Embedding
from engine.decode import Prepared
from engine.grouping import Groups
from engine.stages import StageTime

MAX_WAIT_S = 5.0
GATHER_S = 0.3  # how long a batch on a GPU that is not full waits for more images,
QUIET_S = 0.05  # unless no image came for this time
AHEAD = 2  # batches given to a GPU before the first is waited for

Result = TypeVar("Result")
Settle = Callable[[Embedding | Exception], None]


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
    def waiting_pixels(self) -> int: ...
    @property
    def makes_clip_inputs(self) -> bool: ...
    def group(self, height: int, width: int) -> Hashable: ...
    def batch_size(self, height: int, width: int) -> int: ...
    def start(
        self, images: Sequence[np.ndarray], clip_inputs: Sequence[np.ndarray | None]
    ) -> StartedBatch: ...


class Queued(NamedTuple):
    """One image that waits for a batch."""

    pixels: np.ndarray
    clip_input: np.ndarray | None
    settle: Settle


class Launched(NamedTuple):
    """A batch on the device, or the error that starting it raised."""

    images: list[Queued]
    batch: StartedBatch | Exception


class Batches:
    """Runs an embedder in threads of its own; an async context manager."""

    def __init__(self, embedder: BatchEmbedder, *, max_wait_s: float = MAX_WAIT_S) -> None:
        self._embedder = embedder
        self._on_gpu = embedder.device != "cpu"
        self._ahead = AHEAD if self._on_gpu else 1
        self._groups: Groups[Queued] = Groups(
            lambda queued: embedder.batch_size(*queued.pixels.shape[:2]),
            gather_s=GATHER_S if self._on_gpu else 0.0,
            quiet_s=QUIET_S if self._on_gpu else 0.0,
            max_wait_s=max_wait_s,
            few_sizes=self._on_gpu,
        )
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
            ImageError: it needs more memory than there is.
        """
        future: asyncio.Future[Embedding] = self._loop.create_future()

        def settle(outcome: Embedding | Exception) -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.add(image, settle)
        return await future

    def add(self, image: Prepared, settle: Settle) -> None:
        """Let an image be embedded; the event loop calls `settle` with what `embed` returns or
        raises.
        """
        group = self._embedder.group(*image.pixels.shape[:2])
        with self._changed:
            if self._broken:
                raise self._broken
            queued = Queued(image.pixels, image.clip_input, settle)
            if self._groups.add(group, queued, time.monotonic()):
                self._changed.notify()

    def time(self) -> StageTime:
        """Images done so far, and the mean seconds that a thread computed, or waited for a GPU."""
        return StageTime("models", self._images, self._busy_s / self._embedder.workers)

    def _take(self, wait: bool) -> list[Queued]:
        """The next batch. Empty if there is none (if `wait`: if the end has come)."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                # The threads share the images of a group that waits alone, so that none is idle.
                if batch := self._groups.take(now, sharing=self._embedder.workers):
                    return batch
                if not wait:
                    break
                ready_at = self._groups.ready_at()
                self._changed.wait(None if ready_at is None else max(0.0, ready_at - now))
            return []

    def _work_until_broken(self) -> None:
        """Work; an error outside a batch reaches all who wait, else they would wait for ever."""
        launched: deque[Launched] = deque()
        try:
            self._work(launched)
        except Exception as error:
            with self._changed:
                self._broken = error
                queued = self._groups.clear()
            queued += [image for batch in launched for image in batch.images]
            self._loop.call_soon_threadsafe(_settle, [(image, error) for image in queued])

    def _work(self, launched: deque[Launched]) -> None:
        """Keep up to AHEAD batches on a GPU, so that it never waits for this thread."""
        while True:
            if len(launched) < self._ahead and (images := self._take(wait=not launched)):
                # On a GPU only the waiting counts as busy: launching is this process's own work.
                launch = self._launch if self._on_gpu else partial(self._timed, self._launch)
                launched.append(launch(images))
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

    def _launch(self, images: list[Queued]) -> Launched:
        try:
            batch: StartedBatch | Exception = self._embedder.start(
                [image.pixels for image in images], [image.clip_input for image in images]
            )
        except Exception as error:
            batch = error
        return Launched(images, batch)

    def _finish(self, launched: Launched) -> None:
        images, batch = launched
        try:
            if isinstance(batch, Exception):
                raise batch
            outcomes: list[tuple[Queued, Embedding | Exception]] = list(
                zip(images, batch.finish(), strict=True)
            )
        except MemoryError as error:
            if len(images) > 1:  # it may be too large for one image only
                for image in images:
                    self._finish(self._launch([image]))
                return
            height, width = images[0].pixels.shape[:2]
            failure = ImageError(f"not enough memory to embed {width} x {height} pixels")
            failure.__cause__ = error
            outcomes = [(images[0], failure)]
        except Exception as error:
            outcomes = [(image, error) for image in images]
        with self._changed:
            self._images += sum(isinstance(outcome, Embedding) for _, outcome in outcomes)
        self._loop.call_soon_threadsafe(_settle, outcomes)


def _settle(outcomes: Sequence[tuple[Queued, Embedding | Exception]]) -> None:
    for image, outcome in outcomes:
        image.settle(outcome)
