"""What runs on the workers of a Ray cluster: the pipeline of one machine, in an actor.

An actor gets the numbers of blocks of rows, and returns what became of each row: 14 kB of vectors
per image. Images, pixels and thumbnails stay between its machine and the bucket. This file also has
what a worker is given to begin with: the rows of a block, the Google key, the weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import pickle
import socket
import sys
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray

from common.errors import ClusterError
from dataset.state import Row, State
from engine.batches import BatchEmbedder
from engine.decode import Embedded, NotEmbedded
from engine.loading import ModelLoader, ModelOptions
from engine.pipeline import Pipeline
from engine.ray.cluster import KEY_VARIABLE
from engine.stages import StageTime
from engine.threads import Job
from weights.clip import digest

DECODERS_PER_CPU = 1.5  # as on one machine: some of them wait for the interpreter

T = TypeVar("T")


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


class BlockResult(NamedTuple):
    """What became of the rows of one block."""

    block: int
    results: list[tuple[Row, Embedded | NotEmbedded]]
    worker: str  # the actor, one name per start of it,
    times: list[StageTime]  # and what its stages did since then


class EmbedBlocks:
    """An actor with both models and one pipeline, through which the rows of all blocks pass."""

    def __init__(self, load: Callable[[], BatchEmbedder], job: Job, rows: Any) -> None:
        """`rows` is the actor Rows."""
        self._rows, self._name = rows, uuid.uuid4().hex
        self._queue: deque[Row] = deque()  # rows that the pipeline has not taken yet
        self._waiting: dict[int, asyncio.Future[Embedded | NotEmbedded]] = {}  # by row
        self._running: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()  # for as long as the process lives
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._broken: Exception | None = None
        try:
            self._open(load, job)
        except Exception as error:  # of an error here, Ray would keep the text alone
            self._broken = error

    def _open(self, load: Callable[[], BatchEmbedder], job: Job) -> None:
        if (key := ray.get(self._rows.key.remote())) is not None:
            use_key(key)
        embedder = load()
        self._pipeline = Pipeline(
            job,
            embedder,
            lambda row, result: self._waiting.pop(row.row).set_result(result),
            decode_workers=decode_workers(),
            in_processes=embedder.device != "cpu",
        )
        self._wait_for(self._pipeline.__aenter__())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """Embed the rows of one block and upload their thumbnails; returns a pickled BlockResult.

        Ray calls it in several threads at once, so that the models never wait between two blocks.

        Raises:
            StorageError, ShortageError: the run cannot go on.
            WeightsError, ClusterError: the models cannot be loaded here.
        """
        if self._broken:
            raise self._broken
        (number,) = batch["item"].tolist()
        rows = ray.get(self._rows.block.remote(number))
        results = list(zip(rows, self._wait_for(self._embed(rows)), strict=True))
        done = BlockResult(number, results, self._name, self._pipeline.times())
        return {"done": [pickle.dumps(done)]}

    def _wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _embed(self, rows: list[Row]) -> list[Embedded | NotEmbedded]:
        """What becomes of these rows."""
        waiting = {row.row: self._loop.create_future() for row in rows}
        self._waiting |= waiting
        self._queue.extend(rows)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await asyncio.gather(*waiting.values())

    async def _run(self) -> None:
        """Let the pipeline run as long as rows come. An error reaches all who wait."""
        try:
            while self._queue:
                await self._pipeline.run(self._queued(), sys.maxsize)  # until none is queued
        except Exception as error:
            self._queue.clear()
            for waiting in self._waiting.values():
                waiting.set_exception(error)
            self._waiting.clear()

    def _queued(self) -> Iterator[Row]:
        while self._queue:
            yield self._queue.popleft()


def decode_workers() -> int:
    """How many images this actor decodes at once: the actors of a node with GPUs share its CPUs."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    actors = node["GPU"] if ray.get_gpu_ids() else 1
    return max(1, math.floor(DECODERS_PER_CPU * node.get("CPU", 1) / actors))


def use_key(key: bytes) -> None:
    """Let Google's libraries in this process use a key that is kept in memory only.

    They read a key from a file. This file has no name in any directory, and ends with the process;
    processes that it starts can read it too.
    """
    file = os.memfd_create("google-key")
    os.write(file, key)
    os.environ[KEY_VARIABLE] = f"/proc/{os.getpid()}/fd/{file}"


class WeightFiles(NamedTuple):
    """The weights files of one model, all in one directory on the driver.

    They travel through Ray's object store, and only to machines that do not have the same files in
    the same place: a shared file system saves the transfer.
    """

    directory: Path
    digests: dict[str, str]  # file name -> SHA-256
    contents: dict[str, Any]  # file name -> Ray object; empty where all workers have these files

    @classmethod
    def send(cls, paths: list[Path], *, to_others: bool) -> WeightFiles:
        """Files of one directory for the workers, which are on other machines or on this one."""
        return cls(
            paths[0].absolute().parent,
            {path.name: digest(path) for path in paths},
            {path.name: ray.put(np.fromfile(path, np.uint8)) for path in paths if to_others},
        )

    def on_this_machine(self) -> Path:
        """The directory that holds the files on a worker; they are written where they are missing.

        Raises:
            ClusterError: a file is damaged or has changed.
        """
        directory = self.directory
        if self.contents and not self._are_in(directory):
            key = hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()
            directory = Path(tempfile.gettempdir(), f"forager-weights-{os.getuid()}", key)
            if not self._are_in(directory):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                for name, content in self.contents.items():
                    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as temporary:
                        temporary.write(memoryview(ray.get(content)))
                    os.replace(temporary.name, directory / name)
        if not self._are_in(directory):
            raise ClusterError(
                f"The weights in {directory} on {socket.gethostname()} are damaged, or have "
                "changed: check that disk, then run the same command again."
            )
        return directory

    def _are_in(self, directory: Path) -> bool:
        with contextlib.suppress(OSError):
            return all(digest(directory / n) == d for n, d in self.digests.items())
        return False


def load_models(
    make_loader: Callable[[ModelOptions], ModelLoader],
    options: ModelOptions,
    resnet: WeightFiles,
    clip: WeightFiles,
) -> BatchEmbedder:
    """Load both models on a worker. Raises ClusterError, and what ModelLoader.load raises."""
    # Ray sets it to the CPUs that are reserved. A model shall use all CPUs, as without Ray.
    os.environ.pop("OMP_NUM_THREADS", None)
    path = resnet.on_this_machine() / options.resnet_weights.name
    options = replace(options, resnet_weights=path, clip_weights=str(clip.on_this_machine()))
    return make_loader(options).load(options.precision)


class Loaded(NamedTuple):
    """What the driver needs to know of the embedder that a worker loads."""

    device: str
    precision: str
    max_pixels: int
    makes_clip_inputs: bool


def probe(load: Callable[[], Any]) -> Loaded:
    """Load the models once, to learn before the run what `auto` chooses on a worker."""
    embedder = load()
    return Loaded(*(getattr(embedder, field) for field in Loaded._fields))
