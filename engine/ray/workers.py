"""What runs on the workers of a Ray cluster: rows -> packs of decoded images -> vectors.

Both stages are those of pipeline.py (intake.py, batches.py); here is only what carries them. A
pack is some images as one row of an Arrow table: its columns are lists, and its pixels are read
where they lie in the object store, without a copy.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import platform
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from common.program import ROOT, program_files
from dataset.arrays import DIMENSIONS, ZEROS, Embedding
from dataset.rows import Row, State
from engine.batches import BatchEmbedder, Batches
from engine.decode import BadImage, Prepared
from engine.prepare import Preparation
from engine.stages import DECODE, FETCH, MODELS, THUMBNAILS, StageTime
from gcs import ListedObject
from models.clip_crop import CLIP_SIDE
from storage.async_client import ObjectChanged, ObjectUnusable

FETCHED_AT_ONCE = 32  # images of one task; they wait for the bucket, not for the processor
DECODED_PIXELS = 40_000_000  # of one task: 3 bytes each, some 10 while decoding
PREPARED_AT_ONCE = 2  # images that are decoded and wait to be packed, beside the pack
PACKAGES = ("ray", "torch", "numpy", "Pillow")  # whose versions numbers and protocols depend on
STAGES = (FETCH, DECODE, MODELS, THUMBNAILS)
ROW = pa.struct(
    [
        ("row", pa.int64()),
        ("name", pa.large_string()),
        ("size", pa.int64()),
        ("reason", pa.large_string()),  # why it cannot be embedded, or null
        ("changed", pa.bool_()),  # whether the reason is that the object changed; null if embedded
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
PACK = pa.schema(
    [
        ("rows", pa.list_(ROW)),
        ("pixels", pa.list_(pa.large_binary())),
        ("clip_inputs", pa.list_(pa.large_binary())),
        ("times", pa.list_(pa.float64())),  # of fetch, decode, thumbnails: images and seconds busy
    ]
)


class NotEmbedded(NamedTuple):
    """Why an image has no embedding; `changed` if its object is not the listed one any more."""

    reason: str
    changed: bool = False


class Job(NamedTuple):
    """What preparing images needs to know, the same for the whole run."""

    image_bucket: str
    index_bucket: str
    index_id: str
    max_pixels: int
    pack_images: int
    pack_bytes: int


class Rows:
    """An actor beside the driver: hands out blocks of rows, so that no listing travels as a whole.

    A block is the same however often it is asked for: Ray computes a lost one again.
    """

    def __init__(self, state_path: Path, numbers: np.ndarray, block_rows: int) -> None:
        self._state = State(state_path)
        self._numbers, self._block_rows = numbers, block_rows

    def block(self, number: int) -> list[Row]:
        start = number * self._block_rows
        numbers = self._numbers[start : start + self._block_rows].tolist()
        return self._state.rows(numbers)


def prepare(blocks: pa.Table, rows: Any, job: Job) -> Iterator[pa.Table]:
    """The images of blocks of rows in packs; their thumbnails are in the bucket by then.

    Thumbnails are uploaded here: their bytes then need no way through the object store, and the
    embedder's processor is left to the model. A row is reported only after its vectors come back,
    which is later.

    Raises:
        StorageError: the run cannot go on.
    """
    station = _station(job)
    for number in blocks["id"].to_pylist():
        yield from station.packs(ray.get(rows.block.remote(number)))


class _Loop:
    """An event loop in a thread of its own, for as long as the process lives."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@functools.cache
def _station(job: Job) -> _Station:
    """One for each process: Ray gives a process many tasks, and connections stay open."""
    return _Station(job)


class _Station:
    """Prepares rows in a process of a worker."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loop = _Loop()
        self._preparation = Preparation(
            job.image_bucket,
            job.index_bucket,
            job.index_id,
            decode_workers=1,
            max_pixels=job.max_pixels,
            decoded_pixels=DECODED_PIXELS,
        )
        self._loop.wait_for(self._preparation.__aenter__())
        self._times = self._preparation.times()

    def packs(self, rows: list[Row]) -> Iterator[pa.Table]:
        """The prepared rows, in packs of up to so many images or somewhat more than so many bytes.

        The event loop goes on while Ray takes a pack: no transfer waits for that.
        """
        results = self._prepared(rows)
        pack: list[tuple[Row, Prepared | NotEmbedded]] = []
        try:
            while (result := self._loop.wait_for(_next(results))) is not None:
                pack.append(result)
                size = sum(p.pixels.nbytes for _, p in pack if isinstance(p, Prepared))
                if len(pack) >= self._job.pack_images or size >= self._job.pack_bytes:
                    yield packed(pack, self._new_times())
                    pack = []
            if pack:
                yield packed(pack, self._new_times())
        finally:
            self._loop.wait_for(results.aclose())

    def _new_times(self) -> list[StageTime]:
        before, self._times = self._times, self._preparation.times()
        return [
            StageTime(new.name, new.images - old.images, new.busy_s - old.busy_s)
            for old, new in zip(before, self._times, strict=True)
        ]

    async def _prepared(
        self, rows: list[Row]
    ) -> AsyncGenerator[tuple[Row, Prepared | NotEmbedded], None]:
        """Rows as they are done, with their pixels or with the reason why there are none."""
        results: asyncio.Queue[Any] = asyncio.Queue(PREPARED_AT_ONCE)
        left = iter(rows)
        tasks = [asyncio.create_task(self._travel(left, results)) for _ in range(FETCHED_AT_ONCE)]
        try:
            for _ in rows:
                result = await results.get()
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _travel(self, rows: Iterator[Row], results: asyncio.Queue[Any]) -> None:
        try:
            for row in rows:
                try:
                    async with self._preparation.prepared(row) as prepared:
                        await self._preparation.upload_thumbnail(row, prepared.thumbnail)
                        await results.put((row, prepared._replace(thumbnail=b"")))
                except (BadImage, ObjectUnusable) as error:
                    changed = isinstance(error, ObjectChanged)
                    await results.put((row, NotEmbedded(str(error), changed)))
        except Exception as error:
            await results.put(error)


async def _next(results: AsyncIterator[Any]) -> Any:
    return await anext(results, None)


def packed(images: list[tuple[Row, Prepared | NotEmbedded]], times: list[StageTime]) -> pa.Table:
    """A table of one row: these images, and what the stages did for them."""
    rows, pixels, clip_inputs = [], [], []
    for row, prepared in images:
        described = {"row": row.row, "name": row.listed.name, "size": row.listed.size}
        if isinstance(prepared, Prepared):
            described["height"], described["width"] = prepared.pixels.shape[:2]
            pixels.append(prepared.pixels.tobytes())
            assert prepared.clip_input is not None
            clip_inputs.append(prepared.clip_input.tobytes())
        else:
            described |= prepared._asdict()
        rows.append(described)
    numbers = [number for stage in times for number in (stage.images, stage.busy_s)]
    pack = {"rows": rows, "pixels": pixels, "clip_inputs": clip_inputs, "times": numbers}
    return pa.Table.from_pylist([pack], PACK)


class Embed:
    """An actor with both models; its calls run at the same time, and their images share batches."""

    def __init__(self, load: Callable[[], BatchEmbedder]) -> None:
        self._loop = _Loop()
        self._batches = Batches(load())
        self._loop.wait_for(self._batches.__aenter__())
        self._lock = threading.Lock()
        self._time = self._batches.time()

    def __call__(self, packs: pa.Table) -> Iterator[pa.Table]:
        """One row an image: its vectors and class, or the reason why there are none."""
        for i in range(packs.num_rows):
            rows = packs["rows"][i].as_py()
            prepared = _unpacked(rows, packs["pixels"][i].values, packs["clip_inputs"][i].values)
            embedded = self._loop.wait_for(self._embed(prepared))
            fetch, decode, thumbnails = np.reshape(packs["times"][i].as_py(), (3, 2)).tolist()
            times = [fetch, decode, self._new_time(), thumbnails]
            yield results(rows, embedded, [number for pair in times for number in pair])

    async def _embed(self, prepared: list[Prepared | None]) -> list[Embedding | NotEmbedded | None]:
        return await asyncio.gather(*(self._embed_one(one) for one in prepared))

    async def _embed_one(self, prepared: Prepared | None) -> Embedding | NotEmbedded | None:
        if prepared is None:
            return None
        try:
            return await self._batches.embed(prepared)
        except BadImage as error:
            return NotEmbedded(str(error))

    def _new_time(self) -> tuple[int, float]:
        """Images done and seconds busy since the last call."""
        with self._lock:
            before, self._time = self._time, self._batches.time()
            return self._time.images - before.images, self._time.busy_s - before.busy_s


def _unpacked(rows: list[dict[str, Any]], pixels: Any, clip_inputs: Any) -> list[Prepared | None]:
    """The images of a pack, as views of its memory; None for a row that failed."""
    images: list[Prepared | None] = []
    position = 0
    for row in rows:
        if row["reason"] is not None:
            images.append(None)
            continue
        shape = row["height"], row["width"], 3
        image = np.frombuffer(pixels[position].as_buffer(), np.uint8).reshape(shape)
        clip = np.frombuffer(clip_inputs[position].as_buffer(), np.uint8)
        images.append(Prepared(image, clip.reshape(CLIP_SIDE, CLIP_SIDE, 3), b""))
        position += 1
    return images


def results(
    rows: list[dict[str, Any]],
    embedded: Sequence[Embedding | NotEmbedded | None],
    times: list[float],
) -> pa.Table:
    """A table with a line per row; the first line carries what the stages did."""
    reasons = [row["reason"] for row in rows]
    embeddings = []
    for i, outcome in enumerate(embedded):
        if isinstance(outcome, NotEmbedded):
            reasons[i] = outcome.reason
        embeddings.append(outcome if isinstance(outcome, Embedding) else Embedding(ZEROS, 0))
    columns = {
        "row": pa.array([row["row"] for row in rows], pa.int64()),
        "name": pa.array([row["name"] for row in rows], pa.large_string()),
        "size": pa.array([row["size"] for row in rows], pa.int64()),
        "reason": pa.array(reasons, pa.large_string()),
        "changed": pa.array([bool(row["changed"]) for row in rows], pa.bool_()),
        "imagenet_class": pa.array([e.imagenet_class for e in embeddings], pa.int64()),
        "times": pa.array([times, *[None] * (len(rows) - 1)], pa.list_(pa.float64())),
    }
    vectors = zip(*(e.vectors for e in embeddings), strict=True)
    for (name, dimension), column in zip(DIMENSIONS.items(), vectors, strict=True):
        values = pa.array(np.concatenate(column, dtype=np.float32))
        columns[name] = pa.FixedSizeListArray.from_arrays(values, dimension)
    return pa.table(columns)


def read_results(table: pa.Table) -> Iterator[tuple[Row, Embedding | NotEmbedded]]:
    """Each row of `results` with its embedding, or the reason why it has none."""
    arrays = [
        np.concatenate([c.flatten().to_numpy() for c in table[name].chunks]).reshape(-1, dimension)
        for name, dimension in DIMENSIONS.items()
    ]
    columns = ("row", "name", "size", "imagenet_class", "reason", "changed")
    lines = zip(*(table[column].to_pylist() for column in columns), strict=True)
    for i, (number, name, size, imagenet_class, reason, changed) in enumerate(lines):
        row = Row(number, ListedObject(name, size, 0, 0))
        embedding = Embedding([array[i] for array in arrays], imagenet_class)
        yield row, embedding if reason is None else NotEmbedded(reason, changed)


class Loaded(NamedTuple):
    """What an embedder on a worker came to."""

    device: str
    precision: str
    max_pixels: int
    workers: int


def probe(load: Callable[[], Any]) -> Loaded:
    """Load the models once on a worker, to know what auto comes to before the run."""
    embedder = load()
    return Loaded(embedder.device, embedder.precision, embedder.max_pixels, embedder.workers)


def versions() -> dict[str, str]:
    """Of what the numbers depend on, on this machine."""
    found = {"Python": platform.python_version()}
    found.update({package: version(package) for package in PACKAGES})
    code = hashlib.sha256()
    for path in program_files():
        code.update(str(path).encode() + (ROOT / path).read_bytes())
    return {**found, "this program": code.hexdigest()[:12]}
