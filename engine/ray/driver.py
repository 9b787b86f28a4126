"""The stream on a Ray cluster: the stages of pipeline.py on its workers, the index written here.

Ray Data moves rows through two stages (workers.py) and bounds what is on the way; what comes
back goes through the same recorder as on one machine, so resuming, failures and all that follows
are the same. Ray starts a killed worker again and repeats its task.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, UserCodeException
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dataset.arrays import Arrays
from dataset.rows import State
from engine.checkpoint import Recorder
from engine.loading import ModelOptions
from engine.ray import workers
from engine.ray.cluster import Cluster, ClusterError, Pool, ShippedModels, ship
from engine.stages import MODELS, StageTime
from weights.clip import CLIP_FILES

PREPARE_CPUS = 1  # of a task that fetches and decodes; as ray.data.range, which it is joined with
BLOCK_ROWS = 960  # at most, of a task: some 10 s of work, which a killed worker costs
BLOCKS_A_SLOT = 4  # at least, so that the last blocks end together
ROWS_A_PASS = 20_000_000  # 21,000 tasks known to Ray at once: 7.4 kB and 1.2 ms each to begin
BLOCK_BYTES = 2 << 20  # smaller than a pack: each pack becomes a block of its own
STORE_BYTES = 256 << 20  # of the object store, at least
NO_PROGRESS_S = 300  # a pass in which nothing moves for so long waits for a machine that is lost


class RayPipeline:
    """Embeds the pending rows of a state on a cluster, with what `load` returns on its workers.

    `choose_pool` says which embedders the machines of the moment can have.
    """

    def __init__(
        self,
        cluster: Cluster,
        choose_pool: Callable[[], Pool],
        state: State,
        arrays: Arrays,
        load: Callable[[], Any],
        *,
        image_bucket: str,
        index_bucket: str,
        max_pixels: int,
        embedder_workers: int = 1,
    ) -> None:
        pool = choose_pool()
        self._cluster, self._choose_pool = cluster, choose_pool
        self._state, self._load = state, load
        self._recorder = Recorder(state, arrays)
        self._job = workers.Job(
            image_bucket,
            index_bucket,
            state.index_id,
            max_pixels,
            pool.pack_images,
            pool.pack_bytes,
        )
        left = max(0.0, cluster.cpus() - pool.size * pool.cpus)
        self._prepare_slots = max(1, int(left / PREPARE_CPUS))
        self._slots = dict.fromkeys(workers.STAGES, self._prepare_slots)
        self._slots[MODELS] = pool.size * embedder_workers
        self._times = np.zeros((len(workers.STAGES), 2))  # images, seconds busy
        self._reported = 0
        self._changed: set[int] = set()  # rows whose objects changed after they were listed
        self._taking = threading.Lock()
        self._stopped = False

    async def run(self) -> None:
        """Embed every pending row; what came back when this stops, however, is recorded.

        Raises:
            StorageError: storage refuses or cannot be reached.
            ClusterError: the cluster makes no progress any more.
            OSError, sqlite3.OperationalError: the disk is full or fails.
        """
        try:
            await self._recorder.during(self._passes())
        finally:
            with self._taking:
                self._stopped = True

    def times(self) -> list[StageTime]:
        """What each stage did, in the order of an image's path."""
        return [
            StageTime(name, int(images), busy_s / self._slots[name])
            for name, (images, busy_s) in zip(workers.STAGES, self._times, strict=True)
        ]

    async def _passes(self) -> None:
        """Pass after pass over what is pending: one is enough where no machine is lost for good.

        Ray lets what a lost machine had in work wait for another such machine; the next pass does
        with those that are left.
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
                    f"The Ray cluster makes no progress ({failure or 'nothing came back'}): look "
                    "at `ray status` on a node of it, then run the same command again."
                ) from failure

    def _pending(self) -> np.ndarray:
        """The rows of the next pass: changed objects stay pending, for another run."""
        numbers = self._state.pending_numbers(ROWS_A_PASS + len(self._changed))
        return numbers[~np.isin(numbers, list(self._changed))][:ROWS_A_PASS]

    async def _pass_in_thread(self, numbers: np.ndarray) -> None:
        """As asyncio.to_thread(self._pass), but the end of the process does not wait for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def tell(error: BaseException | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

        def work() -> None:
            error: BaseException | None = None
            try:
                self._pass(numbers)
            except BaseException as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, error)

        thread = threading.Thread(target=work, name="ray results", daemon=True)
        self._cluster.reading = thread
        thread.start()
        try:
            await done
        finally:
            if not done.cancelled():
                thread.join()

    def _pass(self, numbers: np.ndarray) -> None:
        block_rows = max(1, min(BLOCK_ROWS, len(numbers) // (BLOCKS_A_SLOT * self._prepare_slots)))
        waiting = np.ones(len(numbers), bool)
        for table in self._results(numbers, block_rows):
            with self._taking:
                if self._stopped:
                    return
                self._take(table, numbers, waiting)

    def _results(self, numbers: np.ndarray, block_rows: int) -> Any:
        """The tables that come back, as they come."""
        blocks = -(-len(numbers) // block_rows)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        rows = (
            ray.remote(workers.Rows)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
            .remote(self._state.path.absolute(), ray.put(numbers), block_rows)
        )
        pool = self._choose_pool()
        _configure(pool)
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
                workers.Embed,
                batch_size=1,  # of packs
                batch_format="pyarrow",
                compute=embedders,
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                fn_constructor_kwargs={"load": self._load},
            )
            .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )

    def _take(self, table: Any, numbers: np.ndarray, waiting: np.ndarray) -> None:
        """Record the rows of a table, each once: a repeated task may bring one again."""
        for pairs in table["times"].to_pylist():
            if pairs:
                self._times += np.reshape(pairs, self._times.shape)
        for row, outcome in workers.read_results(table):
            position = int(np.searchsorted(numbers, row.row))
            if not waiting[position]:
                continue
            waiting[position] = False
            self._reported += 1
            if isinstance(outcome, workers.NotEmbedded) and outcome.changed:
                self._changed.add(row.row)
                self._recorder.changed(row, outcome.reason)
            elif isinstance(outcome, workers.NotEmbedded):
                self._recorder.failed(row, outcome.reason)
            else:
                self._recorder.done(row, outcome)


def _configure(pool: Pool) -> None:
    """Ray Data's own bounds: what is on the way is four times what the embedders hold."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    held = 4 * pool.size * pool.calls * pool.pack_bytes
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        object_store_memory=max(STORE_BYTES, held)
    )


def click_error(error: BaseException) -> click.ClickException | None:
    """What a worker raised for the user, out of Ray's wrappings, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(cause := getattr(seen, "cause", None), click.ClickException):
            return cause
        if isinstance(seen, click.ClickException):
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
) -> list[StageTime]:
    """Embed every pending image on the cluster at `address`, or on one of this machine.

    Raises:
        click.ClickException: there is no cluster, its versions differ, or what stopped the run.
    """
    cluster = Cluster(address)
    await asyncio.to_thread(cluster.__enter__)
    try:
        await asyncio.to_thread(cluster.check_versions)
        pool = cluster.pool(models.device)
        options = models._replace(device="cuda" if pool.gpus else "cpu")
        shipped = await asyncio.to_thread(_ship, options, clip_directory, cluster)
        loaded = await asyncio.to_thread(_probe, pool, shipped)
        # One precision for all rows: one worker decides once what auto means.
        shipped = shipped._replace(options=options._replace(precision=loaded.precision))
        state.set_options({"precision": loaded.precision})
        pipeline = RayPipeline(
            cluster,
            lambda: cluster.pool(models.device),
            state,
            arrays,
            shipped.load,
            image_bucket=image_bucket,
            index_bucket=index_bucket,
            max_pixels=loaded.max_pixels,
            embedder_workers=loaded.workers,
        )
        nodes = len(cluster.nodes())
        say(
            f"Embedding on {pool.size:,} x {loaded.device} in {loaded.precision}, "
            f"by Ray on {nodes:,} {'machine' if nodes == 1 else 'machines'}."
        )
        await pipeline.run()
    finally:
        await asyncio.to_thread(cluster.__exit__)
    return pipeline.times()


def _ship(options: ModelOptions, clip_directory: Path, cluster: Cluster) -> ShippedModels:
    to_others = not cluster.is_local
    (resnet,) = ship([options.resnet_weights], to_others=to_others)
    clip = ship([clip_directory / name for name in CLIP_FILES], to_others=to_others)
    return ShippedModels(resnet, clip, options)


def _probe(pool: Pool, shipped: ShippedModels) -> workers.Loaded:
    task = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_calls=1)(workers.probe)
    try:
        loaded: workers.Loaded = ray.get(task.remote(shipped.load))
    except RayError as error:
        if (cause := click_error(error)) is not None:
            raise cause from error
        raise
    return loaded
