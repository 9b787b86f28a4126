"""The engine on a Ray cluster: its workers embed the pending rows, and the arrays are written here.

Ray Data hands out blocks of rows to actors (worker.py), one per GPU or one per machine. What comes
back goes through the same recorder as on one machine, so resuming and failures are the same. Ray
starts a killed worker again and repeats its blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import ClusterError, IngestError
from common.process import in_daemon_thread
from common.terminal import count, say
from dataset.arrays import Arrays
from dataset.state import State
from engine.batches import BatchEmbedder
from engine.checkpoint import Recorder
from engine.decode import NotEmbedded
from engine.loading import ModelLoader, ModelOptions
from engine.ray import worker
from engine.ray.cluster import Cluster, Pool, key_file
from engine.stages import StageTime
from engine.threads import Job
from weights.clip import CLIP_FILES

BLOCKS_AT_ONCE = 4  # in one actor, so that its models never wait for the next one
BLOCKS_IN_TURN = 4  # or more, in each of these places: so all actors end at about the same time
BLOCKS_PER_PASS = 20_000  # that Ray knows at once: 7 kB each, and 1 ms before the first begins
NO_PROGRESS_S = 300  # without a result: then a pass ends, and the next counts the machines again


@dataclass(kw_only=True)
class RayPipeline:
    """Embeds the pending rows of a state on a cluster."""

    cluster: Cluster
    choose_pool: Callable[[], Pool]  # the actors that fit on the machines that are alive now
    state: State
    recorder: Recorder
    load: Callable[[], BatchEmbedder]  # called on the workers
    job: Job

    def __post_init__(self) -> None:
        self._actors = self.choose_pool().size
        self._times: dict[str, list[StageTime]] = {}  # of each actor so far
        self._recorded: set[int] = set()  # blocks of this pass: a repeated task can bring one again
        self._changed: list[int] = []  # rows that stay pending
        self._recording = threading.Lock()
        self._stopped = False

    async def run(self) -> None:
        """Embed every pending row. Results that are here when this stops are recorded.

        Raises:
            StorageError: storage refuses or cannot be reached.
            ImagesChanged: images were replaced meanwhile; everything else is done.
            ClusterError: the cluster makes no progress any more.
            OSError, sqlite3.OperationalError: the disk is full or fails.
        """
        await self.recorder.during(self._passes())

    def times(self) -> list[StageTime]:
        """What each stage did, in the order of an image's path; the mean of all actors."""
        return [
            StageTime(
                stage[0].name,
                sum(time.images for time in stage),
                sum(time.busy_s for time in stage) / self._actors,
            )
            for stage in zip(*self._times.values(), strict=True)
        ]

    async def _passes(self) -> None:
        """Pass after pass over the pending rows. One is enough unless a machine is lost for good.

        Ray keeps the blocks of a lost machine for a new one like it, and waits. The next pass uses
        the machines that are left.
        """
        while len(numbers := self._pending()):
            self._recorded, failure = set(), "no results came back"
            try:
                await self._pass_in_thread(numbers)
            except (RayError, ExecutionTimeoutError) as error:
                failure = str(error).split("\n")[0]
            await asyncio.to_thread(self.recorder.commit)
            if not self._recorded:
                raise ClusterError(
                    f"The Ray cluster makes no progress ({failure}): look at `ray status` on one "
                    "of its nodes, then run the same command again."
                )

    def _pending(self) -> np.ndarray:
        """The next rows to embed. A row whose image changed is left to the next run."""
        most = BLOCKS_PER_PASS * self.choose_pool().block_rows
        numbers = self.state.pending_numbers(most + len(self._changed))
        return np.setdiff1d(numbers, self._changed, assume_unique=True)[:most]

    async def _pass_in_thread(self, numbers: np.ndarray) -> None:
        """As asyncio.to_thread(self._pass), but the end of the process does not wait for it."""
        self.cluster.reader = in_daemon_thread("ray results", partial(self._pass, numbers))
        waiting = asyncio.wrap_future(self.cluster.reader)
        try:
            await waiting
        finally:
            if waiting.cancelled():
                with self._recording:
                    self._stopped = True

    def _pass(self, numbers: np.ndarray) -> None:
        with errors_of_workers():
            for done in self._results(numbers):
                with self._recording:
                    if self._stopped:
                        return
                    if done.block not in self._recorded:
                        self._record(done)

    def _results(self, numbers: np.ndarray) -> Iterator[worker.BlockResult]:
        """What becomes of the rows, in blocks, in the order in which they arrive."""
        pool = self.choose_pool()
        share = len(numbers) // (pool.size * BLOCKS_AT_ONCE * BLOCKS_IN_TURN)
        block_rows = max(1, min(pool.block_rows, share))
        blocks = -(-len(numbers) // block_rows)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        key = None if self.cluster.is_local else key_file()
        rows = (
            ray.remote(worker.Rows)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
            .remote(self.state.path.absolute(), ray.put(numbers), block_rows, key)
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True  # else its text alone comes back
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
        dataset = ray.data.from_items(list(range(blocks)), override_num_blocks=blocks).map_batches(
            worker.EmbedBlocks,
            batch_size=1,  # the number of a block
            compute=ray.data.ActorPoolStrategy(
                size=pool.size,
                max_concurrent_calls_per_actor=BLOCKS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            fn_constructor_kwargs={"load": self.load, "job": self.job, "rows": rows},
        )
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(pickle.loads, batch["done"])

    def _record(self, done: worker.BlockResult) -> None:
        self._recorded.add(done.block)
        self._times[done.worker] = done.times
        for row, result in done.results:
            if isinstance(result, NotEmbedded) and result.changed:
                self._changed.append(row.row)
            self.recorder.record(row, result)


@contextlib.contextmanager
def errors_of_workers() -> Iterator[None]:
    """Raise the error for the user that a worker raised; of a bug there, its traceback as text."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, IngestError) else RuntimeError(str(error))) from None


async def embed_on_ray(
    state: State,
    arrays: Arrays,
    models: ModelOptions,
    *,
    address: str | None,
    image_bucket: str,
    index_bucket: str,
    make_loader: Callable[[ModelOptions], ModelLoader],
    times: list[StageTime],
) -> None:
    """Embed every pending image on the cluster at `address`, or on one of this machine.

    The weights that `models` names are on this machine, CLIP's in a directory.
    `make_loader` makes what loads the models on the workers; `times` becomes what each stage did.

    Raises:
        IngestError: there is no cluster, its versions differ, or what stopped the run.
    """
    cluster = Cluster(address)
    await asyncio.to_thread(cluster.__enter__)
    # Again: Ray's core has put a handler before it, which prints the stack of every thread.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    try:
        await asyncio.to_thread(cluster.check_versions)
        pool = cluster.pool(models.device)
        send = partial(worker.WeightFiles.send, to_others=not cluster.is_local)
        resnet = await asyncio.to_thread(send, [models.resnet_weights])
        clip = await asyncio.to_thread(
            send, [Path(models.clip_weights, name) for name in CLIP_FILES]
        )

        def load(precision: str) -> Callable[[], BatchEmbedder]:
            options = replace(models, device="cuda" if pool.gpus else "cpu", precision=precision)
            return partial(worker.load_models, make_loader, options, resnet, clip)

        probe = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_calls=1)(worker.probe)
        with errors_of_workers():
            loaded = await asyncio.to_thread(ray.get, probe.remote(load(models.precision)))
        state.set_options({"precision": loaded.precision})  # one for all rows
        job = Job(
            image_bucket=image_bucket,
            index_bucket=index_bucket,
            index_id=state.index_id,
            max_pixels=loaded.max_pixels,
            with_clip_inputs=not loaded.makes_clip_inputs,
            writers=pool.size,
        )
        pipeline = RayPipeline(
            cluster=cluster,
            choose_pool=lambda: cluster.pool(models.device),
            state=state,
            recorder=Recorder(state, arrays),
            load=load(loaded.precision),
            job=job,
        )
        say(
            f"Embedding on {pool.size:,} x {loaded.device} in {loaded.precision}, "
            f"by Ray on {count(len(cluster.nodes()), 'machine')}."
        )
        try:
            await pipeline.run()
        finally:
            times[:] = pipeline.times()
    finally:
        await asyncio.to_thread(cluster.__exit__)
