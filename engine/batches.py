"""Images on their way into the models: grouped into batches, computed in threads.

On a CPU a batch starts when a thread is free. On a GPU it starts when it is full, when its oldest
image has waited GATHER_S, or when no image has come for QUIET_S. Where the models are the
bottleneck, images queue up and the batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from dataset.arrays import Embedding
from engine.decode import Decoded, NotEmbedded
from engine.stages import StageTime

MAX_WAIT_S = 5.0
GATHER_S = 0.3  # how long a batch on a GPU that is not full waits for more images,
QUIET_S = 0.05  # unless no image came for this time
AHEAD = 2  # batches given to a GPU before the first is waited for

T = TypeVar("T")
Done = Callable[[Embedding | NotEmbedded], None]
Finish = Callable[[], Sequence[Embedding]]  # waits for a batch


class Groups(Generic[T]):
    """Which images become a batch, and when: logic alone, without threads and without a clock.

    Images wait by group, each in order of arrival. Images of one group may share a batch.
    """

    def __init__(
        self,
        batch_size: Callable[[T], int],
        *,
        gather_s: float = 0.0,
        quiet_s: float = 0.0,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        """
        Args:
            batch_size: the size of a full batch for an image's group; asked anew each time.
            gather_s: how long a batch that is not full waits for more images,
            quiet_s: but no longer than this after the last image of any group came.
            max_wait_s: after this time an image goes before fuller groups.
        """
        self._batch_size = batch_size
        self._gather_s, self._quiet_s, self._max_wait_s = gather_s, quiet_s, max_wait_s
        self._last_came = 0.0
        self._groups: dict[Hashable, deque[tuple[T, float]]] = {}  # since when each waits

    def add(self, group: Hashable, item: T, now: float) -> bool:
        """Let an image wait; whether `ready_at` may come earlier by that."""
        is_first = not self._groups
        waiting = self._groups.setdefault(group, deque())
        waiting.append((item, now))
        self._last_came = now
        return is_first or self._group_ready_at(waiting) <= now

    def ready_at(self) -> float | None:
        """The earliest time at which `take` returns a batch; None while no image waits."""
        if not self._groups:
            return None
        return min(map(self._group_ready_at, self._groups.values()))

    def take(self, now: float, *, sharing: int = 1) -> list[T]:
        """The next batch: of the group that is overdue, or full, or the fullest.

        It is empty before `ready_at`. `sharing` is how many threads are to share the images if a
        single group waits.
        """
        ready = [
            (self._rank(group, now), key)
            for key, group in self._groups.items()
            if self._group_ready_at(group) <= now
        ]
        if not ready:
            return []
        _, key = max(ready, key=lambda pair: pair[0])
        group = self._groups[key]
        size = len(group) if len(self._groups) > 1 else -(-len(group) // sharing)
        size = min(size, self._full(group))
        batch = [group.popleft()[0] for _ in range(size)]
        if not group:
            del self._groups[key]
        return batch

    def _group_ready_at(self, group: deque[tuple[T, float]]) -> float:
        if len(group) >= self._full(group):
            return group[0][1]
        return min(group[0][1] + self._gather_s, self._last_came + self._quiet_s)

    def _full(self, group: deque[tuple[T, float]]) -> int:
        return max(1, self._batch_size(group[0][0]))

    def _rank(self, group: deque[tuple[T, float]], now: float) -> tuple[int, float, float]:
        """Overdue groups first, then full ones, then the fullest; among equals, the oldest."""
        since = group[0][1]
        if now - since > self._max_wait_s:
            return 2, 0, -since
        filled = len(group) / self._full(group)
        return (1, 0, -since) if filled >= 1 else (0, filled, -since)


class BatchEmbedder(Protocol):
    """What is needed of embeddings.Embedder; testing/ has one without models."""

    device: str
    workers: int
    max_pixels: int
    waiting_pixels: int
    makes_clip_inputs: bool

    def group(self, height: int, width: int) -> Hashable: ...
    def batch_size(self, height: int, width: int) -> int: ...
    def start(
        self, images: Sequence[np.ndarray], clip_inputs: Sequence[np.ndarray | None]
    ) -> Finish: ...


class Queued(NamedTuple):
    """One image that waits for a batch."""

    image: Decoded
    done: Done


class Batches:
    """Runs an embedder in threads of its own; an async context manager."""

    def __init__(self, embedder: BatchEmbedder, fail: Callable[[Exception], None]) -> None:
        """`fail` is called in the event loop with an error that is not an image's."""
        self._embedder, self._fail = embedder, fail
        self._on_gpu = embedder.device != "cpu"
        self._ahead = AHEAD if self._on_gpu else 1
        self._groups: Groups[Queued] = Groups(
            lambda queued: embedder.batch_size(*queued.image.pixels.shape[:2]),
            gather_s=GATHER_S if self._on_gpu else 0.0,
            quiet_s=QUIET_S if self._on_gpu else 0.0,
        )
        self._changed = threading.Condition()
        self._stopping = False
        self._broken: Exception | None = None
        self._images, self._busy_s = 0, 0.0

    async def __aenter__(self) -> Batches:
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._work, name=f"embed-{i}", daemon=True)
            for i in range(self._embedder.workers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        # After Ctrl-C the process ends at once: an image in a model can take minutes.
        if kind is not asyncio.CancelledError:
            for thread in self._threads:
                await asyncio.to_thread(thread.join)

    def add(self, image: Decoded, done: Done) -> None:
        """Let an image be embedded. The event loop calls `done` with its embedding, or the reason
        why it has none: it needs more memory than there is.
        """
        group = self._embedder.group(*image.pixels.shape[:2])
        with self._changed:
            if self._broken:
                raise self._broken
            if self._groups.add(group, Queued(image, done), time.monotonic()):
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

    def _work(self) -> None:
        try:
            self._embed_all()
        except Exception as error:
            self._broken = error
            self._loop.call_soon_threadsafe(self._fail, error)

    def _embed_all(self) -> None:
        """Keep up to AHEAD batches on a GPU, so that it never waits for this thread."""
        under_way: deque[tuple[list[Queued], Finish]] = deque()
        while True:
            if len(under_way) < self._ahead and (images := self._take(wait=not under_way)):
                under_way.append((images, self._start(images)))
            elif under_way:
                self._finish(*under_way.popleft())
            elif self._stopping:
                return

    def _start(self, images: list[Queued]) -> Finish:
        return self._embedder.start(
            [one.image.pixels for one in images], [one.image.clip_input for one in images]
        )

    def _finish(self, images: list[Queued], finish: Finish) -> None:
        results: Sequence[Embedding | NotEmbedded]
        start = time.perf_counter()
        try:
            results = finish()
        except MemoryError:
            if len(images) > 1:  # it may be too large for one image only
                for one in images:
                    self._finish([one], self._start([one]))
                return
            width, height = images[0].image.about[:2]
            results = [NotEmbedded(f"not enough memory to embed {width} x {height} pixels")]
        outcomes = list(zip(images, results, strict=True))
        with self._changed:
            self._busy_s += time.perf_counter() - start
            self._images += sum(isinstance(result, Embedding) for result in results)
        self._loop.call_soon_threadsafe(_call_done, outcomes)


def _call_done(outcomes: Sequence[tuple[Queued, Embedding | NotEmbedded]]) -> None:
    for queued, result in outcomes:
        queued.done(result)
