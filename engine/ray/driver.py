"""The engine on a Ray cluster: its workers embed the pending rows, and the arrays are written here.

Ray Data hands out blocks of rows to actors (worker.py), one per GPU or one per machine. What comes
back goes through the same recorder as on one machine, so resuming and failures are the same. Ray
starts a killed worker again and repeats its blocks.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, UserCodeException
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import ClusterError, IngestError
from common.terminal import count, say
from dataset.arrays import Arrays
from dataset.state.rows import State
from engine.batches import BatchEmbedder
from engine.checkpoint import Recorder
from engine.decode import NotEmbedded
from engine.loading import ModelLoader, ModelOptions
from engine.ray.cluster import Cluster, Pool, key_file
from engine.ray.worker import BlockResult, EmbedBlocks, Loaded, Rows, WorkerModels, probe
from engine.stages import StageTime
from engine.threads import Job

BLOCKS_PER_CALL = 4  # or more, so that all actors end at about the same time
BLOCKS_PER_PASS = 20_000  # that Ray knows at once: 7.4 kB and 1.2 ms each
NO_PROGRESS_S = 300  # without a result: then a pass ends, and the next counts the machines again


class RayPipeline:
    """Embeds the pending rows of a state on a cluster, with what `load` returns there."""

    def __init__(
        self,
        cluster: Cluster,
        choose_pool: Callable[[], Pool],
        state: State,
        recorder: Recorder,
        load: Callable[[], BatchEmbedder],
        job: Job,
    ) -> None:
        """`choose_pool` says which actors fit on the machines that are alive at the moment."""
        self._cluster, self._choose_pool = cluster, choose_pool
        self._state, self._recorder = state, recorder
        self._load, self._job = load, job
        self._actors = choose_pool().size
        self._times: dict[str, list[StageTime]] = {}  # of each actor so far
        self._blocks = 0  # with a result
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
        try:
            await self._recorder.during(self._passes())
        finally:
            with self._recording:
                self._stopped = True

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
            before, failure = self._blocks, None
            try:
                await self._pass_in_thread(numbers)
            except (RayError, UserCodeException, ExecutionTimeoutError) as error:
                failure = error
                if (cause := error_for_user(error)) is not None:
                    raise cause from error
                if isinstance(error, (RayTaskError, UserCodeException)):
                    raise
            await asyncio.to_thread(self._recorder.commit)
            if self._blocks == before:
                raise ClusterError(
                    f"The Ray cluster makes no progress ({failure or 'no results came back'}): "
                    "look at `ray status` on one of its nodes, then run the same command again."
                ) from failure

    def _pending(self) -> np.ndarray:
        """The next rows to embed. A row whose image changed is left to the next run."""
        most = BLOCKS_PER_PASS * self._choose_pool().block_rows
        numbers = self._state.pending_numbers(most + len(self._changed))
        return np.setdiff1d(numbers, self._changed, assume_unique=True)[:most]

    async def _pass_in_thread(self, numbers: np.ndarray) -> None:
        """As asyncio.to_thread(self._pass), but the end of the process does not wait for it."""
        outcome: Future[None] = Future()
        outcome.set_running_or_notify_cancel()

        def work() -> None:
            try:
                self._pass(numbers)
                outcome.set_result(None)
            except BaseException as error:
                outcome.set_exception(error)

        thread = threading.Thread(target=work, name="ray results", daemon=True)
        self._cluster.reader = thread
        thread.start()
        waiting = asyncio.wrap_future(outcome)
        try:
            await waiting
        finally:
            if not waiting.cancelled():
                thread.join()

    def _pass(self, numbers: np.ndarray) -> None:
        recorded: set[int] = set()  # a repeated task can bring a block again
        for done in self._results(numbers):
            with self._recording:
                if self._stopped:
                    return
                if done.block not in recorded:
                    recorded.add(done.block)
                    self._record(done)

    def _results(self, numbers: np.ndarray) -> Iterator[BlockResult]:
        """What becomes of the rows, in blocks, in the order in which they arrive."""
        pool = self._choose_pool()
        per_call = len(numbers) // (BLOCKS_PER_CALL * pool.size * pool.calls)
        block_rows = max(1, min(pool.block_rows, per_call))
        blocks = -(-len(numbers) // block_rows)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        key = None if self._cluster.is_local else key_file()
        rows = (
            ray.remote(Rows)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
            .remote(self._state.path.absolute(), ray.put(numbers), block_rows, key)
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True  # else its text alone comes back
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
        dataset = ray.data.from_items(list(range(blocks)), override_num_blocks=blocks).map_batches(
            EmbedBlocks,
            batch_size=1,  # the number of a block
            compute=ray.data.ActorPoolStrategy(
                size=pool.size,
                max_concurrent_calls_per_actor=pool.calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            fn_constructor_kwargs={"load": self._load, "job": self._job, "rows": rows},
        )
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(pickle.loads, batch["done"])

    def _record(self, done: BlockResult) -> None:
        self._blocks += 1
        before = self._times.get(done.worker, done.times)
        self._times[done.worker] = max(before, done.times, key=lambda times: times[0].images)
        for row, result in done.results:
            if isinstance(result, NotEmbedded) and result.changed:
                self._changed.append(row.row)
            self._recorder.record(row, result)


def error_for_user(error: BaseException) -> IngestError | None:
    """The error for the user that a worker raised, found inside Ray's own errors, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(cause := getattr(seen, "cause", None), IngestError):
            return cause
        if isinstance(seen, IngestError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


async def embed_on_ray(
    state: State,
    arrays: Arrays,
    models: ModelOptions,
    clip_directory: Path,
    *,
    address: str | None,
    image_bucket: str,
    index_bucket: str,
    make_loader: Callable[[ModelOptions], ModelLoader],
    times: list[StageTime],
) -> None:
    """Embed every pending image on the cluster at `address`, or on one of this machine.

    `make_loader` makes what loads the models on the workers; `times` becomes what each stage did.

    Raises:
        IngestError: there is no cluster, its versions differ, or what stopped the run.
    """
    cluster = Cluster(address)
    await asyncio.to_thread(cluster.__enter__)
    try:
        await asyncio.to_thread(cluster.check_versions)
        pool = cluster.pool(models.device)
        options = replace(models, device="cuda" if pool.gpus else "cpu")
        sent = await asyncio.to_thread(
            WorkerModels.send, options, clip_directory, make_loader, to_others=not cluster.is_local
        )
        loaded = await asyncio.to_thread(_probe, pool, sent)
        state.set_options({"precision": loaded.precision})
        job = Job(
            image_bucket=image_bucket,
            index_bucket=index_bucket,
            index_id=state.index_id,
            max_pixels=loaded.max_pixels,
            with_clip_inputs=not loaded.makes_clip_inputs,
            writers=pool.size,
        )
        pipeline = RayPipeline(
            cluster,
            lambda: cluster.pool(models.device),
            state,
            Recorder(state, arrays),
            sent.in_precision(loaded.precision).load,  # one for all rows
            job,
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


def _probe(pool: Pool, models: WorkerModels) -> Loaded:
    """What a worker loads. Raises what loading raises there."""
    task = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_calls=1)(probe)
    try:
        loaded: Loaded = ray.get(task.remote(models.load))
    except RayError as error:
        if (cause := error_for_user(error)) is not None:
            raise cause from error
        raise
    return loaded
