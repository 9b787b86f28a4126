"""What runs on the workers of a Ray cluster: rows -> packs of decoded images -> embeddings.

Images are prepared and embedded by the same code as on one machine (engine/threads.py,
engine/batches.py). engine/ray/tables.py describes what travels from one process to the next.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from dataset.arrays import Embedding
from dataset.state import Row, State
from engine import threads
from engine.batches import BatchEmbedder, Batches
from engine.decode import Decoded, NotEmbedded, not_embedded
from engine.ray.tables import packed, results, unpacked
from engine.ray.worker_files import use_key
from engine.stages import DECODE, FETCH, MODELS, THUMBNAILS, Budget, StageTime

FETCHES = 32  # images of one task under way at once: most of their time they wait for the bucket
DECODED_PIXELS = 40_000_000  # of one task: 3 bytes per pixel, about 10 while decoding
PREPARED_AHEAD = 2  # images that are decoded and wait to be packed, beside the pack
STAGES = (FETCH, DECODE, MODELS, THUMBNAILS)


class Loaded(NamedTuple):
    """What the driver needs to know of the embedder that a worker loads."""

    device: str
    precision: str
    max_pixels: int
    workers: int
    makes_clip_inputs: bool


def probe(load: Callable[[], Any]) -> Loaded:
    """Load the models once, to learn before the run what `auto` chooses on a worker."""
    embedder = load()
    return Loaded(*(getattr(embedder, field) for field in Loaded._fields))


class Job(NamedTuple):
    """What a task needs to know to prepare images. It is the same for the whole run."""

    image_bucket: str
    index_bucket: str
    index_id: str
    max_pixels: int
    with_clip_inputs: bool
    pack_images: int
    pack_bytes: int


class Rows:
    """An actor on the driver's machine: it hands out blocks of rows, and the Google key.

    So no task carries a listing. A block is the same however often it is asked for: Ray computes a
    lost one again. The answer with the key is small, so Ray sends it from process to process, past
    the object store, which can be written to a disk.
    """

    def __init__(
        self, state_path: Path, numbers: np.ndarray, block_rows: int, key_file: Path | None
    ) -> None:
        self._state = State(state_path)
        self._numbers, self._block_rows, self._key_file = numbers, block_rows, key_file

    def block(self, number: int) -> list[Row]:
        """The rows of one block."""
        start = number * self._block_rows
        numbers = self._numbers[start : start + self._block_rows].tolist()
        return self._state.rows(numbers)

    def key(self) -> bytes | None:
        """The content of the key file. None where workers have credentials of their own."""
        return self._key_file.read_bytes() if self._key_file else None


def prepare(blocks: pa.Table, rows: Any, job: Job) -> Iterator[pa.Table]:
    """Fetch and decode the images of blocks of rows, upload their thumbnails; return packs.

    Thumbnails are uploaded here: their bytes then need not pass the object store, and the CPUs of
    the embedders are left to the models. A row is marked done later, when its vectors come back.

    Raises:
        StorageError: the run cannot go on.
    """
    preparer = _preparer(job, ray.get(rows.key.remote()))
    for number in blocks["id"].to_pylist():
        yield from preparer.packs(ray.get(rows.block.remote(number)))


@functools.cache
def _preparer(job: Job, key: bytes | None) -> Preparer:
    """One per process: Ray gives a process many tasks, and connections stay open."""
    if key is not None:
        use_key(key)
    return Preparer(job)


class EventLoop:
    """An event loop in a thread of its own, for as long as the process lives."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


class Preparer:
    """Prepares rows in one process of a worker."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loop = EventLoop()
        self._preparation = threads.Threads(
            threads.Job(
                image_bucket=job.image_bucket,
                index_bucket=job.index_bucket,
                index_id=job.index_id,
                max_pixels=job.max_pixels,
                with_clip_inputs=job.with_clip_inputs,
            ),
            1,
            FETCHES,
            Budget(3 * DECODED_PIXELS),
        )
        self._loop.wait_for(self._preparation.__aenter__())
        self._times = self._preparation.times()

    def packs(self, rows: list[Row]) -> Iterator[pa.Table]:
        """The prepared rows. A pack ends with the image that reaches one of its two limits.

        The event loop runs on while Ray takes a pack, so transfers do not wait for Ray.
        """
        results = self._prepared(rows)
        pack: list[tuple[Row, Decoded | NotEmbedded]] = []
        try:
            while (result := self._loop.wait_for(_next(results))) is not None:
                pack.append(result)
                size = sum(p.pixels.nbytes for _, p in pack if isinstance(p, Decoded))
                if len(pack) >= self._job.pack_images or size >= self._job.pack_bytes:
                    yield packed(pack, self._new_times(), [])
                    pack = []
            if pack:
                yield packed(pack, self._new_times(), [])
        finally:
            self._loop.wait_for(results.aclose())

    def _new_times(self) -> list[StageTime]:
        """What the stages did since the last call."""
        before, self._times = self._times, self._preparation.times()
        return [
            StageTime(new.name, new.images - old.images, new.busy_s - old.busy_s)
            for old, new in zip(before, self._times, strict=True)
        ]

    async def _prepared(
        self, rows: list[Row]
    ) -> AsyncGenerator[tuple[Row, Decoded | NotEmbedded], None]:
        """Each row as soon as it is done, with its image or why it has none."""
        results: asyncio.Queue[Any] = asyncio.Queue()

        def put(row: Row, image: Decoded | NotEmbedded) -> None:
            results.put_nowait((row, image))

        async def work() -> None:
            try:
                await self._preparation.run(iter(rows), len(rows), put)
            except Exception as error:
                results.put_nowait(error)

        task = asyncio.create_task(work())
        try:
            for _ in rows:
                result = await results.get()
                if isinstance(result, Exception):
                    raise result
                yield result
                self._preparation.release(result[0].row)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _next(results: AsyncIterator[Any]) -> Any:
    return await anext(results, None)


class EmbedPacks:
    """An actor with both models. Its calls run at the same time, and their images share batches."""

    def __init__(self, load: Callable[[], BatchEmbedder]) -> None:
        self._loop = EventLoop()
        self._batches = Batches(load())
        self._loop.wait_for(self._batches.__aenter__())
        self._lock = threading.Lock()
        self._time = self._batches.time()

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """The results of each pack, one line per row."""
        for i in range(packs.num_rows):
            rows, images = unpacked(packs.slice(i, 1))
            embedded = self._loop.wait_for(self._embed(images))
            fetch, decode, thumbnails = np.reshape(packs["times"][i].as_py(), (3, 2)).tolist()
            times = [fetch, decode, self._new_time(), thumbnails]
            numbers = [number for pair in times for number in pair]
            yield results(rows, embedded, numbers, packs["requests"][i].as_py())

    async def _embed(self, images: list[Decoded | NotEmbedded]) -> list[Embedding | NotEmbedded]:
        return await asyncio.gather(*(self._embed_one(image) for image in images))

    async def _embed_one(self, image: Decoded | NotEmbedded) -> Embedding | NotEmbedded:
        if isinstance(image, NotEmbedded):
            return image
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._batches.add(image, future.set_result)
        outcome = await future
        return not_embedded(outcome) if isinstance(outcome, Exception) else outcome

    def _new_time(self) -> tuple[int, float]:
        """The images done and the seconds busy since the last call."""
        with self._lock:
            before, self._time = self._time, self._batches.time()
            return self._time.images - before.images, self._time.busy_s - before.busy_s
