"""The engine on a Ray cluster: its workers embed the pending rows, and the arrays are written here.

Ray Data moves rows through two stages (workers.py) and bounds what is under way. Results go through
the same recorder as on one machine, so resuming and failures are the same. Ray starts a killed
worker again and repeats its task.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, UserCodeException
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import ClusterError, IngestError
from dataset.arrays import Arrays
from dataset.state import State
from engine.checkpoint import Recorder
from engine.decode import Embedded, NotEmbedded
from engine.loading import ModelLoader, ModelOptions
from engine.ray import workers
from engine.ray.cluster import Cluster, Pool, key_file
from engine.ray.tables import read_results
from engine.ray.worker_files import WorkerModels
from engine.stages import MODELS, StageTime

PREPARE_CPUS = 1  # of a task that fetches and decodes; as ray.data.range, with which Ray joins it
BLOCK_ROWS = 960  # largest block of rows of a task: about 10 s of work, lost with a killed worker
BLOCKS_PER_SLOT = 4  # or more, so that the last tasks end at about the same time
ROWS_PER_PASS = 20_000_000  # 21,000 tasks that Ray knows at once: 7.4 kB and 1.2 ms each
BLOCK_BYTES = 2 << 20  # smaller than a pack: so each pack becomes a block of its own
STORE_BYTES = 256 << 20  # smallest limit on pixels in the object store
NO_PROGRESS_S = 300  # after so long without a result, a pass ends and the nodes are counted again


class RayPipeline:
    """Embeds the pending rows of a state on a cluster, with the models that `load` returns there.

    `choose_pool` says which embedders fit on the nodes that are alive at the moment; `loaded`
    describes one of them.
    """

    def __init__(
        self,
        cluster: Cluster,
        choose_pool: Callable[[], Pool],
        state: State,
        recorder: Recorder,
        load: Callable[[], Any],
        loaded: workers.Loaded,
        *,
        image_bucket: str,
        index_bucket: str,
        no_progress_s: float = NO_PROGRESS_S,
    ) -> None:
        pool = choose_pool()
        self._cluster, self._choose_pool = cluster, choose_pool
        self._state, self._recorder, self._load = state, recorder, load
        self._no_progress_s = no_progress_s
        self._key_file = None if cluster.is_local else key_file()
        self._job = workers.Job(
            image_bucket,
            index_bucket,
            state.index_id,
            loaded.max_pixels,
            not loaded.makes_clip_inputs,
            pool.pack_images,
            pool.pack_bytes,
        )
        left = max(0.0, cluster.cpus() - pool.size * pool.cpus)
        self._prepare_slots = max(1, int(left / PREPARE_CPUS))
        self._slots = dict.fromkeys(workers.STAGES, self._prepare_slots)
        self._slots[MODELS] = pool.size * loaded.workers
        self._times = np.zeros((len(workers.STAGES), 2))  # images, seconds busy
        self._reported = 0  # rows with a result
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
        """What each stage did, in the order of an image's path."""
        return [
            StageTime(name, int(images), busy_s / self._slots[name])
            for name, (images, busy_s) in zip(workers.STAGES, self._times, strict=True)
        ]

    async def _passes(self) -> None:
        """Pass after pass over the pending rows. One is enough unless a node is lost for good.

        Ray keeps the tasks of a lost node for a new node like it, and waits. The next pass uses the
        nodes that are left.
        """
        while len(numbers := self._pending()):
            before, failure = self._reported, None
            try:
                await self._pass_in_thread(numbers)
            except (RayError, UserCodeException, ExecutionTimeoutError) as error:
                failure = error
                if (cause := click_error(error)) is not None:
                    raise cause from error
                if isinstance(error, (RayTaskError, UserCodeException)):
                    raise
            await asyncio.to_thread(self._recorder.commit)
            if self._reported == before:
                raise ClusterError(
                    f"The Ray cluster makes no progress ({failure or 'no results came back'}): "
                    "look at `ray status` on one of its nodes, then run the same command again."
                ) from failure

    def _pending(self) -> np.ndarray:
        """The next rows to embed. A row whose image changed is left to the next run."""
        numbers = self._state.pending_numbers(ROWS_PER_PASS + len(self._changed))
        return np.setdiff1d(numbers, self._changed, assume_unique=True)[:ROWS_PER_PASS]

    async def _pass_in_thread(self, numbers: np.ndarray) -> None:
        """As asyncio.to_thread(self._pass), but the end of the process does not wait for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

        def work() -> None:
            error: BaseException | None = None
            try:
                self._pass(numbers)
            except BaseException as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, error)

        thread = threading.Thread(target=work, name="ray results", daemon=True)
        self._cluster.reader = thread
        thread.start()
        try:
            await done
        finally:
            if not done.cancelled():
                thread.join()

    def _pass(self, numbers: np.ndarray) -> None:
        per_slot = len(numbers) // (BLOCKS_PER_SLOT * self._prepare_slots)
        block_rows = max(1, min(BLOCK_ROWS, per_slot))
        waiting = np.ones(len(numbers), bool)
        for table in self._results(numbers, block_rows):
            with self._recording:
                if self._stopped:
                    return
                self._record(table, numbers, waiting)

    def _results(self, numbers: np.ndarray, block_rows: int) -> Any:
        """The tables of results, in the order in which they arrive."""
        blocks = -(-len(numbers) // block_rows)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        rows = (
            ray.remote(workers.Rows)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
            .remote(self._state.path.absolute(), ray.put(numbers), block_rows, self._key_file)
        )
        pool = self._choose_pool()
        self._configure(pool)
        embedders = ray.data.ActorPoolStrategy(
            size=pool.size,
            max_concurrent_calls_per_actor=pool.calls,
            enable_true_multi_threading=True,
        )
        return (
            ray.data.range(blocks, override_num_blocks=blocks)
            .map_batches(
                workers.prepare,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=PREPARE_CPUS,
                fn_kwargs={"rows": rows, "job": self._job},
            )
            .map_batches(
                workers.EmbedPacks,
                batch_size=1,  # of packs
                batch_format="pyarrow",
                compute=embedders,
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                fn_constructor_kwargs={"load": self._load},
            )
            .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )

    def _configure(self, pool: Pool) -> None:
        """Set Ray Data's limits: pixels under way are four times what the embedders hold."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        context.execution_no_progress_timeout_s = self._no_progress_s
        held = 4 * pool.size * pool.calls * pool.pack_bytes
        context.execution_options.resource_limits = ray.data.ExecutionResources(
            object_store_memory=max(STORE_BYTES, held)
        )

    def _record(self, table: Any, numbers: np.ndarray, waiting: np.ndarray) -> None:
        """Record the rows of a table, each once: a repeated task can bring a row again."""
        for pairs in table["times"].to_pylist():
            if pairs:
                self._times += np.reshape(pairs, self._times.shape)
        for row, width, height, is_rotated, outcome in read_results(table):
            position = int(np.searchsorted(numbers, row.row))
            if not waiting[position]:
                continue
            waiting[position] = False
            self._reported += 1
            if isinstance(outcome, NotEmbedded) and outcome.changed:
                self._changed.append(row.row)
            if isinstance(outcome, NotEmbedded):
                self._recorder.record(row, outcome)
            else:
                assert width is not None and height is not None
                embedded = Embedded(
                    embedding=outcome, width=width, height=height, is_rotated=is_rotated
                )
                self._recorder.record(row, embedded)


def click_error(error: BaseException) -> IngestError | None:
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
    say: Callable[[str], None],
    make_loader: Callable[[ModelOptions], ModelLoader] = ModelLoader,
    times: list[StageTime],
    no_progress_s: float = NO_PROGRESS_S,
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
        # All rows get one precision: what `auto` chose on one worker.
        sent = sent._replace(options=replace(options, precision=loaded.precision))
        state.set_options({"precision": loaded.precision})
        pipeline = RayPipeline(
            cluster,
            lambda: cluster.pool(models.device),
            state,
            Recorder(state, arrays),
            sent.load,
            loaded,
            image_bucket=image_bucket,
            index_bucket=index_bucket,
            no_progress_s=no_progress_s,
        )
        nodes = len(cluster.nodes())
        say(
            f"Embedding on {pool.size:,} x {loaded.device} in {loaded.precision}, "
            f"by Ray on {nodes:,} {'machine' if nodes == 1 else 'machines'}."
        )
        try:
            await pipeline.run()
        finally:
            times[:] = pipeline.times()
    finally:
        await asyncio.to_thread(cluster.__exit__)


def _probe(pool: Pool, models: WorkerModels) -> workers.Loaded:
    """What a worker loads. Raises what loading raises there."""
    task = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_calls=1)(workers.probe)
    try:
        loaded: workers.Loaded = ray.get(task.remote(models.load))
    except RayError as error:
        if (cause := click_error(error)) is not None:
            raise cause from error
        raise
    return loaded
