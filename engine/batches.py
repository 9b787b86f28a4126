"""Images on their way into the models: grouped by size, computed in threads, awaited one by one.

A group becomes a batch when it is full, when its oldest image has waited MAX_WAIT_S, or when there
is nothing else to do: the model never idles while an image waits, and where the model is the limit
images queue up and batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dataset.arrays import Embedding
from engine.decode import BadImage, Prepared
from engine.stages import StageTime

MAX_WAIT_S = 5.0
SIZES_REMEMBERED = 4096  # batch sizes kept, of images of different sizes
AHEAD = 2  # batches given to a GPU before the first is waited for


class Embedder(Protocol):
    """What is needed of embeddings.Embedder; benchmarks bring a trivial one."""

    device: str
    workers: int
    makes_clip_inputs: bool
    clip_batch_size: int

    def resnet_batch_size(self, height: int, width: int) -> int: ...
    def start_resnet(self, images: Sequence[np.ndarray]) -> Callable[[], Any]: ...
    def start_clip(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]: ...
    def start_both(self, images: Sequence[np.ndarray]) -> Callable[[], Any]: ...


class Group(NamedTuple):
    """Images that may share a batch: for one model, of one size."""

    model: str  # "ResNet", "CLIP", or "both" from the same pixels
    height: int = 0
    width: int = 0


MODELS = ("ResNet", "CLIP")
CLIP = Group("CLIP")  # whose inputs have one size


class Waiting(NamedTuple):
    """One image in a group."""

    pixels: np.ndarray
    future: asyncio.Future[Any]
    since: float  # time.monotonic()


Started = tuple[Group, list[Waiting], Callable[[], Any]]  # a batch on the device


class Batches:
    """Runs an embedder in its own threads; an async context manager.

    `resnet`, `clip` and `both` take one image's uint8 array and return its vectors. `busy_s` and
    `images` count for each of these the seconds a thread spent on it and the images done.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._ahead = 1 if embedder.device == "cpu" else AHEAD
        self._groups: dict[Group, deque[Waiting]] = {}
        self._batch_size = functools.lru_cache(SIZES_REMEMBERED)(self._ask_batch_size)
        self._changed = threading.Condition()
        self._stopping = False
        self._broken: Exception | None = None
        self._clip_began = False
        self.busy_s = {"ResNet": 0.0, "CLIP": 0.0, "both": 0.0}
        self.images = {"ResNet": 0, "CLIP": 0, "both": 0}

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

    async def resnet(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """(imagenet (2048,), imagenet_early (1024,), ImageNet class) of uint8 (H, W, 3) RGB."""
        height, width = pixels.shape[:2]
        group = Group("ResNet", height, width)
        result: tuple[np.ndarray, np.ndarray, int] = await self._enqueue(group, pixels)
        return result

    async def clip(self, clip_input: np.ndarray) -> np.ndarray:
        """float32 (512,) of uint8 (224, 224, 3) RGB."""
        result: np.ndarray = await self._enqueue(CLIP, clip_input)
        return result

    async def both(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """What `resnet` and `clip` give, from the same pixels."""
        height, width = pixels.shape[:2]
        group = Group("both", height, width)
        result: tuple[np.ndarray, np.ndarray, int, np.ndarray] = await self._enqueue(group, pixels)
        return result

    async def embed(self, prepared: Prepared) -> tuple[Embedding, int]:
        """All vectors and the ImageNet class of one image.

        Raises:
            BadImage: it needs more memory than there is.
        """
        try:
            if prepared.clip_input is None:
                imagenet, imagenet_early, imagenet_class, clip = await self.both(prepared.pixels)
            else:
                clip, (imagenet, imagenet_early, imagenet_class) = await together(
                    self.clip(prepared.clip_input), self.resnet(prepared.pixels)
                )
        except MemoryError as error:
            height, width = prepared.pixels.shape[:2]
            raise BadImage(f"not enough memory to embed {width} x {height} pixels") from error
        return Embedding(imagenet, imagenet_early, clip), int(imagenet_class)

    def times(self) -> list[StageTime]:
        """Of both models, so far; as one stage where a device runs them together."""
        workers, images = self._embedder.workers, self.images
        if self._embedder.makes_clip_inputs:
            done = images["both"] + images["ResNet"]
            return [StageTime("models", done, sum(self.busy_s.values()) / workers)]
        return [StageTime(name, images[name], self.busy_s[name] / workers) for name in MODELS]

    def _enqueue(self, key: Group, pixels: np.ndarray) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        with self._changed:
            if self._broken:
                raise self._broken
            self._groups.setdefault(key, deque()).append(Waiting(pixels, future, time.monotonic()))
            self._changed.notify()
        return future

    def _ask_batch_size(self, key: Group) -> int:
        if key == CLIP:
            return self._embedder.clip_batch_size
        return self._embedder.resnet_batch_size(key.height, key.width)

    def _take(self, wait: bool) -> tuple[Group, list[Waiting]] | None:
        """The next batch; None if there is none (and none came, if `wait`) or the end has come."""
        with self._changed:
            while wait and not self._groups and not self._stopping:
                self._changed.wait()
            if self._stopping or not self._groups:
                return None
            key = self._next_key()
            group = self._groups[key]
            # Where one group alone waits, the threads share it: at the end none stands by.
            sharing = self._embedder.workers if len(self._groups) == 1 else 1
            size = min(-(-len(group) // sharing), self._batch_size(key))
            batch = [group.popleft() for _ in range(size)]
            if not group:
                del self._groups[key]
            self._clip_began |= key == CLIP
            return key, batch

    def _next_key(self) -> Group:
        """Overdue groups first, then full ones, then the fullest: in each the oldest.

        CLIP's first batch counts as full, so that the first results come sooner.
        """
        now = time.monotonic()

        def rank(item: tuple[Group, deque[Waiting]]) -> tuple[int, float, float]:
            key, group = item
            since = group[0].since
            if now - since > MAX_WAIT_S:
                return 2, 0, -since
            first_of_clip = key == CLIP and not self._clip_began
            filled = 1 if first_of_clip else len(group) / self._batch_size(key)
            return (1, 0, -since) if filled >= 1 else (0, filled, -since)

        return max(self._groups.items(), key=rank)[0]

    def _work_until_broken(self) -> None:
        """Work; an error outside a batch reaches all who wait, else they would wait for ever."""
        started: deque[Started] = deque()
        try:
            self._work(started)
        except Exception as error:
            with self._changed:
                self._broken = error
                waiting = [waiting for group in self._groups.values() for waiting in group]
                self._groups.clear()
            waiting += [waiting for _, batch, _ in started for waiting in batch]
            self._loop.call_soon_threadsafe(_fail, waiting, error)

    def _work(self, started: deque[Started]) -> None:
        """Keep up to AHEAD batches on a GPU, so that it never waits for this thread."""
        while True:
            if len(started) < self._ahead and (taken := self._take(wait=not started)):
                key, batch = taken
                with _Clock(self, key, 0):
                    started.append((key, batch, self._start(key, batch)))
            elif started:
                key, batch, wait_for = started.popleft()
                with _Clock(self, key, len(batch)):
                    self._finish(key, batch, wait_for)
            elif self._stopping:
                return

    def _start(self, key: Group, batch: list[Waiting]) -> Callable[[], Any]:
        pixels = [waiting.pixels for waiting in batch]
        start = getattr(self._embedder, f"start_{key.model.lower()}")
        try:
            result: Callable[[], Any] = start(pixels)
            return result
        except Exception as error:
            return _raising(error)

    def _finish(self, key: Group, batch: list[Waiting], wait_for: Callable[[], Any]) -> None:
        try:
            vectors = wait_for()
            results = vectors if key == CLIP else zip(*vectors, strict=True)
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:
            self._loop.call_soon_threadsafe(_fail, batch, error)
            return
        self._loop.call_soon_threadsafe(_succeed, pairs)


class _Clock:
    """Adds the seconds of a `with` block, and the images done in it, to a model's counts."""

    def __init__(self, batches: Batches, key: Group, images: int) -> None:
        self._batches, self._images = batches, images
        self._model = key.model

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._batches.busy_s[self._model] += time.perf_counter() - self._start
        self._batches.images[self._model] += self._images


def _raising(error: Exception) -> Callable[[], Any]:
    def result() -> Any:
        raise error

    return result


def _succeed(pairs: list[tuple[Waiting, Any]]) -> None:
    for waiting, result in pairs:
        if not waiting.future.done():
            waiting.future.set_result(result)


def _fail(batch: list[Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)


async def together(*coroutines: Awaitable[Any]) -> list[Any]:
    """The results of all; when one fails, the others are ended before its error goes on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
